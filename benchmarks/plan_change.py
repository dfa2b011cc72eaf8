"""What a change of plan costs the requests beside it, and what heads and rests cost in memory.

For each model a process of its own opens the whole model as a session does, then takes 15 cuts one after the other, as
the preparation thread does: it closes and opens heads, and what goes on from their activations, under the usual budget.
Meanwhile another thread runs a tiny model back to back, so that every lock that is held shows as a pause.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.report import Bar, Record, publish
from hybrid.artifact.digest import model_digest
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared, prepare
from hybrid.route.departure import gone_on, headed
from hybrid.route.engine import Settings, open_piece, open_whole
from hybrid.route.holding import Holding
from hybrid.route.levels import wanted_levels
from hybrid.route.route import Route
from hybrid.route.this_machine import ThisMachine
from hybrid.route.way import Crossing, Way
from hybrid.schedule.prospect import Prospect
from hybrid.scouting.background import BackgroundEngine
from hybrid.scouting.heads import OpenHeads, close
from hybrid.scouting.memory import give_back_unused
from hybrid.transport.client import acquire
from hybrid.transport.trust import Trust
from tests import zoo

MODELS = ("efficientnet", "ppocr_rec", "ppocr_det", "resnet50")
N_CUTS = 15
N_ROUNDS = 3
N_WARM = 5
N_STOPS = 15
N_PLAIN = 3
SETTLE_S = 0.03


def settings() -> Settings:
    """One thread a run, so that the requests and the changes have a core each."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return Settings(sess_options=options, providers=["CPUExecutionProvider"])


def held_bytes() -> int:
    """Memory of this process: its share of every page (PSS), which counts mapped files where they are in use."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/smaps_rollup says no Pss")


class Program:
    """A program with one model, as far as changes of plan concern it."""

    def __init__(self, name: str, prepared: Prepared, feeds: dict[str, np.ndarray], *, is_ours: bool) -> None:
        warm = open_whole(str(tiny_path(prepared)), settings(), "tiny")
        warm.run(None, {"x": np.zeros((1, 16), np.float32)})
        self.tiny = warm
        # What every connected session loads, whatever its model: the transport, the codecs.
        self.holding = Holding(acquire("http://127.0.0.1:9", None, trust=Trust()), None, {}, ("none",))
        wanted_levels(["none"])
        give_back_unused()
        self.base_bytes = held_bytes()
        self.feeds, self.prepared = feeds, prepared
        self.background = ThreadPoolExecutor(1)
        self.whole = open_whole(str(zoo.path(name)), settings(), name)
        self.outputs = tuple(node.name for node in self.whole.session.get_outputs())
        given_back_bytes = give_back_unused() if is_ours else 0
        self.engine = BackgroundEngine(self.whole.run, partial(open_piece, settings=settings()))
        self.heads = OpenHeads(self.engine, given_back_bytes)
        for _ in range(N_WARM):
            self.reference = self.whole.run(self.outputs, feeds)
        self.whole_bytes = held_bytes() - self.base_bytes

    def crossings(self) -> list[Crossing]:
        """Cuts that the budget allows, spread over the depth."""
        table = self.prepared.table
        usual = [cut for cut in table.interior if cut.sized and not self.heads.obstacle(self.prepared, cut)]
        chosen: dict[str, Cut] = {cut.id: cut for cut in usual if cut.id in table.pareto}
        for at in range(N_CUTS):
            if len(chosen) < N_CUTS:
                cut = usual[round(at * (len(usual) - 1) / (N_CUTS - 1))]
                chosen[cut.id] = cut
        return [_crossing(cut, self.holding) for cut in sorted(chosen.values(), key=lambda cut: cut.head_work_ratio)]

    def route(self) -> Route:
        """The shape's route, with the whole model's answer and seconds."""
        shapes = tuple((name, array.shape) for name, array in self.feeds.items())
        route = Route(shapes, "latency", ThisMachine(n_cores=2, attempt_s=0.0))
        route.take_sample(self.feeds)
        route.reference, seconds = self.engine.timed_whole(self.outputs, self.feeds, n_runs=3)
        route.scheduler.profile_local(min(seconds), is_settled=True)
        return route

    def hedge(self, crossing: Crossing) -> list[np.ndarray]:
        """What a request does that splits here and goes on by itself: head, then rest or whole."""
        here = headed(crossing.ways[0], self.feeds, self.outputs)
        return gone_on(here, self.outputs) if here.rest is not None else self.whole.run(self.outputs, self.feeds)


def _crossing(cut: Cut, holding: Holding) -> Crossing:
    crossing = Crossing(holding, cut, verified=True)
    crossing.ways.append(Way(Prospect(placement="split", cut=cut.id, gateway=holding.client.url), crossing))
    return crossing


def tiny_path(prepared: Prepared) -> Path:
    """A model that takes microseconds, beside the prepared one."""
    from benchmarks.session_overhead import tiny_model

    path = prepared.folder.parent.parent / "tiny.onnx"
    if not path.exists():
        tiny_model(path)
    return path


def pause_ms(program: Program, work: Callable[[], None]) -> float:
    """The longest time between two runs of the tiny model in this thread while another one works."""
    feeds, longest_s = {"x": np.zeros((1, 16), np.float32)}, 0.0
    working = program.background.submit(work)
    before_s = time.perf_counter()
    while not working.done():
        program.tiny.run(None, feeds)
        now_s = time.perf_counter()
        longest_s, before_s = max(longest_s, now_s - before_s), now_s
    working.result()
    return 1e3 * longest_s


def stop_ms(program: Program, rng: np.random.Generator) -> float:
    """From raising `terminate` at a random moment of a run of the whole to its end; the median of several."""
    whole_s = min(_timed(lambda: program.whole.run(program.outputs, program.feeds)) for _ in range(3))
    taken = []
    for _ in range(N_STOPS):
        options, ended = onnxruntime.RunOptions(), threading.Event()
        thread = threading.Thread(target=_stopped, args=(program, options, ended))
        thread.start()
        time.sleep(float(rng.uniform(0.1, 0.8)) * whole_s)
        options.terminate = True
        taken.append(_timed(ended.wait))
        thread.join()
    return 1e3 * statistics.median(taken)


def _stopped(program: Program, options: onnxruntime.RunOptions, ended: threading.Event) -> None:
    try:
        program.whole.run(program.outputs, program.feeds, options)
    except Exception:  # noqa: BLE001  (the engine's own; it is what was asked for)
        pass
    ended.set()


def _timed(work: Callable[[], object]) -> float:
    before_s = time.perf_counter()
    work()
    return time.perf_counter() - before_s


def changes(program: Program, rng: np.random.Generator) -> dict[str, Any]:
    """Takes every cut in turn, and goes back to local, several times; pauses, memory, and how much faster a rest is."""
    crossings, route = program.crossings(), program.route()
    hottest = max(crossings, key=lambda one: _interest(program, one))
    with_head_bytes = _held_with(program, route, hottest, crossings, has_rest=False)
    hot_bytes = _held_with(program, route, hottest, crossings, has_rest=True)
    outputs = program.hedge(hottest)
    still: list[float] = []
    moved: dict[str, list[float]] = {}
    peak_bytes = 0
    for _ in range(N_ROUNDS):
        for crossing in crossings:
            others = [*(other for other in crossings if other is not crossing), crossing]
            worst_first = sorted(others, key=lambda other: (other is crossing, other.cut is None))

            def change(crossing: Crossing = crossing, worst_first: list[Crossing] = worst_first) -> None:
                program.heads.open(program.prepared, crossing, worst_first)
                opened = [other for other in reversed(worst_first) if other.head is not None]
                program.heads.go_on(program.prepared, route, program.outputs, opened)
                program.heads.settle()

            assert crossing.cut is not None
            still.append(pause_ms(program, partial(time.sleep, SETTLE_S)))
            moved.setdefault(crossing.cut.id, []).append(pause_ms(program, change))
            program.hedge(crossing)
            peak_bytes = max(peak_bytes, held_bytes() - program.base_bytes)
        moved.setdefault("local", []).append(pause_ms(program, partial(_to_local, crossings)))
    n_rests = sum(_head_and_rest(program, route, one, crossings) for one in crossings)
    return {
        "pauses": {cut: min(values) for cut, values in moved.items()},
        "still": still,
        "peak_bytes": peak_bytes,
        "head_bytes": with_head_bytes,
        "hot_bytes": hot_bytes,
        "has_rest": _head_and_rest(program, route, hottest, crossings),
        "depth": hottest.cut.head_work_ratio if hottest.cut else 0.0,
        "pair_ratio": _pair_ratio(program, hottest),
        "error": max(float(np.abs(a - b).max()) for a, b in zip(outputs, program.reference, strict=True)),
        "stop_ms": stop_ms(program, rng),
        "n_rests": n_rests,
        "n_cuts": len(crossings),
    }


def _to_local(crossings: list[Crossing]) -> None:
    for crossing in crossings:
        close(crossing)


def _head_and_rest(
    program: Program, route: Route, crossing: Crossing, crossings: list[Crossing], *, has_rest: bool = True
) -> bool:
    """Opens this cut alone; whether the budget carries its rest beside its head."""

    def alone() -> None:
        _to_local(crossings)
        program.heads.open(program.prepared, crossing, crossings)
        if has_rest:
            program.heads.go_on(program.prepared, route, program.outputs, [crossing])
        program.heads.settle()

    program.background.submit(alone).result()
    return crossing.rest is not None


def _held_with(program: Program, route: Route, crossing: Crossing, crossings: list[Crossing], *, has_rest: bool) -> int:
    """Memory with this cut's head, and its rest, after some requests."""
    _head_and_rest(program, route, crossing, crossings, has_rest=has_rest)
    for _ in range(N_WARM):
        program.hedge(crossing)
    return held_bytes() - program.base_bytes


def _interest(program: Program, crossing: Crossing) -> float:
    """Which cut is shown: one worth timing, as near to the middle of the work as can be."""
    assert crossing.cut is not None
    return (crossing.cut.id in program.prepared.table.pareto) - abs(crossing.cut.head_work_ratio - 0.5)


def _pair_ratio(program: Program, crossing: Crossing) -> float:
    """Head and rest over the whole, in turn."""
    pair, whole = [], []
    for _ in range(9):
        whole.append(_timed(lambda: program.whole.run(program.outputs, program.feeds)))
        pair.append(_timed(lambda: program.hedge(crossing)))
    return statistics.median(pair) / statistics.median(whole)


def child(name: str, cache: Path, seed: int, *, is_ours: bool) -> dict[str, Any]:
    """What one process sees: the plain whole, or the changes."""
    path, feeds = zoo.path(name), zoo.feeds(name, seed)
    prepared = prepare(path, model_digest(path), ShapeKey.of(feeds), cache)
    program = Program(name, prepared, feeds, is_ours=is_ours)
    found = {"base_bytes": program.base_bytes, "whole_bytes": program.whole_bytes}
    return found | (changes(program, np.random.default_rng(seed)) if is_ours else {})


def write_pieces(name: str, cache: Path, seed: int) -> None:
    """All heads and tails, as the process that prepares a model writes those that are worth timing."""
    path = zoo.path(name)
    prepared = prepare(path, model_digest(path), ShapeKey.of(zoo.feeds(name, seed)), cache)
    for cut in prepared.table.interior:
        prepared.head_path(cut.id)
        prepared.tail_path(cut.id)


def ask(name: str, cache: Path, seed: int, kind: str) -> dict[str, Any]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.plan_change", "--seed", str(seed), "--child", name, kind, str(cache)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plain_of(name: str, cache: Path, seed: int) -> dict[str, Any]:
    """The plain whole's median process: what the C library keeps differs from one to the next."""
    runs = [ask(name, cache, seed, "plain") for _ in range(N_PLAIN)]
    return sorted(runs, key=lambda run: float(run["whole_bytes"]))[N_PLAIN // 2]


COLUMNS = (
    "model",
    "cuts taken",
    "longest pause at a change, worst cut (ms)",
    "longest pause, nothing changed (ms)",
    "plain whole (MB)",
    "whole, unused given back (MB)",
    "with hot head (MB)",
    "with hot head and rest (MB)",
    "peak while changing (MB)",
    "process with head and rest / plain",
    "depth of that cut",
    "cuts with a rest",
    "head and rest / whole (time)",
    "stop by terminate (ms)",
)


def process_ratio(plain: dict[str, Any], ours: dict[str, Any], kind: str) -> float:
    """Memory of the whole process over that of one with onnxruntime alone; the library's own code counts in both."""
    return float((plain["base_bytes"] + ours[kind]) / (plain["base_bytes"] + plain["whole_bytes"]))


def row_of(name: str, plain: dict[str, Any], ours: dict[str, Any]) -> tuple[str | float, ...]:
    """One row of the table."""
    shown = [ours["whole_bytes"], ours["head_bytes"], ours["hot_bytes"], ours["peak_bytes"]]
    return (
        name,
        float(ours["n_cuts"]),
        max(ours["pauses"].values()),
        statistics.median(ours["still"]),
        plain["whole_bytes"] / 1e6,
        *(n_bytes / 1e6 for n_bytes in shown),
        process_ratio(plain, ours, "hot_bytes"),
        ours["depth"] if ours["has_rest"] else "no rest",
        f"{ours['n_rests']} of {ours['n_cuts']}",
        ours["pair_ratio"],
        ours["stop_ms"],
    )


def bars_of(found: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[Bar]:
    """What is promised: no request is held up, and at most a fifth more memory than the whole model alone."""
    extra_ms = max(max(ours["pauses"].values()) - min(ours["still"]) for _, ours in found.values())

    def worst(kind: str) -> float:
        return max(float(ours[kind]) / float(plain["whole_bytes"]) for plain, ours in found.values())

    return [
        Bar(name="longest extra pause at a change, worst cut and model", measured=extra_ms, limit=1.0, unit=" ms"),
        Bar(name="memory with the hot head over the plain whole model", measured=worst("head_bytes"), limit=1.2),
        Bar(name="memory with hot head and rest over it", measured=worst("hot_bytes"), limit=1.2),
        Bar(name="peak while changing, two heads and a rest open, over it", measured=worst("peak_bytes"), limit=1.2),
        Bar(
            name="the process with hot head and rest over one with the plain whole model",
            measured=max(process_ratio(plain, ours, "hot_bytes") for plain, ours in found.values()),
            limit=1.2,
        ),
    ]


def main() -> int:
    """Measures all models and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "KIND", "CACHE"))
    given = parser.parse_args()
    if given.child:
        name, kind, cache = given.child
        print(json.dumps(child(name, Path(cache), given.seed, is_ours=kind == "ours")))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        for name in MODELS:
            write_pieces(name, cache, given.seed)
        found = {name: (plain_of(name, cache, given.seed), ask(name, cache, given.seed, "ours")) for name in MODELS}
    return publish(
        Record(
            name="plan_change",
            claim="A change of plan holds up no request, and heads fit beside the whole model",
            method=f"{N_CUTS} cuts a model and back to local, {N_ROUNDS} rounds; for each change the least of the"
            " rounds' longest pauses between runs of a tiny model, since other work on the machine only adds. Memory"
            " is PSS above that of the process with the engine loaded, in fresh processes, after runs of each part;"
            " plain is onnxruntime alone. One thread a run.",
            seed=given.seed,
            columns=COLUMNS,
            rows=[row_of(name, *pair) for name, pair in found.items()],
            bars=bars_of(found),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
