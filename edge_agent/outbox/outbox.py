"""The outbox: what must reach the gateway is stored first, sent later, never twice in effect, never lost.

Design: whoever puts waits for one commit that many share (20 ms or 64 items). Telemetry is gathered in memory and
written every 30 s, for each commit wears the flash of the box. One task commits, one sends: the database has one user,
and a frozen link never keeps a caller waiting.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from edge_agent.outbox.clock import ForwardClock
from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import KINDS, MAX_BODY_BYTES, OutboxLimits
from edge_agent.outbox.records import Kept, NewItem
from edge_agent.outbox.sender import Sender
from edge_agent.outbox.store import OutboxStore
from edge_agent.part import Problem
from hybrid.errors import BadMessage, HybridError, OutboxFull, Overloaded, StorageError, TooLarge
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import Kind

_TIDY_S: Final = 60.0
_END_S: Final = 10.0
_GROUP_BYTES: Final = 32 << 20
_MOST_STREAM_LETTERS: Final = 200
_MOST_STREAMS: Final = 500
"""Their numbers are kept for ever, here and at the gateway, which takes 4,096 of one box in all its lives."""
_log = logging.getLogger("hybrid.agent.outbox")


@dataclass(slots=True)
class _Pending:
    item: NewItem
    settled: asyncio.Future[Kept]


class Outbox:
    """One box's outbox; a `Part`. All methods are for the event loop.

    Attributes:
        store: what is on the disk; its methods block.
        sender: brings it to the gateway.
    """

    name = "outbox"

    def __init__(
        self,
        place: Place,
        *,
        calls: FleetCalls | None,
        rng: Random,
        limits: OutboxLimits | None = None,
        installation: str = "",
        least_important: Callable[[], int] = lambda: 4,
    ) -> None:
        """Make the outbox of a folder; `run` opens it.

        Args:
            place: where its files lie.
            calls: the gateway; None for a box that has none yet: everything is kept.
            rng: draws the epoch and the pauses.
            limits: what it may use of the box.
            installation: the box's own epoch; another one than before draws a new one for the items.
            least_important: the lowest priority that may travel now, 1 to 4.
        """
        self.limits = limits or OutboxLimits()
        self.store = OutboxStore(place, limits=self.limits, rng=rng, installation=installation)
        self.sender = Sender(self.store, calls, rng=rng, now_s=self.now_s, least_important=least_important)
        self._clock: ForwardClock | None = None
        self._pending: list[_Pending] = []
        self._pending_bytes = 0
        self._telemetry: list[NewItem] = []
        self._telemetry_bytes = 0
        self._wakes = asyncio.Event()
        self._ready = asyncio.Event()
        self._committing = asyncio.Lock()
        self._is_over = False
        self._trouble: HybridError | None = None

    # Putting.

    async def put(self, kind: Kind, body: bytes, *, stream: str = "", about: str = "", ticket: str = "") -> Kept:
        """Keep a thing for the gateway; it is on the disk when this returns (telemetry: in memory).

        Cancelling the call does not take the thing back.

        Args:
            kind: decides when it travels, and what happens when room is short (docs/outbox.md).
            body: its content.
            stream: KIND or KIND/SUFFIX; empty for KIND. Items of a stream arrive in order.
            about: an unsent item of the same stream about the same is replaced; of reports, the model's name.
            ticket: of a deferred request.

        Raises:
            OutboxFull: limits are reached, nothing was kept; the caller may try later.
            DiskFull, StorageError: the disk refused, nothing was kept.
            TooLarge: more than 64 MiB.
        """
        item = NewItem(kind=kind, stream=_checked(kind, stream), body=body, about=about, ticket=ticket)
        known = self.store.ledger.next if self._ready.is_set() else ()
        if stream not in ("", kind) and stream not in known and len(known) >= _MOST_STREAMS:
            raise OutboxFull(f"one outbox has {_MOST_STREAMS} streams at most; use one of those for this {kind}")
        if len(body) > MAX_BODY_BYTES:
            raise TooLarge(f"a {kind} of {len(body)} bytes is refused: at most {MAX_BODY_BYTES} here")
        if self._is_over:
            raise Overloaded("the agent is stopping; try again when it is back", retry_after_s=5.0)
        if kind == "telemetry":
            return self._gather(item)
        if len(self._pending) >= self.limits.pending_items or self._pending_bytes >= self.limits.pending_bytes:
            raise OutboxFull("the disk does not keep up with what is to be stored; try again", retry_after_s=1.0)
        pending = _Pending(item, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        self._pending_bytes += len(body)
        self._wakes.set()
        return await pending.settled

    async def flush(self) -> None:
        """Bring gathered telemetry onto the disk now."""
        await self.opened()
        await self._commit()

    async def opened(self) -> None:
        """Return once the files are open."""
        await self._ready.wait()

    def now_s(self) -> float:
        """The outbox's clock: forward only, over restarts."""
        if self._clock is None:
            self._clock = ForwardClock(asyncio.get_running_loop().time)
        return self._clock.now_s()

    # A Part.

    async def run(self) -> None:
        """Work until cancelled; then what was gathered is written and the files are closed."""
        self.now_s()
        await asyncio.to_thread(self.store.open)
        if self._clock is not None:
            self._clock.go_on_from(self.store.clock_s)
        self._is_over = False
        self._ready.set()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_committing(), name="outbox-commit")
                group.create_task(self._keep_tidy(), name="outbox-tidy")
                group.create_task(self.sender.run(), name="outbox-send")
        finally:
            self._is_over = True
            self._ready.clear()
            await self._end()

    def problems(self) -> Sequence[Problem]:
        """What is wrong now."""
        found: list[Problem] = []
        if self._trouble is not None:
            found.append(
                Problem(
                    code=self._trouble.code,
                    what=f"the outbox cannot store anything: {self._trouble}",
                    do="Make room on the disk, or look at its health; the outbox goes on by itself.",
                    blocks=True,
                )
            )
        elif self.store.is_full:
            found.append(
                Problem(
                    code="outbox_full",
                    what="the outbox refused or dropped something when it was last used",
                    do="Bring the box online, make room on its disk, or raise the limits of the outbox.",
                )
            )
        if self.store.n_begun_anew:
            found.append(
                Problem(
                    code="outbox_begun_anew",
                    what="a damaged outbox was set aside; what could be read of it was taken over",
                    do="Look at the disk's health; remove outbox.db.corrupt-* when you need it no more.",
                )
            )
        return (*found, *self.sender.problems())

    def status(self) -> dict[str, object]:
        """What waits and what became of the rest."""
        ledger = self.store.ledger
        return {
            "epoch": ledger.epoch,
            "n_items": ledger.n_items,
            "n_bytes": ledger.n_bytes,
            "gathered_items": len(self._telemetry),
            "kinds": {kind: asdict(ledger.counts[kind]) for kind in KINDS},
            "sender": self.sender.status(),
        }

    # Inside.

    def _gather(self, item: NewItem) -> Kept:
        """Telemetry waits in memory; the oldest leaves where the disk takes none."""
        self._telemetry.append(item)
        self._telemetry_bytes += len(item.body)
        while self._telemetry_bytes > 4 * self.limits.telemetry_memory_bytes:
            self._telemetry_bytes -= len(self._telemetry.pop(0).body)
            self.store.ledger.tally("telemetry", dropped=1)
        if self._telemetry_bytes > self.limits.telemetry_memory_bytes:
            self._wakes.set()
        return Kept(epoch=self.store.ledger.epoch, stream=item.stream, seq=-1)

    async def _keep_committing(self) -> None:
        loop = asyncio.get_running_loop()
        flush_at_s = loop.time() + self.limits.telemetry_flush_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(flush_at_s):
                    await self._wakes.wait()
            self._wakes.clear()
            if self._pending and len(self._pending) < self.limits.group_items:
                await asyncio.sleep(self.limits.group_s)
            # What was gathered goes with any commit that others need: alone it would cost as many pages again.
            is_due = loop.time() >= flush_at_s
            await self._commit()
            flush_at_s = loop.time() + self.limits.telemetry_flush_s
            if is_due and self._trouble is not None:
                await self._probe()

    async def _commit(self) -> None:
        """One group: what waits, as much as a group takes, and what was gathered."""
        async with self._committing:
            group = self._next_group()
            gathered, self._telemetry, self._telemetry_bytes = self._telemetry, [], 0
            items = [pending.item for pending in group] + gathered
            if not items:
                return
            work = asyncio.ensure_future(asyncio.to_thread(self.store.keep, items, self.now_s()))
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait((work,), timeout=_END_S)
                raise
            except (HybridError, OSError):
                pass  # those who wait are told below
            finally:
                if not work.done():
                    work.add_done_callback(_seen)
                    _tell_all(group, StorageError("the disk of the outbox does not answer; it may or may not be kept"))
                elif not work.cancelled():
                    self._settle(work, group, len(gathered))
            if self._pending:
                self._wakes.set()
            self.sender.wake()

    def _next_group(self) -> list[_Pending]:
        group: list[_Pending] = []
        n_bytes = 0
        while self._pending and len(group) < self.limits.group_items and n_bytes < _GROUP_BYTES:
            pending = self._pending.pop(0)
            self._pending_bytes -= len(pending.item.body)
            n_bytes += len(pending.item.body)
            group.append(pending)
        return group

    def _settle(
        self, work: "asyncio.Future[list[Kept | HybridError]]", group: Sequence[_Pending], n_gathered: int
    ) -> None:
        """Tell those who wait what became of their items."""
        error = work.exception()
        if isinstance(error, OSError) and not isinstance(error, HybridError):
            error = StorageError(f"the disk of the outbox fails: {error.strerror or error}")
        if error is not None and not isinstance(error, HybridError):
            error = StorageError(f"the outbox failed: {error!r}; the agent's log says more")
            _log.error("outbox.failed", exc_info=work.exception())
        kept: list[Kept | HybridError] = [error] * (len(group) + n_gathered) if error is not None else work.result()
        refused = [one for one in kept if isinstance(one, StorageError)]
        self._trouble = refused[0] if refused else None
        if n_gathered and isinstance(kept[-1], StorageError):
            self.store.ledger.tally("telemetry", dropped=n_gathered)
        for pending, one in zip(group, kept, strict=False):
            if pending.settled.done():
                continue  # its caller left
            if isinstance(one, HybridError):
                pending.settled.set_exception(one)
            else:
                pending.settled.set_result(one)

    async def _probe(self) -> None:
        """See whether the disk takes writes again."""
        try:
            await asyncio.to_thread(self.store.probe)
        except HybridError as exc:
            self._trouble = exc
        except OSError as exc:
            self._trouble = StorageError(f"the disk of the outbox fails: {exc.strerror or exc}")
        else:
            self._trouble = None

    async def _keep_tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_S)
            try:
                await asyncio.to_thread(self.store.tidy, self.now_s())
            except (HybridError, OSError) as exc:
                _log.warning("outbox.not_tidied error=%s", exc)

    async def _end(self) -> None:
        """The last groups, and the files are closed; bounded, for a stop must not wait for a dead disk."""
        try:
            async with asyncio.timeout(_END_S):
                while self._pending or self._telemetry:
                    await self._commit()
                await asyncio.to_thread(self.store.close)
        except (HybridError, OSError) as exc:
            _log.warning("outbox.not_closed error=%s", exc)
        _tell_all(self._pending, Overloaded("the agent stops; try again later", retry_after_s=5.0))
        self._pending.clear()
        self._pending_bytes = 0


def _tell_all(group: Sequence[_Pending], error: HybridError) -> None:
    for pending in group:
        if not pending.settled.done():
            pending.settled.set_exception(error)


def _seen(work: "asyncio.Future[list[Kept | HybridError]]") -> None:
    """Nobody waits for this commit any more, however it ended."""
    if not work.cancelled() and (error := work.exception()) is not None:
        _log.warning("outbox.late error=%s", error)


def _checked(kind: Kind, stream: str) -> str:
    stream = stream or kind
    if stream.partition("/")[0] != kind or len(stream) > _MOST_STREAM_LETTERS or not stream.isprintable():
        raise BadMessage(f"stream {stream[:80]!r} of a {kind}: {kind} is wanted, or {kind}/ and a short name")
    return stream
