"""What a race costs the side that wins it: the device's run beside an attempt that loses, the gateway's beside a run.

Every request is raced, whatever the scheduler would choose, so that nothing but the race is measured. A gateway that
loses is behind a link of some kbit/s (a process of its own); one that wins answers a device that is paced. Neither side
computes while the other is measured: gateway and device share one machine here, and would slow each other down. Rounds
in one process; medians of the ratios within a round.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import numpy as np
import onnxruntime
from PIL import Image

import hybrid
from benchmarks.report import Bar, Record, publish
from devices import pace
from hybrid.route.route import Route
from hybrid.schedule.prospect import Constraints
from hybrid.session.planning import Plan
from hybrid.session.trip import Trip
from tests import zoo
from tests.live_gateway import LiveGateway

N_ROUNDS = 60
N_RUNS = 4
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
Row = tuple[str, float, float, float]
"""What ran, its ratio, milliseconds by the clock, and of the processors."""


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

    remote._planner.plan = plan  # type: ignore[method-assign]  # noqa: SLF001


def block_s(run: Run, feeds: dict[str, np.ndarray]) -> tuple[float, float]:
    """Seconds a run over one block: by the clock, and of this process's processors."""
    started_s, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(N_RUNS):
        run(None, feeds)
    return (time.perf_counter() - started_s) / N_RUNS, (time.process_time() - cpu_s) / N_RUNS


def samples_of(runs: dict[str, Run], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Seconds of each way to run, by the clock and of the processors; each round begins with another way."""
    names = list(runs)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for run in runs.values():
        block_s(run, feeds)
    for at in range(N_ROUNDS):
        first = at % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(block_s(runs[name], feeds))
    return {name: np.array(taken) for name, taken in samples.items()}


def opened(model: str, gateway: LiveGateway, port: int, feeds: dict[str, np.ndarray]) -> hybrid.InferenceSession:
    """A session with a verified way through that port."""
    session = hybrid.InferenceSession(
        zoo.path(model), one_thread(), gateway=f"http://127.0.0.1:{port}", token=gateway.token
    )
    if not session.prepare(feeds):
        sys.exit(f"the gateway is not usable: {session.explain()}")
    return session


def device_wins(model: str, feeds: dict[str, np.ndarray], gateway: LiveGateway) -> list[Row]:
    """Rows of a race that the link loses: ratio to the device alone, milliseconds, and the processor's."""
    alone = onnxruntime.InferenceSession(zoo.path(model), one_thread())
    with (
        Link(gateway.port) as link,
        opened(model, gateway, link.port, feeds) as raced,
        opened(model, gateway, gateway.port, feeds) as planned,
    ):
        always(raced, feeds, 0.0)
        link.set(LOSING_BPS)
        found = samples_of({"onnxruntime": alone.run, "planned": planned.run, "raced": raced.run}, feeds)
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


def gateway_wins(gateway: LiveGateway) -> list[Row]:
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
            found = samples_of({"offload": waiting.run, "raced": raced.run}, feeds)
            assert raced.report is not None
            assert raced.report.placement == "offload"
    finally:
        pace.set_factor(1.0)
    named = {"offload": "ppocr_cls: offloaded, nothing beside it", "raced": "ppocr_cls: raced, the gateway wins"}
    return rows_of(found, named)


def rows_of(found: dict[str, np.ndarray], named: dict[str, str]) -> list[Row]:
    """Rows of a table; ratios to the first one, round by round."""
    base = next(iter(found.values()))
    rows = []
    for name, taken in found.items():
        ratio, clock_s, cpu_s = np.median(taken[:, 0] / base[:, 0]), np.median(taken[:, 0]), np.median(taken[:, 1])
        rows.append((named[name], float(ratio), 1e3 * float(clock_s), 1e3 * float(cpu_s)))
    return rows


def main() -> int:
    """Measures two models of about 20 ms and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=5)
    seed = parser.parse_args().seed
    rng = np.random.default_rng(seed)
    words = {"input_ids": rng.integers(5, 9000, (4, 64)), "attention_mask": np.ones((4, 64), np.int64)}
    pixels = np.asarray(Image.open(zoo.photo("text.png")).convert("RGB").resize((320, 320)), np.float32) / 127.5 - 1
    models = {"ppocr_det": {"x": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])}, "minilm": words}
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
            method=f"Every request raced; {N_ROUNDS} rounds of {N_RUNS} runs each way, one engine thread; medians,"
            " ratios within the rounds."
            f" A losing gateway is behind {LOSING_BPS / 1e3:g} kbit/s; a losing device is paced {SLOW_DEVICE:g}-fold,"
            f" the link to the winner takes {2e3 * DELAY_S:g} ms there and back. Processor milliseconds are this"
            " process's, all threads. The machine's two processors are siblings of one core: what the second one does"
            " slows the first, as a core of its own would not. `a session that chooses` races a gateway that computes"
            " on this very machine.",
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
