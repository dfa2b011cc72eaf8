"""Three hosts in a row, each a network namespace: a device, a box on its LAN, and a cloud behind the box.

Design: real interfaces and real routing (veth pairs; the box forwards), for what is tried here is who reaches whom and
who goes on when one is gone. Links of a given rate and delay are the business of `tun_link` and `shaped_proxy`.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from devices.errors import EmulationError, EmulationUnavailable

_NET: Final = "10.213"


class Host:
    """One of the hosts; where programs may be started.

    Attributes:
        address: of the interface that its neighbours know.
        environment: variables that its programs get beside those of this process: none.
    """

    def __init__(self, namespace: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self.environment: Mapping[str, str] = {}

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` on this host."""
        return ["ip", "netns", "exec", self.namespace, *argv]

    def run(self, argv: Sequence[str], *, timeout_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        """Runs a program on this host to its end."""
        return subprocess.run(self.command(argv), capture_output=True, text=True, timeout=timeout_s, check=False)


class ThreeHosts:
    """A context manager: device -- box -- cloud. The device reaches the cloud through the box's kernel.

    Attributes:
        device, box, cloud: the hosts. The box listens for devices on its `address`; the cloud knows it by another.
    """

    def __init__(self) -> None:
        mark = f"h{os.getpid() % 100000}"
        lan, wan = f"{_NET}.1", f"{_NET}.2"
        self.device = Host(f"{mark}d", f"{lan}.1")
        self.box = Host(f"{mark}b", f"{lan}.2")
        self.cloud = Host(f"{mark}c", f"{wan}.2")
        self._box_wan = f"{wan}.1"

    def __enter__(self) -> Self:
        """Make them.

        Raises:
            EmulationUnavailable: no rights to, or no `ip` command.
        """
        device, box, cloud = (host.namespace for host in (self.device, self.box, self.cloud))
        try:
            for name in (device, box, cloud):
                _ip("netns", "add", name)
                _ip("-n", name, "link", "set", "lo", "up")
            self._join(self.device, self.device.address, self.box, self.box.address)
            self._join(self.box, self._box_wan, self.cloud, self.cloud.address)
            _ip("-n", device, "route", "add", "default", "via", self.box.address)
            _ip("-n", cloud, "route", "add", "default", "via", self._box_wan)
            done = self.box.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
            if done.returncode:
                raise EmulationUnavailable(f"the box may not forward packets: {done.stderr.strip()}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def pace(self, rate_bps: float) -> None:
        """Let the link between box and cloud carry so many bits a second each way."""
        rate, burst_bytes = f"{round(rate_bps)}bit", max(4000, round(rate_bps / 8 * 0.01))
        for host, name in ((self.box, f"{self.box.namespace}1"), (self.cloud, f"{self.cloud.namespace}0")):
            words = ["tc", "qdisc", "replace", "dev", name, "root", "tbf", "rate", rate]
            done = host.run([*words, "burst", str(burst_bytes), "latency", "300ms"])
            if done.returncode:
                raise EmulationUnavailable(f"this kernel does not pace {name}: {done.stderr.strip()}")

    def cut(self, *, up: bool) -> None:
        """Cut the box from the cloud, or join them again."""
        _ip("-n", self.box.namespace, "link", "set", f"{self.box.namespace}1", "up" if up else "down")
        if up:
            with suppress(EmulationError):  # the route went with the link
                _ip("-n", self.cloud.namespace, "route", "add", "default", "via", self._box_wan)

    def close(self) -> None:
        """Take the hosts away; whoever still runs there loses its network."""
        for host in (self.device, self.box, self.cloud):
            with suppress(EmulationError, EmulationUnavailable):
                _ip("netns", "del", host.namespace)

    def _join(self, one: Host, one_address: str, other: Host, other_address: str) -> None:
        near, far = f"{one.namespace}1", f"{other.namespace}0"
        _ip("link", "add", near, "netns", one.namespace, "type", "veth", "peer", "name", far, "netns", other.namespace)
        for host, name, address in ((one, near, one_address), (other, far, other_address)):
            _ip("-n", host.namespace, "addr", "add", f"{address}/24", "dev", name)
            _ip("-n", host.namespace, "link", "set", name, "up")


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    except OSError as exc:
        raise EmulationUnavailable(f"the command ip is not here: {exc}; install iproute2") from exc
    if done.returncode:
        kind = EmulationUnavailable if "permitted" in done.stderr else EmulationError
        raise kind(f"ip {' '.join(words)}: {done.stderr.strip()}")
