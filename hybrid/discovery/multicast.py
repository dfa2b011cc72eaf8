"""One multicast DNS endpoint that follows the machine from network to network.

Design: python-zeroconf binds to the interfaces it finds when it starts. A thread looks at the machine's addresses every
few seconds and, when they changed, closes the old endpoint and opens a new one.
"""

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from hybrid.discovery.network import listening, present_addresses

if TYPE_CHECKING:
    from zeroconf import Zeroconf

POLL_S: Final = 3.0
_CLOSE_S: Final = 6.0
_LOG: Final = logging.getLogger("hybrid.discovery")


class Tenant(Protocol):
    """Who uses the endpoint. All three are called in the follower's thread."""

    def wanted(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """The addresses of those present on whose interfaces the endpoint shall be."""
        ...

    def opened(self, endpoint: "Zeroconf", present: tuple[str, ...]) -> None:
        """Begin to use a new endpoint."""
        ...

    def closing(self, endpoint: "Zeroconf") -> None:
        """Stop using an endpoint that is about to be closed."""
        ...


class NetworkFollower:
    """Keeps an endpoint open for its tenant, in a thread of its own, until `close`."""

    def __init__(
        self, tenant: Tenant, *, poll_s: float = POLL_S, look: Callable[[], tuple[str, ...]] | None = None
    ) -> None:
        """Follow the machine's addresses; `look` is where they come from."""
        self._tenant = tenant
        self._poll_s = poll_s
        self._look = look or present_addresses
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hybrid-mdns", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Say farewell to the network and end the thread; takes up to a few seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        endpoint: Zeroconf | None = None
        current: tuple[str, ...] | None = None
        try:
            while not self._stop.is_set():
                present = self._present()
                wanted = current if present is None else self._tenant.wanted(present)
                if present is not None and wanted is not None and wanted != current:
                    if endpoint is not None:
                        self._leave(endpoint)
                    endpoint = self._join(wanted, present)
                    current = wanted if endpoint is not None else None
                self._stop.wait(self._poll_s)
        finally:
            if endpoint is not None:
                self._leave(endpoint)

    def _present(self) -> tuple[str, ...] | None:
        """The machine's addresses; None while they cannot be told, as when an interface leaves at this very moment."""
        try:
            return self._look()
        except OSError as exc:
            _LOG.debug("discovery.addresses_unknown error=%r", exc)
            return None

    def _join(self, wanted: tuple[str, ...], present: tuple[str, ...]) -> "Zeroconf | None":
        """Open an endpoint, with IPv6 where that can be had; None while there is nothing to open it on."""
        everything = listening(wanted)
        without_ipv6: list[str | int] = [entry for entry in everything if isinstance(entry, str)]
        for interfaces in (everything, without_ipv6):
            if not interfaces:
                continue
            endpoint = self._open(interfaces)
            if endpoint is None:
                continue
            _LOG.debug("discovery.joined interfaces=%s", interfaces)
            try:
                self._tenant.opened(endpoint, present)
            except Exception as exc:  # noqa: BLE001 (whatever zeroconf raises: wait for the network to settle)
                _LOG.warning("discovery.network_refused error=%r", exc)
                self._leave(endpoint)
                return None
            return endpoint
        return None

    def _open(self, interfaces: list[str | int]) -> "Zeroconf | None":
        from zeroconf import Zeroconf

        try:
            return Zeroconf(interfaces=interfaces)
        except (OSError, RuntimeError) as exc:  # an interface that left between the look and the opening
            _LOG.debug("discovery.not_joined interfaces=%s error=%r", interfaces, exc)
            return None

    def _leave(self, endpoint: "Zeroconf") -> None:
        try:
            self._tenant.closing(endpoint)
        except Exception as exc:  # noqa: BLE001 (the network may be gone already; the endpoint goes either way)
            _LOG.debug("discovery.farewell_failed error=%r", exc)
        try:
            endpoint.close()
        except Exception as exc:  # noqa: BLE001 (as above)
            _LOG.debug("discovery.not_closed error=%r", exc)
