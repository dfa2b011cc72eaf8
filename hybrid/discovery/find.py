"""Gateways on this network that proved who they are: one search a process and identity, shared by all who ask.

Design: a search belongs to the process that began it. After a fork the child owns none of its parent's threads and must
not touch its event loop, which shares the parent's epoll descriptor: it sets the old search aside and begins anew.
"""

import os
from collections.abc import Callable
from threading import Lock
from typing import Final

from hybrid.discovery.ledger import FoundGateway
from hybrid.discovery.multicast import POLL_S
from hybrid.discovery.search import Search
from hybrid.errors import HybridError
from hybrid.transport.token import Token

_Key = tuple[str | None, str | None, tuple[str, ...] | None]

_lock = Lock()
_searches: dict[_Key, Search] = {}
_left_by_parent: Final[list[Search]] = []


class Finding:
    """One caller's view of a search. Safe between threads; after a fork, `ensure` begins anew in the child."""

    def __init__(
        self,
        key: _Key,
        on_found: Callable[[str, str], None],
        on_lost: Callable[[str], None],
        poll_s: float,
    ) -> None:
        """Made by `find_gateways`."""
        self._key = key
        self._on_found = on_found
        self._on_lost = on_lost
        self._poll_s = poll_s
        self._search: Search | None = None
        self._pid = 0
        self._closed = False
        self.ensure()

    @property
    def gateways(self) -> tuple[FoundGateway, ...]:
        """Those that may be used now, nearest first."""
        search = self._search
        return search.gateways if search is not None and self._pid == os.getpid() else ()

    @property
    def why_none(self) -> str:
        """Why there is no gateway; "" if there is one."""
        if self._search is None:
            return "no token and no pin: without one no gateway can prove itself, so none is looked for"
        if self.gateways:
            return ""
        reasons = self._search.reasons
        return "; ".join(reasons) if reasons else "no gateway with TLS announces itself on this network"

    def ensure(self) -> None:
        """Begin, or begin anew in a forked child; otherwise does nothing and costs a microsecond."""
        token, pin_sha256, interfaces = self._key
        if self._closed or (token is None and pin_sha256 is None) or self._pid == os.getpid():
            return
        with _lock:
            self._pid = os.getpid()
            search = _searches.get(self._key)
            if search is None or not search.is_alive:
                search = Search(token=token, pin_sha256=pin_sha256, interfaces=interfaces, poll_s=self._poll_s)
                search.start()
                _searches[self._key] = search
            self._search = search
            search.add(self)

    def recheck(self, url: str) -> None:
        """Ask a gateway again, as after a connection that met another certificate than the pinned one."""
        if self._search is not None and self._pid == os.getpid():
            self._search.recheck(url)

    def close(self) -> None:
        """Stop looking; the search ends with its last caller."""
        search, ours = self._search, not self._closed and self._pid == os.getpid()
        self._closed = True
        if search is None or not ours:
            return
        with _lock:
            is_last = not search.remove(self)
            if is_last:
                _searches.pop(self._key, None)
        if is_last:
            search.close()
        else:
            search.wait_silent()

    def found(self, gateway: FoundGateway) -> None:
        """A gateway joined (called by the search)."""
        if self._closed:
            return
        self._on_found(gateway.url, gateway.certificate_sha256)

    def lost(self, gateway: FoundGateway) -> None:
        """A gateway left (called by the search)."""
        if self._closed:
            return
        self._on_lost(gateway.url)


def find_gateways(
    token: str | None,
    *,
    on_found: Callable[[str, str], None],
    on_lost: Callable[[str], None],
    pin_sha256: str | None = None,
    interfaces: tuple[str, ...] | None = None,
    poll_s: float = POLL_S,
) -> Finding:
    """Look for gateways from now on, through changes of network, until the finding is closed.

    Finding none is no error. Neither the token nor anything but its public part leaves this machine in the search.

    Args:
        token: what a gateway must prove to hold.
        on_found: called with the URL and the pin (SHA-256 of the certificate, hex) of each gateway that proved itself;
            in the search's thread, so it must return soon.
        on_lost: called with the URL of a gateway that is not to be used any more, or changed its certificate.
        pin_sha256: the one certificate that is accepted, in place of a proof.
        interfaces: look only on the interfaces with these addresses; None: on all.
        poll_s: seconds between two looks at the machine's addresses.

    Raises:
        Unauthenticated: `token` is no token.
        HybridError: `pin_sha256` is no SHA-256 in hex.
    """
    if token is not None:
        Token.parse(token)
    if pin_sha256 is not None:
        pin_sha256 = pin_sha256.replace(":", "").lower()
        if len(pin_sha256) != 64 or set(pin_sha256) - set("0123456789abcdef"):
            raise HybridError("the pin must be the SHA-256 of the gateway's certificate: 64 hex digits")
    return Finding((token, pin_sha256, interfaces), on_found, on_lost, poll_s)


def _begin_anew() -> None:
    """In a forked child: set aside, without ending, what belongs to the parent."""
    global _lock
    _lock = Lock()
    _left_by_parent.extend(_searches.values())
    _searches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
