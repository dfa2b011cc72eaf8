"""Twenty faults at random moments: whatever dies in mid-request, answers are right and in time, the gateway is back."""

import random
import signal
import statistics
import threading
import time

import numpy as np

import hybrid
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session.test_placements import assert_same, whole

N_FAULTS = 20
HARMS = ("killed", "frozen", "cut", "frozen", "cut")
"""A gateway that was killed takes a second or two to start again."""

BACK_LIMIT_S = 20.0
"""A busy machine takes its time; what is promised is measured in `benchmarks/faults.py`."""

BLACKHOLE = Shape(up=Direction(open=False), down=Direction(open=False))


def test_twenty_faults_at_random_moments(own_gateway: LiveGateway) -> None:
    """A race on a slow device: whatever dies in mid-request, answers are right and in time, and the gateway is back.

    How late is a matter for `benchmarks/faults.py` on a quiet machine; here, in units of the device's own run, measured
    beside, nothing may have waited for a connection to be given up.
    """
    rng = random.Random(20)
    feeds = {"x": rng_array(20, 8)}
    pace.set_factor(10.0)
    try:
        with ShapedProxy(own_gateway.port, Shape.even(rate_bps=200e6, rtt_s=0.01)) as link:
            options = hybrid.SessionOptions()
            options.intra_op_num_threads = 1
            url = f"http://127.0.0.1:{link.port}"
            session = hybrid.InferenceSession(zoo.path("ppocr_cls"), options, gateway=url, token=own_gateway.token)
            assert session.prepare(feeds)
            alone = hybrid.InferenceSession(zoo.path("ppocr_cls"), options, gateway=None)
            wanted = whole("ppocr_cls", feeds)
            ratios = [_fault(session, alone, link, own_gateway, rng, number, wanted) for number in range(N_FAULTS)]
            session.close()
    finally:
        pace.set_factor(1.0)
    assert statistics.median(ratios) < 2.0, ratios
    assert sorted(ratios)[-3] < 6.0, ratios  # who waited out the 0.5 s of silence of a stall would be at 10


def rng_array(seed: int, n_rows: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n_rows, 3, 48, 192), np.float32)


def _fault(
    session: hybrid.InferenceSession,
    alone: hybrid.InferenceSession,
    link: ShapedProxy,
    gateway: LiveGateway,
    rng: random.Random,
    number: int,
    wanted: list[np.ndarray],
) -> float:
    """One fault from well to well; the slowest answer meanwhile over the device's own seconds."""
    feeds, taken = {"x": rng_array(20, 8)}, [0.0]

    def request(until_s: float, *, until_remote: bool = False) -> bool:
        """Requests until then, or until the gateway has answered one; whether it has."""
        while time.monotonic() < until_s:
            began_s = time.monotonic()
            assert_same(session.run(None, feeds), wanted)
            taken.append(time.monotonic() - began_s)
            assert session.report is not None
            if until_remote and session.report.placement != "local":
                return True
        return False

    assert request(time.monotonic() + 10, until_remote=True), session.explain()
    local_s = min(_seconds_of(alone, feeds) for _ in range(2))
    harm = HARMS[number % len(HARMS)]
    act = {"killed": gateway.kill, "frozen": lambda: gateway.signal(signal.SIGSTOP), "cut": lambda: link.set(BLACKHOLE)}
    timer = threading.Timer(rng.uniform(0, 0.05), act[harm])
    taken.clear()
    timer.start()
    request(time.monotonic() + rng.uniform(0.05, 0.2))
    timer.join()
    if harm == "killed":
        gateway.start()
    elif harm == "frozen":
        gateway.signal(signal.SIGCONT)
    else:
        link.set(Shape.even(rate_bps=200e6, rtt_s=0.01))
    assert request(time.monotonic() + BACK_LIMIT_S, until_remote=True), (number, harm, session.explain())
    return max(taken) / local_s


def _seconds_of(session: hybrid.InferenceSession, feeds: zoo.Feeds) -> float:
    began_s = time.monotonic()
    session.run(None, feeds)
    return time.monotonic() - began_s
