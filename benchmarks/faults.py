"""A gateway killed or frozen, or the link cut, at random moments of requests: right answers, in time, and back again.

A device twenty times slower than this machine (paced) runs a model in a row against a real gateway behind a link. At a
random moment of a request the gateway is killed (SIGKILL), frozen (SIGSTOP), or the link is cut (nothing passes any
more). Every answer must be right; none may come later than 1.2 times the device's own seconds after its start; and the
gateway must answer again within three seconds of its return.
"""

import argparse
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
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

HARMS = ("killed", "frozen", "cut")
LINK = Shape(up=Direction(rate_bps=100e6, delay_s=0.005), down=Direction(rate_bps=100e6, delay_s=0.005))
CUT = Shape(up=Direction(open=False), down=Direction(open=False))
SLOWDOWN = 20.0
AWAY_S = (0.3, 1.5)
BACK_LIMIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault and what came of it; ratios are to the device's own seconds at that time."""

    harm: str
    worst_ratio: float
    back_s: float
    n_requests: int
    n_wrong: int


class Scene:
    """A session on a slow device, a gateway, and a link between them."""

    def __init__(self, gateway: LiveGateway, link: ShapedProxy, seed: int) -> None:
        self.rng = random.Random(seed)
        self.gateway = gateway
        self.link = link
        self.feeds = {"x": np.random.default_rng(seed).standard_normal((4, 3, 48, 192), np.float32)}
        options = hybrid.SessionOptions()
        options.intra_op_num_threads = 1
        model, url = zoo.path("ppocr_cls"), f"http://127.0.0.1:{link.port}"
        self.alone = hybrid.InferenceSession(model, options, gateway=None)
        self.wanted = self.alone.run(None, self.feeds)[0]
        self.session = hybrid.InferenceSession(model, options, gateway=url, token=gateway.token)
        if not self.session.prepare(self.feeds):
            sys.exit(f"the gateway is not usable: {self.session.explain()}")

    def local_s(self) -> float:
        """The device's own seconds, now."""
        seconds = []
        for _ in range(3):
            began_s = time.perf_counter()
            self.alone.run(None, self.feeds)
            seconds.append(time.perf_counter() - began_s)
        return statistics.median(seconds)

    def request(self) -> tuple[float, bool, bool]:
        """Seconds of one request, whether its answer is right, whether the gateway gave it."""
        began_s = time.perf_counter()
        found = self.session.run(None, self.feeds)[0]
        took_s = time.perf_counter() - began_s
        report = self.session.report
        is_right = bool(np.abs(found - self.wanted).max() <= 1e-4 * np.abs(self.wanted).max())
        return took_s, is_right, report is not None and report.placement != "local"

    def settle(self, limit_s: float = BACK_LIMIT_S) -> float:
        """Requests until the gateway has answered one; the seconds until then."""
        began_s = time.perf_counter()
        while not self.request()[2]:
            if time.perf_counter() - began_s > limit_s:
                break
        return time.perf_counter() - began_s

    def harm(self, harm: str) -> None:
        """Brings it about."""
        if harm == "killed":
            self.gateway.kill()
        elif harm == "frozen":
            self.gateway.signal(signal.SIGSTOP)
        else:
            self.link.set(CUT)

    def mend(self, harm: str) -> None:
        """Ends it."""
        if harm == "killed":
            self.gateway.start()
        elif harm == "frozen":
            self.gateway.signal(signal.SIGCONT)
        else:
            self.link.set(LINK)

    def fault(self, harm: str) -> Fault:
        """One fault, from well to well."""
        self.settle()
        local_s = self.local_s()
        taken: list[tuple[float, bool, bool]] = []
        wait_s, away_s = self.rng.uniform(0, 2 * local_s), self.rng.uniform(*AWAY_S)
        threading.Timer(wait_s, self.harm, (harm,)).start()
        until_s = time.perf_counter() + wait_s + away_s
        while time.perf_counter() < until_s:
            taken.append(self.request())
        self.mend(harm)
        back_s = self.settle()
        slowest_s = max(took_s for took_s, _, _ in taken)
        n_wrong = sum(not is_right for _, is_right, _ in taken)
        worst_ratio = slowest_s / statistics.median([local_s, self.local_s()])
        return Fault(harm=harm, worst_ratio=worst_ratio, back_s=back_s, n_requests=len(taken), n_wrong=n_wrong)


def faults(n: int, seed: int) -> list[Fault]:
    """So many faults, each kind in its turn."""
    pace.set_factor(SLOWDOWN)
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            LiveGateway(Path(folder) / "gateway", "--no-announce") as gateway,
            ShapedProxy(gateway.port, LINK) as link,
        ):
            gateway.push(zoo.path("ppocr_cls"), "cls")
            scene, found = Scene(gateway, link, seed), []
            for at in range(n):
                found.append(scene.fault(HARMS[at % len(HARMS)]))
                print(f"{at + 1}/{n} {found[-1]}", file=sys.stderr, flush=True)
            scene.session.close()
            return found
    finally:
        pace.set_factor(1.0)


def main() -> int:
    """Runs all faults and publishes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("-n", type=int, default=200)
    chosen = parser.parse_args()
    found = faults(chosen.n, chosen.seed)
    rows: list[tuple[str | float, ...]] = []
    for harm in HARMS:
        those = [fault for fault in found if fault.harm == harm]
        ratios, backs_s = [fault.worst_ratio for fault in those], [fault.back_s for fault in those]
        rows.append(
            (harm, len(those), sum(fault.n_requests for fault in those), sum(fault.n_wrong for fault in those),
             statistics.median(ratios), max(ratios), statistics.median(backs_s), max(backs_s))
        )  # fmt: skip
    n_late = sum(fault.worst_ratio > 1.2 for fault in found)
    return publish(
        Record(
            name="faults",
            claim="A gateway killed or frozen, or the link cut, in mid-request",
            method=(
                f"{chosen.n} faults at random moments of requests in a row; ppocr_cls x4 on a device paced to 1/"
                f"{SLOWDOWN:.0f}, 100 Mbit/s and 10 ms; worst: the slowest request over the device's own seconds."
            ),
            seed=chosen.seed,
            columns=(
                "fault", "times", "requests", "wrong answers", "worst (median)", "worst (max)", "back after (median s)",
                "back after (max s)",
            ),
            rows=rows,
            bars=(
                Bar(name="wrong answers", measured=float(sum(fault.n_wrong for fault in found)), limit=0.0, unit=""),
                Bar(name="faults with an answer later than 1.2 x local", measured=float(n_late), limit=0.0, unit=""),
                Bar(name="back on the gateway", measured=max(fault.back_s for fault in found), limit=3.0, unit=" s"),
            ),
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
