"""The process that is the emulated link: it makes two network namespaces and carries packets between their TUN devices.

It needs nothing but the standard library and is started by `devices.lab.tun_link` as a program of its own, so that
neither the program that measures nor its interpreter lock gets in the way of a packet. It speaks JSON lines over one
socket: a request, a reply. When that socket ends, or its parent, it kills what still runs in its namespaces and exits;
the kernel then takes namespaces and devices away, since nothing else holds them.
"""

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from devices.lab import kernel
from devices.lab.lane import Lane
from devices.shape import Direction, Shape

INTERFACE: Final = "lab0"
MTU_BYTES: Final = 1500
ADDRESSES: Final = {"gateway": ("10.77.0.1", "fd77::1"), "device": ("10.77.0.2", "fd77::2")}
"""Of either end, IPv4 and IPv6. Every lab has the same ones: nobody sees another lab's namespaces."""
_NETWORKS: Final = ((socket.AF_INET, "10.77.0.0", 24), (socket.AF_INET6, "fd77::", 64))
_TUN_QUEUE_PACKETS: Final = 2000
_BATCH_PACKETS: Final = 64
_LONGEST_SLEEP_S: Final = 0.5
_EVICTION_S, _DYING_S = 10.0, 0.005
"""How long programs that must end are looked for, and how long such a one takes."""
_GRAINS_PER_RTT: Final = 40
_FINEST_GRAIN_S, _COARSEST_GRAIN_S = 0.0001, 0.001
"""While packets flow, the relay looks once a grain instead of waking for each: a third of the work."""

Json = dict[str, Any]


class Relay:
    """Two lanes between two TUN files, and who asks for what."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._parent = os.getppid()
        self._unread = b""
        self._steps: list[Json] = []
        self._played = 0
        self._play_from_s = self._loop_s = 0.0
        self._over = False

    def build(self, settings: Json) -> Json:
        """Makes namespaces and devices; what the parent must know to enter them.

        Raises:
            OSError: this machine does not allow it; the text says at which step.
        """
        user = self._gain_rights()
        self._tuns: dict[str, int] = {}
        self._namespaces: dict[str, int] = {}
        control, ipv6 = settings["congestion_control"], True
        for side in ("gateway", "device"):
            kernel.unshare(kernel.CLONE_NEWNET)
            self._namespaces[side] = os.open("/proc/self/ns/net", os.O_RDONLY)
            kernel.bring_up("lo")
            self._tuns[side] = kernel.tun(INTERFACE)
            address, address6 = ADDRESSES[side]
            kernel.bring_up(INTERFACE, address=address, mtu_bytes=MTU_BYTES, queue_packets=_TUN_QUEUE_PACKETS)
            ipv6 = ipv6 and self._can_ipv6(address6)
            for family, network, bits in _NETWORKS[: 1 + ipv6]:
                kernel.add_route(family, network, bits, INTERFACE, control)
        self._own = {os.fstat(file).st_ino for file in self._namespaces.values()}
        self._up, self._down = Lane(settings["seed"]), Lane(settings["seed"] + 1_000_003)
        self._ways = (
            (self._tuns["device"], self._tuns["gateway"], self._up),
            (self._tuns["gateway"], self._tuns["device"], self._down),
        )
        self._began_s, self._began_cpu_s = time.monotonic(), time.process_time()
        self._set(settings["shape"], self._began_s)
        return {
            "pid": os.getpid(),
            "namespaces": self._namespaces,
            "user": user,
            "ipv6": ipv6,
            "congestion_control": control or kernel.default_congestion_control(),
            "scheduling": be_on_time(),
        }

    @staticmethod
    def _gain_rights() -> int | None:
        """A user namespace of its own where that is needed; its open file."""
        if os.geteuid() == 0:
            return None
        kernel.own_user_namespace()
        return os.open("/proc/self/ns/user", os.O_RDONLY)

    @staticmethod
    def _can_ipv6(address: str) -> bool:
        try:
            kernel.add_ipv6(INTERFACE, address)
        except OSError:
            return False
        return True

    def _set(self, shape: Json, now_s: float) -> None:
        up, down = Direction(**shape["up"]), Direction(**shape["down"])
        whole = Shape(up=up, down=down)
        self._up.set(up, whole.queue_bytes(up), now_s)
        self._down.set(down, whole.queue_bytes(down), now_s)
        self._grain_s = min(_COARSEST_GRAIN_S, max(_FINEST_GRAIN_S, whole.rtt_s / _GRAINS_PER_RTT))

    def run(self) -> None:
        """Carries packets until told to stop."""
        clock, ways, control = time.monotonic, self._ways, self._control.fileno()
        files = [control, *self._tuns.values()]
        while not self._over:
            now_s = clock()
            for _, sink, lane in ways:
                for packet in lane.arrived(now_s):
                    # a full or vanished interface loses the packet, as hardware would
                    with contextlib.suppress(OSError):
                        os.write(sink, packet)
            if self._steps:
                self._play(now_s)
            next_s = min(self._up.next_s(), self._down.next_s(), self._next_step_s())
            ready = select.select(files, [], [], min(_LONGEST_SLEEP_S, max(0.0, next_s - clock())))[0]
            if control in ready:
                self._answer()
            n_taken = 0
            for source, _, lane in ways:
                if source in ready:
                    n_taken += _drain(source, lane, clock)
            if not ready and os.getppid() != self._parent:
                return
            if n_taken > 1:
                time.sleep(self._grain_s)
                for source, _, lane in ways:
                    _drain(source, lane, clock)

    def _play(self, now_s: float) -> None:
        while self._steps and now_s >= self._next_step_s():
            self._set(self._steps[self._played], now_s)
            self._played += 1
            if self._played == len(self._steps):
                if not self._loop_s:
                    self._steps = []
                self._played, self._play_from_s = 0, self._play_from_s + self._loop_s

    def _next_step_s(self) -> float:
        if not self._steps:
            return float("inf")
        return self._play_from_s + float(self._steps[self._played]["at_s"])

    def _answer(self) -> None:
        """Answers the requests that have come; the end of the socket is the end of the link."""
        data = self._control.recv(1 << 20)
        if not data:
            self._over = True
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            try:
                answer = {"ok": True, **self._do(json.loads(line))}
            except Exception as error:  # noqa: BLE001 - the link must outlive a bad request
                answer = {"ok": False, "error": f"{type(error).__name__}: {error}"}
            self._control.sendall(json.dumps(answer).encode() + b"\n")

    def _do(self, request: Json) -> Json:
        now_s = time.monotonic()
        match request["do"]:
            case "set":
                self._steps = []
                self._set(request["shape"], now_s)
            case "blackhole":
                self._up.close(request["up"])
                self._down.close(request["down"])
            case "play":
                self._steps, self._played = request["steps"], 0
                self._play_from_s, self._loop_s = now_s, request["loop_s"]
                self._play(now_s)
            case "statistics":
                return {
                    "up": asdict(self._up.passage()),
                    "down": asdict(self._down.passage()),
                    "elapsed_s": now_s - self._began_s,
                    "cpu_s": time.process_time() - self._began_cpu_s,
                    "playing": bool(self._steps),
                }
            case unknown:
                raise ValueError(f"nothing is called {unknown!r}")
        return {}

    def kill_inhabitants(self) -> None:
        """Ends what still runs in the two namespaces: their network is gone.

        The doors are closed first: a launcher that was under way looks whether they are still open once it is inside
        (`devices.lab.enter`). Then it is looked again until nobody is found, since programs start others meanwhile.
        """
        for file in self._namespaces.values():
            os.close(file)
        end_s = time.monotonic() + _EVICTION_S
        while (found := self._inhabitants()) and time.monotonic() < end_s:
            for pid in found:
                with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_DYING_S)

    def _inhabitants(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) not in {os.getpid(), self._parent}:
                with contextlib.suppress(OSError):  # gone meanwhile, or not to be looked into
                    if (entry / "ns" / "net").stat().st_ino in self._own:
                        found.append(int(entry.name))
        return found


def _drain(source: int, lane: Lane, clock: Callable[[], float]) -> int:
    """Takes what waits at one end, up to a batch; how many packets that was."""
    now_s = clock()
    for n_taken in range(_BATCH_PACKETS):
        try:
            packet = os.read(source, 65536)
        except BlockingIOError:
            return n_taken
        except OSError:
            return n_taken  # the interface was switched off from inside
        lane.take(packet, now_s)
    return _BATCH_PACKETS


def be_on_time() -> str:
    """The best scheduling that this process may have; its name."""
    kernel.wake_precisely()
    gc.disable()  # nothing here makes circles, and a collection would hold packets up
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        return "real time"
    with contextlib.suppress(OSError):
        os.nice(-10)
        return "preferred"
    return "ordinary"


def main(control_file: int) -> None:
    """Serves one link over an inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the link ends when its lab does, not before it
    kernel.call_myself("hybrid-link")
    with socket.socket(fileno=control_file) as control:
        relay = Relay(control)
        with control.makefile("rb") as lines:
            settings = json.loads(lines.readline())
        try:
            told = {"ok": True, **relay.build(settings)}
        except OSError as error:
            control.sendall(json.dumps({"ok": False, "error": str(error)}).encode() + b"\n")
            return
        control.sendall(json.dumps(told).encode() + b"\n")
        try:
            relay.run()
        finally:
            relay.kill_inhabitants()


if __name__ == "__main__":
    main(int(sys.argv[1]))
