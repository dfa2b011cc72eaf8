"""The gateways that one session may use: named ones, or those that discovery finds and proves."""

import logging
import os
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Protocol

from hybrid.errors import GatewayUnreachable, GatewayUntrusted
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.supervisor import State
from hybrid.transport.token_source import Credential, TokenSource
from hybrid.transport.trust import Trust

log = logging.getLogger("hybrid.session")


class Finder(Protocol):
    """Where gateways come from when none is named (`hybrid.discovery.find`)."""

    def ensure(self) -> None:
        """Begins anew in a forked child."""
        ...

    def recheck(self, url: str) -> None:
        """Asks a gateway again to prove itself."""
        ...

    def close(self) -> None:
        """Stops looking."""
        ...


class Gateways:
    """Clients of the gateways in use, in the order in which they were named or found; safe between threads.

    Args:
        token: the identity that is shown to them, None for none.
    """

    def __init__(self, token: Credential) -> None:
        self._token = token
        self._on_change: Callable[[], None] = _nobody_waits
        self._lock = Lock()
        self._clients: tuple[GatewayClient, ...] = ()
        self._finder: Finder | None = None
        self._is_closed = False

    @property
    def clients(self) -> tuple[GatewayClient, ...]:
        """All clients, connected or not."""
        return self._clients

    @property
    def ready(self) -> tuple[GatewayClient, ...]:
        """The clients that are connected now, nearest first."""
        connected = [client for client in self._clients if client.state == "ready"]
        return tuple(sorted(connected, key=lambda client: client.link.view.rtt_s or 0.0))

    def begin(self, urls: Sequence[str], on_change: Callable[[], None]) -> None:
        """Connects to the named gateways, or looks for some on the network where none is named.

        Without a token (or the pin of a certificate in `HYBRID_PIN`) nothing that is found could prove itself, and so
        there is no search.

        Args:
            urls: named gateways, each with `#sha256=HEX` behind it where its certificate is pinned; empty to discover.
            on_change: called (from any thread) when a gateway joins or leaves, or is connected again.

        Raises:
            GatewayUnreachable: a URL that is none.
        """
        self._on_change = on_change
        try:
            for url in urls:
                address, _, pin = url.partition("#sha256=")
                self._join(address, Trust(pin_sha256=pin or None))
        except GatewayUnreachable:
            self.close()
            raise
        if not urls:
            self._discover()

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent."""
        self._lock = Lock()

    def tend(self) -> None:
        """Looks on in a forked child, and has gateways that showed another certificate prove themselves again."""
        if self._finder is None:
            return
        self._finder.ensure()
        for client in self._clients:
            if client.state == "down" and (client.down_reason or "").startswith(GatewayUntrusted.code):
                self._finder.recheck(client.url)

    def _discover(self) -> None:
        from hybrid.discovery.find import find_gateways

        if isinstance(self._token, TokenSource):
            return  # whoever renews a token knows its gateway: it is named
        self._finder = find_gateways(
            self._token,
            on_found=lambda url, pin_sha256: self._join(url, Trust(pin_sha256=pin_sha256, is_explicit=False)),
            on_lost=self._leave,
            pin_sha256=os.environ.get("HYBRID_PIN") or None,
        )

    def _join(self, url: str, trust: Trust) -> None:
        """Adds a gateway; one that is known already is left alone."""
        with self._lock:
            if self._is_closed or any(client.url == url for client in self._clients):
                return
            client = acquire(url, self._token, trust=trust)
            client.on_change(self._heard)
            self._clients = (*self._clients, client)
        log.info("gateway.joined url=%s", url)
        self._on_change()

    def _leave(self, url: str) -> None:
        """Removes a gateway that discovery no longer sees."""
        with self._lock:
            gone = [client for client in self._clients if client.url == url]
            self._clients = tuple(client for client in self._clients if client.url != url)
        for client in gone:
            self._give_back(client)
        self._on_change()

    def close(self) -> None:
        """Stops looking and gives the clients back."""
        if self._finder is not None:
            self._finder.close()
        with self._lock:
            self._is_closed = True
            clients, self._clients = self._clients, ()
        for client in clients:
            self._give_back(client)

    def _heard(self, state: State) -> None:
        if state == "ready":
            self._on_change()

    def _give_back(self, client: GatewayClient) -> None:
        client.off_change(self._heard)
        release(client)


def _nobody_waits() -> None:
    """Before `begin`, nobody needs to hear of changes."""
