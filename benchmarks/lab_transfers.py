"""Holds the simulation's link model against real TCP in the lab: requests of three sizes, back to back and after rests.

python benchmarks/lab_transfers.py [LINK …] [--quick]     # needs real packets (TUN)
"""

import argparse
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.report import Bar, Record, publish  # noqa: E402
from devices.catalog import load  # noqa: E402
from devices.lab.lab import Lab  # noqa: E402
from devices.trace import Trace  # noqa: E402
from hybrid.simulation.link import Congestion, Link, LinkModel  # noqa: E402
from hybrid.simulation.luck import draw  # noqa: E402

LINKS = ("wifi-good", "lte", "5g", "lte-poor")
CONTROLS: tuple[Congestion, ...] = ("bbr", "cubic")
SIZES, REPLY_BYTES = (4_000, 31_444, 79_000), 4_000
PERIODS_S = (0.1, 0.6)
WITHIN = 0.15
SERVER = """
import socket, struct, sys
listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listening.bind((sys.argv[1], 9000))
listening.listen()
while True:
    peer, _ = listening.accept()
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while head := peer.recv(8, socket.MSG_WAITALL):
        up, down = struct.unpack("<II", head)
        while up:
            up -= len(peer.recv(min(up, 65536)))
        peer.sendall(bytes(down))
"""


def live(lab: Lab, n_bytes: int, period_s: float, n_requests: int) -> list[float]:
    """Seconds of each request over one real connection."""
    seconds = []
    with lab.device.connect(lab.endpoint(9000)) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        started_s = time.perf_counter()
        for number in range(n_requests):
            time.sleep(max(0.0, started_s + number * period_s - time.perf_counter()))
            before_s = time.perf_counter()
            peer.sendall(struct.pack("<II", n_bytes, REPLY_BYTES) + bytes(n_bytes))
            left = REPLY_BYTES
            while left:
                left -= len(peer.recv(left))
            seconds.append(time.perf_counter() - before_s)
    return seconds


def simulated(name: str, control: Congestion, n_bytes: int, period_s: float, n_requests: int = 400) -> list[float]:
    """The same by the model."""
    known = load.link_class(name)
    link = Link(LinkModel(trace=Trace.steady(known), jitter_s=known.jitter_s, congestion=control))
    luck = draw(np.random.default_rng(0), 0.0, 0.0)
    seconds, now_s = [], 0.0
    for number in range(n_requests):
        now_s = began_s = max(now_s, number * period_s)
        ways = (
            (link.up, n_bytes, luck.jitter_up, luck.loss_up),
            (link.down, REPLY_BYTES, luck.jitter_down, luck.loss_down),
        )
        for flow, size, jitter, loss in ways:
            _, end_s = flow.send(now_s, size, known.rtt_s)
            delay_s = max(0.0, 0.5 * known.rtt_s + link.jitter_each_way_s * jitter[number])
            now_s = end_s + delay_s + link.loss_delay_s(end_s, size, loss[number])
        seconds.append(now_s - began_s)
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("links", nargs="*", default=list(LINKS))
    parser.add_argument("--quick", action="store_true", help="one size, one period, ten requests; writes nothing")
    given = parser.parse_args()
    rows: list[tuple[str | float, ...]] = []
    bars: list[Bar] = []
    for name in given.links:
        for control in CONTROLS:
            with Lab(name, kind="tun", congestion_control=control) as lab:
                lab.gateway.popen([sys.executable, "-c", SERVER, lab.gateway.address])
                time.sleep(0.5)
                for n_bytes in SIZES[1:2] if given.quick else SIZES:
                    for period_s in PERIODS_S[:1] if given.quick else PERIODS_S:
                        seconds = live(lab, n_bytes, period_s, 10 if given.quick else 30)
                        seen, told = (
                            float(np.median(seconds)),
                            float(np.median(simulated(name, control, n_bytes, period_s))),
                        )
                        rows.append((name, control, n_bytes, period_s, 1e3 * told, 1e3 * seen, seen / told))
                        what = f"{name}, {control}, {n_bytes} bytes each {period_s:g} s: off by"
                        bars.append(Bar(name=what, measured=abs(seen / told - 1), limit=WITHIN))
    if given.quick:
        print(*rows, sep="\n")
        return 0
    return publish(
        Record(
            name="lab_transfers",
            claim="The simulated link takes as long as real TCP in the lab",
            method="30 requests of each kind over one connection in two namespaces, 4 kB back; medians.",
            seed=0,
            columns=("link", "control", "bytes up", "each s", "model ms", "lab ms", "lab / model"),
            rows=rows,
            bars=bars,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
