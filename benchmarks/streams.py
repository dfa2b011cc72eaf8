"""Streams of awaited runs: heads overlap with uplinks and tails, so that the slowest stage alone sets the pace.

A real gateway behind a shaped link, a device that is slower than this machine (paced) in a process of its own,
objective `throughput`: many `run_awaitable` are kept in flight, and the requests a second are held against 1 / the
slowest stage (device: head and encoding; uplink: bytes over the link's rate; gateway: its own compute seconds), once
with the stages as they are in a request alone, right before, and once as they are in the stream: this machine's two
processors slow each other down.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import ROOT, Bar, Record, publish

N_IN_FLIGHT = 6
N_REQUESTS = 60
N_ALONE = 12


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One stream: a model, how slow the device is, the uplink, and what is asked for."""

    model: str
    slowdown: float
    rate_bps: float
    placement: str

    @property
    def name(self) -> str:
        """All of it in words; which stage is the slowest is measured."""
        return f"{self.model}, {self.placement}, device 1/{self.slowdown:g}, {self.rate_bps / 1e6:g} Mbit/s"


CELLS = (
    Cell(model="ppocr_cls", slowdown=1.0, rate_bps=20e6, placement="offload"),
    Cell(model="efficientnet", slowdown=20.0, rate_bps=100e6, placement="split"),
    Cell(model="efficientnet", slowdown=2.0, rate_bps=4e6, placement="split"),
    Cell(model="ppocr_det", slowdown=6.0, rate_bps=400e6, placement="split"),
)
STAGES = ("device", "uplink", "gateway")


# -- on the device


def device(spec: dict[str, Any]) -> dict[str, Any]:
    """The stages of one request alone, the requests a second, and the stages then."""
    import onnxruntime

    import hybrid

    with np.load(spec["feeds"]) as stored:
        feeds = dict(stored)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    options = hybrid.Options(objective="throughput", placement=spec["placement"], fallback=False)
    with hybrid.InferenceSession(spec["model"], settings, ["CPUExecutionProvider"], options=options) as session:
        if not session.prepare(feeds, 120):
            sys.exit(f"no way was verified: {session.explain()}")
        reports = []
        for _ in range(N_ALONE):
            session.run(None, feeds)
            reports.append(session.report)
        alone = stages_s(reports[N_ALONE // 2 :], spec["rate_bps"])
        rate, reports = asyncio.run(per_second(session, feeds))
        return {"alone": alone, "rate": rate, "then": stages_s(reports, spec["rate_bps"])}


def stages_s(reports: list[Any], rate_bps: float) -> dict[str, float]:
    """Mean seconds of each stage of these requests."""
    if any(report is None or report.placement == "local" for report in reports):
        sys.exit(f"not remote: {reports}")
    mean = statistics.mean
    return {
        "device": mean(report.head_s + report.encode_s for report in reports),
        "uplink": 8 * mean(report.bytes_up for report in reports) / rate_bps,
        "gateway": mean(report.tail_s for report in reports),
        "request": mean(report.total_s for report in reports),
    }


async def per_second(session: Any, feeds: dict[str, np.ndarray]) -> tuple[float, list[Any]]:
    """Requests a second with a fixed number of them in flight, and their reports."""
    left = iter(range(N_REQUESTS))
    reports = []

    async def work() -> None:
        for _ in left:
            await session.run_awaitable(None, feeds)
            reports.append(session.report)

    await asyncio.gather(*(session.run_awaitable(None, feeds) for _ in range(N_IN_FLIGHT)))  # the pipe is full now
    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(N_IN_FLIGHT)))
    return N_REQUESTS / (time.perf_counter() - began_s), reports


# -- beside it


def measured(cell: Cell, seed: int) -> dict[str, Any]:
    """What the device of one cell found."""
    from devices.lab.lab import Lab
    from devices.shape import Direction, Shape
    from tests import zoo
    from tests.live_gateway import LiveGateway

    shape = Shape(up=Direction(rate_bps=cell.rate_bps, delay_s=0.01), down=Direction(delay_s=0.01))
    with (
        tempfile.TemporaryDirectory() as place,
        Lab(shape, kind="proxy", slowdown="pacing", factor=cell.slowdown) as lab,
        LiveGateway(Path(place) / "gateway", "--no-announce", place=lab.gateway) as gateway,
    ):
        folder = Path(place)
        gateway.push(zoo.path(cell.model), cell.model.replace("_", "-"))
        np.savez(folder / "feeds.npz", **zoo.feeds(cell.model, seed))  # type: ignore[arg-type]  # names unknown to it
        spec = asdict(cell) | {"model": str(zoo.path(cell.model)), "feeds": str(folder / "feeds.npz")}
        told = {"HYBRID_GATEWAY": lab.url(gateway.port), "HYBRID_TOKEN": gateway.token}
        done = lab.device.run(
            [sys.executable, "-m", "benchmarks.streams", "--device", json.dumps(spec)],
            env={**os.environ, **told, "HYBRID_CACHE": str(folder / "cache")},
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            timeout_s=300,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    """Measures all cells and publishes the table; as `--device`, measures one stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="publish nothing")
    parser.add_argument("--device", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.device:
        print(json.dumps(device(json.loads(chosen.device))))
        return 0
    rows: list[tuple[str | float, ...]] = []
    shares: dict[str, list[float]] = {"alone": [], "then": []}
    for cell in CELLS:
        found = measured(cell, chosen.seed)
        for when, those in shares.items():
            those.append(found["rate"] * max(found[when][name] for name in STAGES))
        stages = [" / ".join(f"{1e3 * found[when][name]:.3g}" for when in shares) for name in STAGES]
        slowest = max(STAGES, key=found["then"].__getitem__)
        alone_ms = 1e3 * found["alone"]["request"]
        rows.append((cell.name, *stages, alone_ms, slowest, found["rate"], shares["alone"][-1], shares["then"][-1]))
        print(rows[-1], file=sys.stderr, flush=True)
    return 0 if chosen.dry else publish(record(rows, shares, chosen.seed))


def record(rows: list[tuple[str | float, ...]], shares: dict[str, list[float]], seed: int) -> Record:
    """The table with its bars."""
    return Record(
        name="streams",
        claim="Streams: throughput over 1 / the slowest stage",
        method=(
            f"{N_REQUESTS} awaited runs, {N_IN_FLIGHT} in flight, objective throughput, against a real gateway behind "
            "a shaped link; the device is paced, in a process of its own. Milliseconds of the stages: of a request "
            "alone / of one in the stream. Where these differ, the two processors of this machine slow each other: an "
            "engine run takes up to 1.8 times as many processor seconds while the other one computes."
        ),
        seed=seed,
        columns=(
            "stream", "device (ms)", "uplink (ms)", "gateway (ms)", "one request alone (ms)", "slowest", "requests/s",
            "share of 1/slowest, alone", "share of 1/slowest, in the stream",
        ),
        rows=rows,
        bars=(
            Bar(name="1 - least share of 1/slowest stage (stages alone)", measured=1 - min(shares["alone"]), limit=0.1),
            Bar(name="1 - least share (stages in the stream)", measured=1 - min(shares["then"]), limit=0.1),
        ),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
