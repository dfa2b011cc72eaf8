"""`hybrid profile`: how long this machine takes for a model and for the heads of its cuts, measured once and kept."""

import shlex
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.cli.gateway_choice import connected
from hybrid.cli.model_argument import GivenModel, open_model
from hybrid.cli.output import note, progress, result
from hybrid.cli.plan import shape_key_of
from hybrid.cli.table import table, wrapped
from hybrid.errors import EngineFailed, GatewayUnreachable, HybridError

if TYPE_CHECKING:
    import numpy as np

    from hybrid.graph.shape_key import ShapeKey
    from hybrid.partition.prepared import Prepared
    from hybrid.profile.parts import Outcome, Part
    from hybrid.profile.record import Profile, Setting, Timing
    from hybrid.profile.store import ProfileStore
    from hybrid.transport.client import GatewayClient

app = typer.Typer()

HELP = """Time a model and the heads of its cuts on this machine, as the real fused sessions that requests would run.

What is measured is kept in the cache and used by every session of this machine; with --gateway it is shared with
machines of the same class, and what they measured is taken as a beginning.

\b
Examples:
  hybrid profile detector.onnx --shape 1x3x640x640
  hybrid profile detector.onnx --shape 1x3x640x640 --tails --budget 60
  hybrid profile voice.onnx --data requests.npz --gateway http://127.0.0.1:8700 --json
"""

HEADINGS = ("part", "head ms", "median", "spread", "tail ms", "gateway tail ms", "bytes", "from")

LEGEND = (
    "head ms, tail ms: the lower quartile of the runs, with which plans are made; spread: half the distance between "
    "the quartiles, of the median"
)
HELD = (
    "runs were held up again and again, as a quota of processor time does: the milliseconds are those of runs that "
    "follow one another"
)


@app.command(help=HELP)
def profile(
    model: Annotated[str, typer.Argument(help="An .onnx file, an artifact, or NAME[:VERSION].", metavar="MODEL")],
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", help="NAME=1x3x640x640; the name may be left out where there is one input."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Real inputs (.npz, .npy, or a folder of them); without, made-up ones."),
    ] = None,
    budget: Annotated[float, typer.Option("--budget", help="Seconds to spend on measuring.", min=0.1)] = 20.0,
    tails: Annotated[bool, typer.Option("--tails", help="Time the tails here too.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is known.")] = False,
    provider: Annotated[
        list[str] | None, typer.Option("--provider", help="onnxruntime's execution provider; several in their order.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", help="Threads inside a run; 0: the engine's choice.", min=0)] = 0,
    gateway: Annotated[
        str, typer.Option("--gateway", envvar="HYBRID_GATEWAY", help="Share through this gateway; `none`: with nobody.")
    ] = "none",
    token: Annotated[str | None, typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True)] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time a model and its heads here, within a budget."""
    task = _task(open_model(model, gateway, token), shape or [], data, provider, threads)
    with ExitStack() as held:
        client = _client(gateway, token, held)
        offered = _begin_warm(client, task) if client is not None else {}
        outcomes, n_left = _measured(task, budget, tails=tails, again=again)
        known = task.known
        is_shared = client is not None and _shared(client, known)
    told = _told(task, known, outcomes, offered) | {"n_left": n_left, "is_shared": is_shared}
    result(told, _text(told), json=json)
    if not json:
        words = ["hybrid", "profile", model, *(part for word in shape or () for part in ("--shape", word))]
        note(f"next: {shlex.join(words)} --budget {2 * budget:g}" if n_left else "next: hybrid calibrate --help")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What is profiled, and where that is kept."""

    given: GivenModel
    shape_key: "ShapeKey"
    feeds: "dict[str, np.ndarray]"
    prepared: "Prepared"
    setting: "Setting"
    store: "ProfileStore"
    rig_options: dict[str, Any]

    @property
    def known(self) -> "Profile":
        """What is known now."""
        return self.store.find(self.given.digest, self.shape_key.text, self.setting)


def _task(given: GivenModel, shape: list[str], data: Path | None, provider: list[str] | None, threads: int) -> Task:
    import onnxruntime

    from hybrid.artifact.cache import cache_dir
    from hybrid.calibration.calibrate import signature
    from hybrid.calibration.samples import open_samples
    from hybrid.graph.model_file import declared_inputs, load_proto
    from hybrid.graph.shape_key import ShapeKey
    from hybrid.partition.prepared import prepare
    from hybrid.profile.machine import this_setting
    from hybrid.profile.store import ProfileStore
    from hybrid.serving.engines.quiet_timing import synthetic_feeds

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = provider or ["CPUExecutionProvider"]
    session = _opened(given.path, options, providers)
    inputs, _ = signature(given.path, session)
    if data is not None:
        feeds = open_samples(data, inputs).feeds(0)
        shape_key = ShapeKey.of(feeds)
    else:
        shape_key = shape_key_of(declared_inputs(load_proto(given.path)), shape)
        feeds = synthetic_feeds({spec.name: spec for spec in inputs}, shape_key)
    return Task(
        given=given,
        shape_key=shape_key,
        feeds=feeds,
        prepared=prepare(given.path, given.digest, shape_key, cache_dir() / "graphs"),
        setting=this_setting(session.get_providers(), options),  # as sessions call it
        store=ProfileStore(cache_dir() / "profiles"),
        rig_options={"providers": providers, "sess_options": options},
    )


def _opened(path: Path, options: Any, providers: list[str]) -> Any:
    """The model, open where it was asked to be.

    Raises:
        BadParameter: this build of onnxruntime has no such provider.
        EngineFailed: it has, and the provider does not work on this machine.
    """
    import onnxruntime

    from devices.onnx_engine import open_session

    there = onnxruntime.get_available_providers()
    strange = next((name for name in providers if name not in there), None)
    if strange is not None:
        raise typer.BadParameter(
            f"there is no provider {strange!r} here; there are: {', '.join(there)}", param_hint="--provider"
        )
    session = open_session(path, options, providers)
    if session.get_providers()[0] != providers[0]:
        raise EngineFailed(
            f"{providers[0]} does not work on this machine: onnxruntime took {session.get_providers()[0]}"
        )
    return session


def _measured(task: Task, budget_s: float, *, tails: bool, again: bool) -> "tuple[list[Outcome], int]":
    """What was measured now (and kept), and how many parts the budget did not reach."""
    from hybrid.profile.parts import Outcome, Rig, parts_of, time_parts, unknown_parts

    parts = parts_of(task.prepared, tails=tails)
    wanted = parts if again else unknown_parts(parts, task.known)
    rig = Rig(model_path=task.given.path, prepared=task.prepared, feeds=task.feeds, **task.rig_options)
    outcomes: list[Outcome] = []
    try:
        with progress(f"profiling {task.given.name}", len(wanted), "parts") as bar:

            def begun(part: "Part") -> None:
                bar.rename(f"timing {part.label}")

            def done(outcome: "Outcome") -> None:
                _keep(task, outcome)
                outcomes.append(outcome)
                bar.advance(1)

            time_parts(rig, wanted, budget_s, begun=begun, done=done)
    except KeyboardInterrupt:
        note(
            f"{len(outcomes)} of {len(wanted)} parts were timed and are kept: the same command goes on with the others"
        )
        raise
    return outcomes, len(wanted) - len(outcomes)


def _keep(task: Task, outcome: "Outcome") -> None:
    part, timing = outcome.part, outcome.timing
    if timing is None:
        return
    where = (task.given.digest, task.shape_key.text, task.setting)
    if part.cut is None:
        task.store.put(*where, whole=timing)
    elif part.kind == "head":
        task.store.put(*where, heads={part.cut.id: timing})
    else:
        task.store.put(*where, tails={part.cut.id: timing})


# -- the gateway


def _client(gateway: str, token: str | None, held: ExitStack) -> "GatewayClient | None":
    """A client of the gateway until what is held is let go; None where none is named, or none answers."""
    if gateway == "none":
        return None
    try:
        return held.enter_context(connected(gateway, token))
    except GatewayUnreachable as exc:
        note(f"{exc}; measuring alone")
        return None


def _begin_warm(client: "GatewayClient", task: Task) -> dict[str, float]:
    """Takes what like machines measured; seconds of the gateway's own tails by cut id, where it has timed them."""
    from hybrid.profile.exchange import fetch_priors
    from hybrid.scouting.offer import ask

    fetch_priors(client, task.store, task.given.digest, task.shape_key.text, task.setting)
    try:
        offer = ask(client, task.given.digest, task.shape_key.text)
    except HybridError as exc:
        note(f"{client.url} says nothing of its tails: {exc}")
        return {}
    if offer.state == "unknown":
        note(f"{client.url} does not hold this model; nothing is shared. Push it: hybrid models push")
    return {tail.id: tail.tail_s for tail in offer.cuts if tail.tail_s is not None}


def _shared(client: "GatewayClient", known: "Profile") -> bool:
    from hybrid.profile.exchange import share

    return share(client, known)


# -- what is told


def _told(task: Task, known: "Profile", outcomes: "list[Outcome]", offered: dict[str, float]) -> dict[str, Any]:
    now = {f"{o.part.kind} {o.part.cut.id if o.part.cut else ''}": o for o in outcomes}

    def side(kind: str, cut_id: str, timing: "Timing | None") -> dict[str, Any]:
        outcome = now.get(f"{kind} {cut_id}")
        origin = None if timing is None else "shared" if timing.is_prior else "measured" if outcome else "kept"
        return {"timing": timing, "from": origin, "reason": outcome.reason if outcome and outcome.reason else None}

    table = task.prepared.table
    cuts = [
        {
            "cut": cut.id,
            "n_bytes": cut.n_bytes,
            "head_work_ratio": cut.head_work_ratio,
            "head": side("head", cut.id, known.heads.get(cut.id)),
            "tail": side("tail", cut.id, known.tails.get(cut.id)),
            "gateway_tail_s": offered.get(cut.id),
        }
        for cut in table.interior
        if cut.id in table.pareto
    ]
    return {
        "model": task.given.name,
        "model_digest": task.given.digest,
        "shape_key": dict(task.shape_key.shapes),
        "setting": task.setting,
        "kept_at": task.store.path(task.given.digest, task.shape_key.text, task.setting),
        "whole": side("whole", "", known.whole) | {"gateway_s": offered.get(table.cuts[0].id)},
        "input_bytes": table.cuts[0].n_bytes,
        "cuts": cuts,
    }


def _text(told: dict[str, Any]) -> str:
    whole = told["whole"]
    timed = [whole, *(side for cut in told["cuts"] for side in (cut["head"], cut["tail"]))]
    rows: list[tuple[str, ...]] = [HEADINGS]
    rows.append(
        ("whole model", *_shown(whole["timing"]), "", _ms(whole["gateway_s"]), str(told["input_bytes"]), _from(whole))
    )
    for cut in told["cuts"]:
        head, tail = cut["head"], cut["tail"]
        tail_ms = _shown(tail["timing"])[0]
        told_ms = _ms(cut["gateway_tail_s"])
        rows.append((cut["cut"], *_shown(head["timing"]), tail_ms, told_ms, str(cut["n_bytes"]), _from(head)))
    filled = [at for at in range(len(HEADINGS)) if any(row[at] for row in rows[1:])]
    lines = [*table([[row[at] for at in filled] for row in rows]), "", *wrapped(LEGEND)]
    if any(side["timing"] is not None and side["timing"].is_held for side in timed):
        lines += wrapped(HELD)
    lines += ["", *wrapped(f"{told['setting'].machine}; {told['setting'].engine}; {told['setting'].provider}")]
    lines.append(f"kept: {told['kept_at']}")
    if told["n_left"]:
        lines += wrapped(f"the budget ended before {told['n_left']} parts; run again to go on")
    if told["is_shared"]:
        lines += wrapped("shared with machines of this class through the gateway")
    return "\n".join(lines)


def _shown(timing: "Timing | None") -> tuple[str, str, str]:
    if timing is None:
        return "", "", ""
    return _ms(timing.low_s), _ms(timing.median_s), f"{timing.spread_ratio:.1%}"


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _from(side: dict[str, Any]) -> str:
    return f"failed: {side['reason'][:60]}" if side["reason"] else side["from"] or "not reached"
