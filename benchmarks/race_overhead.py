"""What a race costs the side that wins it: the device's run beside an attempt that loses, the gateway's beside a run.

Every request is raced, whatever the scheduler would choose, so that nothing but the race is measured. A gateway that
loses is behind a link of some kbit/s (a process of its own); one that wins answers a device that is paced. Neither side
computes while the other is measured: gateway and device share one machine here, and would slow each other down. Blocks
alternate in one process; ratios of their medians.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime

import hybrid
from benchmarks.report import Bar, Record, publish
from devices import pace
from hybrid.route.route import Route
from hybrid.schedule.prospect import Constraints
from hybrid.session.planning import Plan
from hybrid.session.trip import Trip
from tests import zoo
from tests.live_gateway import LiveGateway

N_BLOCKS = 24
N_RUNS = 10
LOSING_BPS = 30e3
"""Too slow for any request to arrive before the device has answered: the gateway computes nothing on this machine."""

SLOW_DEVICE = 100.0
DELAY_S = 0.010

LINK = """
import sys
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
with ShapedProxy(int(sys.argv[1])) as link:
    print(link.port, flush=True)
    for line in sys.stdin:
        rate_bps, delay_s = map(float, line.split())
        way = Direction(rate_bps=rate_bps, delay_s=delay_s)
        link.set(Shape(up=way, down=way))
        print(line, end="", flush=True)
"""

Run = Callable[..., list[np.ndarray]]


class Link:
    """A link to the gateway in a process of its own, wide open at first.

    Attributes:
        port: its near end.
    """

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", LINK, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def set(self, rate_bps: float, delay_s: float = 0.0) -> None:
        """Both ways are like this from now on."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{rate_bps} {delay_s}\n")
        self._process.stdin.flush()
        self._process.stdout.readline()


def one_thread() -> onnxruntime.SessionOptions:
    """Computing in the calling thread, as on a small board."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return options


def always(session: hybrid.InferenceSession, feeds: dict[str, np.ndarray], hedge_s: float | None) -> None:
    """From now on every request is offloaded, with this hedge time, however the gateway did before."""
    remote = session._connection.remote  # type: ignore[union-attr]  # noqa: SLF001
    route = remote.route(None, feeds)
    assert route is not None
    way, decision, why = route.forced(hybrid.Options(placement="offload"), Constraints(), time.monotonic())
    if way is None:
        sys.exit(f"nothing to race: {why}")

    def plan(_route: Route, trip: Trip) -> Plan | None:
        trip.decision = decision
        return None if trip.attempts else Plan(way, decision, hedge_s, is_race=hedge_s == 0)

    remote._planner.plan = plan  # noqa: SLF001


def block_s(run: Run, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """Seconds a run over one block: by the clock, and of this process's processors."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(N_RUNS):
        run(None, feeds)
    return (time.perf_counter() - started_s) / N_RUNS, (time.process_time() - cpu_s) / N_RUNS


def medians(runs: dict[str, Run], feeds: dict[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    """Median seconds of each way to run, the blocks alternating."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for run in runs.values():
        block_s(run, feeds)
    for _ in range(N_BLOCKS):
        for name, run in runs.items():
            samples[name].append(block_s(run, feeds))
    return {
        name: (statistics.median(clock for clock, _ in taken), statistics.median(cpu for _, cpu in taken))
        for name, taken in samples.items()
    }


def opened(model: str, gateway: LiveGateway, port: int, feeds: dict[str, np.ndarray]) -> hybrid.InferenceSession:
    """A session with a verified way through that port."""
    session = hybrid.InferenceSession(
        zoo.path(model), one_thread(), gateway=f"http://127.0.0.1:{port}", token=gateway.token
    )
    if not session.prepare(feeds):
        sys.exit(f"the gateway is not usable: {session.explain()}")
    return session


def device_wins(
    model: str, feeds: dict[str, np.ndarray], gateway: LiveGateway
) -> list[tuple[str, float, float, float]]:
    """Rows of a race that the link loses: ratio to the device alone, milliseconds, and the processor's."""
    alone = onnxruntime.InferenceSession(zoo.path(model), one_thread())
    with (
        Link(gateway.port) as link,
        opened(model, gateway, link.port, feeds) as raced,
        opened(model, gateway, gateway.port, feeds) as planned,
    ):
        always(raced, feeds, 0.0)
        link.set(LOSING_BPS)
        found = medians({"onnxruntime": alone.run, "planned": planned.run, "raced": raced.run}, feeds)
        assert raced.report is not None
        assert (raced.report.placement, raced.report.hedge_s) == ("local", 0.0)
    return rows_of(
        found,
        {
            "onnxruntime": f"{model}: onnxruntime alone",
            "planned": f"{model}: a session that chooses",
            "raced": f"{model}: raced, the device wins",
        },
    )


def gateway_wins(gateway: LiveGateway) -> list[tuple[str, float, float, float]]:
    """Rows of a race that a slow device loses: a light model, so that it mostly sleeps, and a link with a delay."""
    feeds = zoo.feeds("ppocr_cls")
    pace.set_factor(SLOW_DEVICE)
    try:
        with (
            Link(gateway.port) as link,
            opened("ppocr_cls", gateway, link.port, feeds) as raced,
            opened("ppocr_cls", gateway, link.port, feeds) as waiting,
        ):
            always(raced, feeds, 0.0)
            always(waiting, feeds, None)
            link.set(1e9, DELAY_S)
            found = medians({"offload": waiting.run, "raced": raced.run}, feeds)
            assert raced.report is not None
            assert raced.report.placement == "offload"
    finally:
        pace.set_factor(1.0)
    named = {"offload": "ppocr_cls: offloaded, nothing beside it", "raced": "ppocr_cls: raced, the gateway wins"}
    return rows_of(found, named)


def rows_of(found: dict[str, tuple[float, float]], named: dict[str, str]) -> list[tuple[str, float, float, float]]:
    """Rows of a table; ratios to the first one."""
    base_s = next(iter(found.values()))[0]
    return [(named[name], clock_s / base_s, 1e3 * clock_s, 1e3 * cpu_s) for name, (clock_s, cpu_s) in found.items()]


def main() -> int:
    """Measures two models of about 20 ms and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    seed = parser.parse_args().seed
    rng = np.random.default_rng(seed)
    words = {"input_ids": rng.integers(5, 9000, (4, 64)), "attention_mask": np.ones((4, 64), np.int64)}
    models = {"ppocr_det": zoo.feeds("ppocr_det", seed), "minilm": words}
    rows = []
    with tempfile.TemporaryDirectory() as folder, LiveGateway(Path(folder) / "gateway", "--no-announce") as gateway:
        for model in (*models, "ppocr_cls"):
            gateway.push(zoo.path(model), model.replace("_", "-"))
        for model, feeds in models.items():
            rows += device_wins(model, feeds, gateway)
        rows += gateway_wins(gateway)
    worst = {end: max(row[1] for row in rows if row[0].endswith(end)) for end in ("device wins", "gateway wins")}
    return publish(
        Record(
            name="race_overhead",
            claim="What a race costs the side that wins it",
            method=f"Every request raced; {N_BLOCKS} alternating blocks of {N_RUNS} runs, one engine thread, medians."
            f" A losing gateway is behind {LOSING_BPS / 1e3:g} kbit/s; a losing device is paced {SLOW_DEVICE:g}-fold,"
            f" the link to the winner takes {2e3 * DELAY_S:g} ms there and back. Processor milliseconds are this"
            " process's, all threads.",
            seed=seed,
            columns=("request", "ratio", "median (ms)", "processor (ms)"),
            rows=rows,
            bars=(
                Bar(name="raced against alone, the device wins", measured=worst["device wins"], limit=1.05),
                Bar(name="raced against offloaded, the gateway wins", measured=worst["gateway wins"], limit=1.05),
            ),
        )
    )


if __name__ == "__main__":
    sys.exit(main())
