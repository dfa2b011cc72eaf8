"""A link that loses 5 % of its packets and jitters, live: whether the plan flaps, and whether deadlines are kept.

A real session on an emulated device, a real gateway, kernel TCP between them, under cubic and under BBR. Two models:
one where device and gateway are about equally fast, which tempts a planner to flap, and a heavy one, where the gateway
pays under BBR and never under cubic. Each policy answers a stream of its own, one after the other, in a process of its
own: a session's background work belongs to its policy.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import RESULTS, Bar, Record, publish

SHAPE = {"rate_bps": 20e6, "rtt_s": 0.04, "jitter_s": 0.01, "loss_ratio": 0.05}
MODELS = ("magika", "resnet50")
PAUSE_S = 0.02
"""Between two requests of the stream."""
FACTOR, N_CORES = 7.0, 4
DEADLINE_RATIO = 2.0
"""Deadline over the device's own median."""
CONTROLS = ("cubic", "bbr")
POLICIES = ("local", "offload", "auto", "auto, deadline")
SECONDS = 10.0
CALM_S = 2.0
"""Requests of this long are left out: what is learnt at the beginning belongs to no steady link."""
PREPARED_WITHIN_S = 60.0


def device(spec: dict[str, Any]) -> dict[str, Any]:
    """What runs on the device: one policy's session; seconds, placements and changes of plan of every request."""
    import onnxruntime

    import hybrid

    with np.load(spec["feeds"]) as stored:
        feeds = dict(stored)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    options = hybrid.Options(placement=spec["placement"], deadline_s=spec["deadline_s"])
    rows = []
    with hybrid.InferenceSession(spec["model"], settings, ["CPUExecutionProvider"], options=options) as session:
        until_s = time.monotonic() + PREPARED_WITHIN_S
        while spec["placement"] != "local" and time.monotonic() < until_s and not is_prepared(session):
            seconds_of(session, feeds)
        calm_s = time.monotonic() + CALM_S
        while time.monotonic() < calm_s:
            seconds_of(session, feeds)
        began_s = time.monotonic()
        while time.monotonic() - began_s < spec["seconds"]:
            time.sleep(PAUSE_S)
            seconds = seconds_of(session, feeds)
            placement = session.report.placement if session.report is not None else "none"
            rows.append({"s": seconds, "placement": placement})
        elapsed_s = time.monotonic() - began_s
        # a forced placement decides nothing; the session keeps its last decisions, as many as this stream has
        kept = [decision for decision, _ in session.decisions[-len(rows) :]]
        switches = [decision.is_switch for decision in kept if decision.inputs is not None]
        hedged = [decision.hedge_s is not None for decision in kept]
        return {"elapsed_s": elapsed_s, "rows": rows, "n_switches": sum(switches), "n_hedged": sum(hedged)}


def seconds_of(session: Any, feeds: dict[str, np.ndarray]) -> float:
    """One request."""
    from hybrid.errors import DeadlinePassed

    began_s = time.perf_counter()
    with contextlib.suppress(DeadlinePassed):  # its seconds say that it came too late
        session.run(None, feeds)
    return time.perf_counter() - began_s


def is_prepared(session: Any) -> bool:
    """Whether a remote way is known, or the one that was forced."""
    return any(one.placement != "local" and one.predicted_s is not None for one in session.explain())


@contextlib.contextmanager
def beside_the_device() -> Iterator[None]:
    """What starts meanwhile keeps off the last processor, where the device's cores are."""
    here = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(here)[:-1]) or here)
    try:
        yield
    finally:
        os.sched_setaffinity(0, here)


def cell(name: str, control: str, seed: int, seconds: float, folder: Path) -> dict[str, Any]:
    """One model under one congestion control: what the device measured."""
    from devices.lab.lab import Lab
    from devices.shape import Shape
    from hybrid.cli.lab_gateway import started_gateway
    from tests import zoo

    np.savez(folder / "feeds.npz", **zoo.feeds(name, seed))  # type: ignore[arg-type]  # names that it does not know
    spec: dict[str, Any] = {"model": str(zoo.path(name)), "feeds": str(folder / "feeds.npz"), "seconds": seconds}
    told: dict[str, Any] = {}
    with (
        Lab(
            Shape.even(**SHAPE), kind="tun", congestion_control=control, seed=seed, factor=FACTOR, n_cores=N_CORES
        ) as lab,
        beside_the_device(),
        started_gateway(lab, serves=True, models=(zoo.path(name),), command=None, port=8700) as gateway,
    ):
        assert gateway is not None, "it was asked for"
        for policy in POLICIES:
            spec["placement"] = policy.partition(",")[0]
            spec["deadline_s"] = told["deadline_s"] if "deadline" in policy else None
            done = lab.device.run(
                [sys.executable, "-m", "benchmarks.lossy_link", "--device", json.dumps(spec)],
                env={**os.environ, **gateway.environment},
                capture_output=True,
                text=True,
                timeout_s=10 * seconds + 2 * PREPARED_WITHIN_S,
                cwd=Path(__file__).parent.parent,
            )
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            told[policy] = json.loads(done.stdout.splitlines()[-1])
            if policy == "local":
                told["deadline_s"] = DEADLINE_RATIO * statistics.median(row["s"] for row in told[policy]["rows"])
    return told


def rows_of(name: str, control: str, measured: dict[str, Any]) -> list[list[str | float]]:
    """One row a policy."""
    rows: list[list[str | float]] = []
    for policy in POLICIES:
        runs = measured[policy]["rows"]
        took_ms = sorted(1e3 * run["s"] for run in runs)
        remote = sum(run["placement"] != "local" for run in runs) / len(runs)
        late = sum(run["s"] > measured["deadline_s"] for run in runs) / len(runs)
        p95_ms = took_ms[min(len(took_ms) - 1, round(0.95 * len(took_ms)))]
        changes = measured[policy]["n_switches"] / measured[policy]["elapsed_s"] * 10
        hedged = measured[policy]["n_hedged"] / len(runs)
        rows.append([name, control, policy, statistics.median(took_ms), p95_ms, remote, hedged, changes, late])
    return rows


def main() -> int:
    """Measures every cell and publishes the table; as `--device`, measures one stream."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one short cell; publishes nothing")
    parser.add_argument("--model", choices=MODELS, help="only this one; rows of others stay as they were")
    parser.add_argument("--congestion-control", choices=CONTROLS, help="only this one, likewise")
    parser.add_argument("--device", help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.device:
        print(json.dumps(device(json.loads(words.device))))
        return 0
    names = [words.model] if words.model else [*MODELS][: 1 if words.quick else None]
    controls = [words.congestion_control] if words.congestion_control else CONTROLS[: 1 if words.quick else None]
    rows: list[list[str | float]] = []
    for name in names:
        for control in controls:
            with tempfile.TemporaryDirectory() as folder:
                measured = cell(name, control, words.seed, 3.0 if words.quick else SECONDS, Path(folder))
            rows += rows_of(name, control, measured)
    if words.quick:
        print(*rows, sep="\n")
        return 0
    stored = RESULTS / "lossy_link.json"
    before = json.loads(stored.read_text(encoding="utf-8"))["rows"] if stored.exists() else []
    measured_now = {(row[0], row[1]) for row in rows}
    rows = sorted([*(row for row in before if (row[0], row[1]) not in measured_now), *rows], key=lambda row: row[:2])
    return publish(record(rows, words.seed))


def record(rows: list[list[str | float]], seed: int) -> Record:
    """The table with its bars."""
    auto = [row for row in rows if str(row[2]).startswith("auto")]
    late = [row for row in rows if row[2] == "auto, deadline"]
    worst = 0.0
    for row in auto:
        fixed = [float(other[3]) for other in rows if other[:2] == row[:2] and other[2] in {"local", "offload"}]
        worst = max(worst, float(row[3]) / min(fixed))
    return Record(
        name="lossy_link",
        claim="5 % loss with jitter: the plan does not flap, deadlines are kept",
        method="Live in the lab: 20 Mbit/s, 40 ms ± 10 each way, 5 % of packets lost each way, device of"
        f" {N_CORES} cores, each 1/{FACTOR:g} of this machine's (quota of the kernel), {SECONDS:g} s a policy,"
        " one after the other. The deadline is twice the device's own median. Plan changes by the log of decisions;"
        " a trial of another way is none.",
        seed=seed,
        columns=("model", "TCP", "policy", "p50 (ms)", "p95 (ms)", "remote", "hedged", "plan changes / 10 s", "late"),
        rows=rows,
        bars=(
            Bar(name="most plan changes in 10 s", measured=max(float(row[7]) for row in auto), limit=1.0),
            Bar(name="deadlines missed", measured=max(float(row[8]) for row in late), limit=0.0),
            Bar(name="median over the better of local and offload", measured=worst, limit=1.05),
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
