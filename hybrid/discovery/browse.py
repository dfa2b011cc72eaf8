"""A device listens for gateways on its network, wherever it moves."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Final

from hybrid.discovery.candidate import SERVICE_TYPE, Candidate, CandidateBook, candidate_of
from hybrid.discovery.multicast import POLL_S, NetworkFollower

if TYPE_CHECKING:
    from zeroconf import ServiceBrowser, ServiceInfo, ServiceStateChange, Zeroconf

_LOG: Final = logging.getLogger("hybrid.discovery")
_RESOLVE_MS: Final = 3000
_MAX_RESOLVING: Final = 32


class Browser:
    """Collects candidates in threads of its own. They are hearsay: only `find` says which ones may be used."""

    def __init__(
        self,
        on_change: Callable[[], None] | None = None,
        *,
        interfaces: tuple[str, ...] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Prepare to listen.

        Args:
            on_change: called from another thread whenever the candidates changed; must return soon and not raise.
            interfaces: listen only on the interfaces with these addresses; None: on all.
            poll_s: seconds between two looks at the machine's addresses.
        """
        self._on_change = on_change or (lambda: None)
        self._interfaces = interfaces
        self._lock = threading.Lock()
        self._book = CandidateBook()
        self._listener: ServiceBrowser | None = None
        self._resolving: set[Future[bool]] = set()
        self._follower = NetworkFollower(self, poll_s=poll_s)

    def start(self) -> None:
        """Begin; returns at once."""
        self._follower.start()

    def close(self) -> None:
        """Stop listening and end the threads."""
        self._follower.close()

    def candidates(self) -> tuple[Candidate, ...]:
        """What is announced at the moment."""
        with self._lock:
            return self._book.candidates(time.monotonic())

    def wanted(self, present: tuple[str, ...]) -> tuple[str, ...]:
        """Every address, or those chosen."""
        return present if self._interfaces is None else tuple(a for a in present if a in self._interfaces)

    def opened(self, endpoint: "Zeroconf", present: tuple[str, ...]) -> None:  # noqa: ARG002 (the tenant's form)
        """Listen on a new endpoint; what was heard on the old network counts no more."""
        from zeroconf import ServiceBrowser

        with self._lock:
            self._book.clear()
        self._on_change()
        self._listener = ServiceBrowser(endpoint, SERVICE_TYPE, handlers=[self._heard])

    def closing(self, endpoint: "Zeroconf") -> None:  # noqa: ARG002 (the tenant's form)
        """Stop listening on an endpoint."""
        for pending in list(self._resolving):
            pending.cancel()
        if self._listener is not None:
            listener, self._listener = self._listener, None
            listener.cancel()

    def _heard(self, zeroconf: "Zeroconf", service_type: str, name: str, state_change: "ServiceStateChange") -> None:
        """One change of one service; runs in zeroconf's thread, where waiting would hold up all others."""
        from zeroconf import ServiceInfo, ServiceStateChange

        if state_change is ServiceStateChange.Removed:
            with self._lock:
                changed = self._book.gone(name)
            if changed:
                _LOG.info("discovery.withdrawn name=%r", name)
                self._on_change()
            return
        info = ServiceInfo(service_type, name)
        if info.load_from_cache(zeroconf):
            self._note(info)
        elif zeroconf.loop is not None and len(self._resolving) < _MAX_RESOLVING:
            pending = asyncio.run_coroutine_threadsafe(info.async_request(zeroconf, _RESOLVE_MS), zeroconf.loop)
            self._resolving.add(pending)
            pending.add_done_callback(lambda done: self._resolved(info, done))

    def _resolved(self, info: "ServiceInfo", done: Future[bool]) -> None:
        self._resolving.discard(done)
        if not done.cancelled() and done.exception() is None and done.result():
            self._note(info)

    def _note(self, info: "ServiceInfo") -> None:
        candidate = candidate_of(info.name, info.port, info.parsed_scoped_addresses(), info.properties)
        if candidate is None:
            return
        with self._lock:
            changed = self._book.seen(info.name, candidate, time.monotonic())
        if changed:
            _LOG.info("discovery.heard name=%r port=%d tls=%s", candidate.name, candidate.port, candidate.tls)
            self._on_change()
