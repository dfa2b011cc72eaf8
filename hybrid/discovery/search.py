"""One search for gateways in this process: listens, asks for proofs, tells its listeners what changed."""

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from hybrid.discovery.browse import Browser
from hybrid.discovery.ledger import FoundGateway, Ledger
from hybrid.discovery.multicast import POLL_S
from hybrid.errors import GatewayUntrusted, HybridError
from hybrid.transport.proof import Proof, meet_pinned, prove

_LOG: Final = logging.getLogger("hybrid.discovery")
_PROOF_TIMEOUT_S: Final = 5.0
_LOOK_S: Final = 5.0
_CLOSE_S: Final = 8.0
_LAST_CALL_S: Final = 2.0


class Listener(Protocol):
    """Who wants to know. Both are called in the search's thread; they must return soon."""

    def found(self, gateway: FoundGateway) -> None:
        """A gateway proved itself, or a known one changed its address or certificate (after `lost`)."""
        ...

    def lost(self, gateway: FoundGateway) -> None:
        """A gateway is not to be used any more."""
        ...


_Known = dict[tuple[str, str], FoundGateway]
_Call = tuple[Callable[[FoundGateway], None], FoundGateway]


def _changes(listener: Listener, *, before: _Known, now: _Known) -> list[_Call]:
    """What a listener must be told, losses first."""
    calls: list[_Call] = [(listener.lost, before[key]) for key in before if key not in now]
    calls += [(listener.found, now[key]) for key in now if key not in before]
    return calls


def _tell(verb: Callable[[FoundGateway], None], gateway: FoundGateway) -> None:
    try:
        verb(gateway)
    except Exception:  # noqa: BLE001 (a listener's fault must not end the search for all others)
        _LOG.exception("discovery.listener_failed url=%s", gateway.url)


class Search:
    """A browser, a ledger and the questions between them, on an event loop in a thread of its own."""

    def __init__(
        self,
        *,
        token: str | None,
        pin_sha256: str | None,
        interfaces: tuple[str, ...] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        """Prepare a search.

        Args:
            token: what gateways must prove to hold, or None.
            pin_sha256: the certificate that they must carry instead, or None.
            interfaces: listen only on the interfaces with these addresses; None: on all.
            poll_s: seconds between two looks at the machine's addresses.
        """
        self._browser = Browser(self.poke, interfaces=interfaces, poll_s=poll_s)
        self._token = token
        self._pin_sha256 = pin_sha256
        self._ledger = Ledger(random.random)
        self._lock = threading.Lock()
        self._told: dict[Listener, _Known] = {}
        self._silent = threading.Event()
        self._silent.set()
        self._published: tuple[FoundGateway, ...] = ()
        self._reasons: tuple[str, ...] = ()
        self._rechecks: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="hybrid-discovery", daemon=True)

    @property
    def gateways(self) -> tuple[FoundGateway, ...]:
        """The gateways that may be used now, nearest first."""
        return self._published

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why candidates may not be used."""
        return self._reasons

    @property
    def is_alive(self) -> bool:
        """Whether it runs; false once closed."""
        return self._thread.is_alive() and not self._closed

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    def close(self) -> None:
        """Stop searching; waits for the threads unless called from one of them."""
        self._closed = True
        self.poke()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def add(self, listener: Listener) -> None:
        """Tell one more listener, beginning with the gateways known already."""
        with self._lock:
            self._told[listener] = {}
        self.poke()

    def remove(self, listener: Listener) -> bool:
        """Tell this one no more; whether any is left."""
        with self._lock:
            self._told.pop(listener, None)
            return bool(self._told)

    def wait_silent(self) -> None:
        """Return when no listener is being called; at once within such a call, and after a while in any case.

        So whoever withdrew is called no more, and whoever holds a lock that a listener wants is not stuck for ever.
        """
        if threading.current_thread() is not self._thread:
            self._silent.wait(_LAST_CALL_S)

    def recheck(self, url: str) -> None:
        """Ask a gateway for a new proof soon."""
        self._rechecks.add(url)
        self.poke()

    def poke(self) -> None:
        """Look at once, from any thread."""
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._wake.set)
            except RuntimeError:  # the loop closed meanwhile: there is nothing left to wake
                pass

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._browser.start()
        try:
            async with asyncio.TaskGroup() as group:
                asking: set[asyncio.Task[None]] = set()
                while not self._closed:
                    self._wake.clear()
                    for url in self._look():
                        task = group.create_task(self._ask(url))
                        asking.add(task)
                        task.add_done_callback(asking.discard)
                    await self._wait()
                for task in asking:
                    task.cancel()
        finally:
            await asyncio.to_thread(self._browser.close)

    def _look(self) -> list[str]:
        """Bring the ledger up to date; the URLs to ask now."""
        now_s = time.monotonic()
        self._ledger.announce(self._browser.candidates(), now_s)
        while self._rechecks:
            self._ledger.recheck(self._rechecks.pop(), now_s)
        self._publish()
        return self._ledger.take_due(now_s)

    async def _wait(self) -> None:
        due_s = self._ledger.next_due_s()
        pause_s = _LOOK_S if due_s is None else min(_LOOK_S, max(0.02, due_s - time.monotonic()))
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _ask(self, url: str) -> None:
        try:
            proof = await self._proof(url)
        except GatewayUntrusted as exc:
            _LOG.warning("discovery.untrusted url=%s reason=%s", url, exc)
            self._ledger.refuted(url, str(exc), time.monotonic())
        except HybridError as exc:
            _LOG.info("discovery.silent url=%s reason=%s", url, exc)
            self._ledger.silent(url, str(exc), time.monotonic())
        except Exception as exc:  # noqa: BLE001 (one question must not end the search)
            _LOG.exception("discovery.question_failed url=%s", url)
            self._ledger.silent(url, repr(exc), time.monotonic())
        else:
            self._ledger.proved(url, proof.certificate_sha256, proof.rtt_s, time.monotonic())
        self._wake.set()

    async def _proof(self, url: str) -> Proof:
        if self._pin_sha256 is not None:
            return await meet_pinned(url, self._pin_sha256, timeout_s=_PROOF_TIMEOUT_S)
        if self._token is None:
            raise GatewayUntrusted(f"{url} cannot be trusted without a token or a pin", url=url)
        return await prove(url, self._token, timeout_s=_PROOF_TIMEOUT_S)

    def _publish(self) -> None:
        """Tell each listener what changed since it was last told. No lock is held meanwhile: they may call back."""
        with self._lock:
            self._published, self._reasons = self._ledger.gateways(), self._ledger.reasons()
            now = {(gateway.url, gateway.certificate_sha256): gateway for gateway in self._published}
            calls = [
                call for listener, before in self._told.items() for call in _changes(listener, before=before, now=now)
            ]
            self._told = dict.fromkeys(self._told, now)
            self._silent.clear()
        for verb, gateway in calls:
            _tell(verb, gateway)
        self._silent.set()
