"""A gateway makes itself known on its network, wherever that moves.

Design: each announcement carries a mark of its gateway in its name, since several machines of one name that boot at the
same moment cannot agree by multicast who has it (zeroconf's probes see neither each other nor a neighbour process).
"""

import asyncio
import hashlib
import logging
import socket
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from hybrid.discovery.candidate import SERVICE_TYPE
from hybrid.discovery.multicast import POLL_S, NetworkFollower
from hybrid.discovery.network import announced

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf

_LOG: Final = logging.getLogger("hybrid.discovery")
_TTL_S: Final = 120
_MAX_NAME_BYTES: Final = 48


class Announcer:
    """Announces one gateway by DNS-SD. Start and close it from the gateway's event loop.

    Attributes:
        name: the name as announced: the wished one and the gateway's mark, `lab [3f9c1a]`.
        announced: set once the announcement is out; cleared while the machine has no network.
    """

    def __init__(
        self,
        *,
        name: str,
        port: int,
        tls: bool,
        properties: Mapping[str, str],
        host: str = "0.0.0.0",
        poll_s: float = POLL_S,
    ) -> None:
        """Prepare to announce.

        Args:
            name: how people know the gateway, such as the machine's host name.
            port: TCP port of the service.
            tls: whether it speaks TLS; devices ignore it if not.
            properties: TXT fields beside `tls`: version, fp, id, path. `id` must be this gateway's own.
            host: the address that the service is bound to.
            poll_s: seconds between two looks at the machine's addresses.
        """
        self._mark = _mark(properties.get("id", ""), port)
        self.name = f"{_label(name)} [{self._mark}]"
        self.announced = threading.Event()
        self._port = port
        self._properties = {**properties, "tls": "1" if tls else "0"}
        self._host = host
        self._info: ServiceInfo | None = None
        self._follower = NetworkFollower(self, poll_s=poll_s)

    async def start(self) -> None:
        """Begin; returns at once, the announcement follows by itself."""
        self._follower.start()

    async def close(self) -> None:
        """Withdraw the announcement; returns when the farewell is out."""
        await asyncio.to_thread(self._follower.close)

    def wanted(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses that are announced: the endpoint belongs on their interfaces."""
        plain = set(announced(self._host, present))
        return tuple(address for address in present if address.partition("%")[0] in plain)

    def opened(self, endpoint: "Zeroconf", present: tuple[str, ...]) -> None:
        """Announce on a new endpoint."""
        info = self._service(announced(self._host, present))
        endpoint.register_service(info, allow_name_change=True)
        self._info = info
        self.name = info.name.removesuffix(f".{SERVICE_TYPE}")
        self.announced.set()
        _LOG.info("discovery.announced name=%r port=%d addresses=%s", self.name, self._port, info.parsed_addresses())

    def closing(self, endpoint: "Zeroconf") -> None:
        """Withdraw the announcement."""
        self.announced.clear()
        if self._info is not None:
            info, self._info = self._info, None
            endpoint.unregister_service(info)

    def _service(self, addresses: list[str]) -> "ServiceInfo":
        from zeroconf import ServiceInfo

        return ServiceInfo(
            SERVICE_TYPE,
            f"{self.name}.{SERVICE_TYPE}",
            port=self._port,
            properties=dict(self._properties),
            server=f"hybrid-{self._mark}.local.",
            parsed_addresses=addresses,
            host_ttl=_TTL_S,
            other_ttl=_TTL_S,  # not the usual 75 minutes: a gateway that died without farewell shall be forgotten
        )


def _mark(gateway_id: str, port: int) -> str:
    """Six hex digits that stay the same from start to start, and that no namesake on this network has."""
    return hashlib.sha256(f"{gateway_id}|{socket.gethostname()}|{port}".encode()).hexdigest()[:6]


def _label(name: str) -> str:
    """A name that fits one DNS label with room for the mark; never empty."""
    printable = "".join(character for character in name if character.isprintable()).replace(".", " ").strip()
    return printable.encode()[:_MAX_NAME_BYTES].decode(errors="ignore").strip() or "hybrid gateway"
