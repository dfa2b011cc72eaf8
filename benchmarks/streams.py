"""Streams of awaited runs: heads overlap with uplinks and tails, so that the slowest stage alone sets the pace.

A real gateway behind a shaped link, a device that is slower than this machine (paced), objective `throughput`: many
`run_awaitable` are kept in flight, and the requests a second are held against 1 / the slowest stage, each measured by
itself right before (device: head and encoding; uplink: bytes over the rate that the proxy carries; gateway: its own
compute seconds).
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import hybrid
from benchmarks.report import Bar, Record, publish
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from tests import zoo
from tests.live_gateway import LiveGateway

N_IN_FLIGHT = 6
N_REQUESTS = 60


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
    Cell(model="ppocr_det", slowdown=2.0, rate_bps=400e6, placement="offload"),
)
STAGES = ("device", "uplink", "gateway")


@contextmanager
def paced(factor: float) -> Iterator[None]:
    """A device so many times slower."""
    pace.set_factor(factor)
    try:
        yield
    finally:
        pace.set_factor(1.0)


def session_of(cell: Cell, gateway: LiveGateway, link: ShapedProxy) -> hybrid.InferenceSession:
    """An open session, its ways prepared."""
    settings = hybrid.SessionOptions()
    settings.intra_op_num_threads = 1
    session = hybrid.InferenceSession(
        zoo.path(cell.model),
        settings,
        gateway=f"http://127.0.0.1:{link.port}",
        token=gateway.token,
        options=hybrid.Options(objective="throughput", placement=cell.placement, fallback=False),
    )
    if not session.prepare(zoo.feeds(cell.model), 120):
        sys.exit(f"no way was verified: {session.explain()}")
    return session


def stages_s(session: hybrid.InferenceSession, cell: Cell, feeds: dict[str, np.ndarray]) -> dict[str, float]:
    """Seconds of each stage of one request, alone."""
    reports = []
    for _ in range(8):
        session.run(None, feeds)
        if session.report is None or session.report.placement == "local":
            sys.exit(f"not remote: {session.report}")
        reports.append(session.report)
    median = statistics.median
    return {
        "device": median(report.head_s + report.encode_s for report in reports),
        "uplink": 8 * median(report.bytes_up for report in reports) / cell.rate_bps,
        "gateway": median(report.tail_s for report in reports),
        "request": median(report.total_s for report in reports),
    }


async def per_second(session: hybrid.InferenceSession, feeds: dict[str, np.ndarray]) -> tuple[float, dict[str, float]]:
    """Requests a second with a fixed number of them in flight, and what device and gateway computed for one then."""
    left, reports = iter(range(N_REQUESTS)), []

    async def work() -> None:
        for _ in left:
            await session.run_awaitable(None, feeds)
            reports.append(session.report)

    await asyncio.gather(*(session.run_awaitable(None, feeds) for _ in range(N_IN_FLIGHT)))  # the pipe is full now
    began_s = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(N_IN_FLIGHT)))
    rate = N_REQUESTS / (time.perf_counter() - began_s)
    known = [report for report in reports if report is not None]
    device_s = statistics.mean(report.head_s + report.encode_s for report in known)
    return rate, {"device": device_s, "gateway": statistics.mean(report.tail_s for report in known)}


def measured(cell: Cell, folder: Path) -> tuple[dict[str, float], float, dict[str, float]]:
    """The stages of a cell alone, its requests a second, and the stages in the stream."""
    with paced(cell.slowdown), LiveGateway(folder / f"gateway-{CELLS.index(cell)}", "--no-announce") as gateway:
        gateway.push(zoo.path(cell.model), cell.model.replace("_", "-"))
        shape = Shape(up=Direction(rate_bps=cell.rate_bps, delay_s=0.01), down=Direction(delay_s=0.01))
        with ShapedProxy(gateway.port, shape) as link, session_of(cell, gateway, link) as session:
            feeds = zoo.feeds(cell.model)
            stages = stages_s(session, cell, feeds)
            return stages, *asyncio.run(per_second(session, feeds))


def main() -> int:
    """Measures all cells and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    rows: list[tuple[str | float, ...]] = []
    shares: list[float] = []
    for cell in CELLS:
        with tempfile.TemporaryDirectory() as folder:
            stages, rate, then = measured(cell, Path(folder))
        slowest = max(STAGES, key=stages.__getitem__)
        shares.append(rate * stages[slowest])
        alone = (1e3 * stages[name] for name in (*STAGES, "request"))
        rows.append((cell.name, *alone, slowest, rate, shares[-1], 1e3 * then["device"], 1e3 * then["gateway"]))
        print(rows[-1], file=sys.stderr, flush=True)
    return publish(
        Record(
            name="streams",
            claim="Streams: throughput over 1 / the slowest stage",
            method=(
                f"{N_REQUESTS} awaited runs, {N_IN_FLIGHT} in flight, objective throughput, against a real gateway"
                " behind a shaped link; stages measured alone, right before."
            ),
            seed=seed,
            columns=(
                "stream", "device (ms)", "uplink (ms)", "gateway (ms)", "one request alone (ms)", "slowest",
                "requests/s", "share of 1/slowest", "device in the stream (ms)", "gateway in the stream (ms)",
            ),
            rows=rows,
            bars=(Bar(name="1 - least share of 1/slowest stage", measured=1 - min(shares), limit=0.1),),
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
