"""Brings the outbox to the gateway: most important first, acknowledged things leave, the rest is tried again.

Design: nothing here decides what is kept; a call that is lost, doubled or answered twice changes nothing but the time.
A stream that does not advance waits alone: one full shelf at the gateway does not stop the others. After failures the
sender pauses between 0 and a bound that doubles (full jitter): boxes that lost one gateway do not return at once.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Final

from edge_agent.outbox.records import Batch, StoredItem
from edge_agent.outbox.store import OutboxStore
from edge_agent.part import Problem
from hybrid.errors import (
    BadMessage,
    Conflict,
    CorruptContent,
    DiskFull,
    HybridError,
    LinkError,
    Overloaded,
    StorageError,
    TooLarge,
)
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import IngestAnswer, IngestCall, Item

_FIRST_PAUSE_S: Final = 1.0
_MOST_PAUSE_S: Final = 60.0
_MOST_WANTED_S: Final = 900.0
"""A gateway that asks for a longer pause than this is asked again after it."""
_IDLE_S: Final = 600.0
"""Asked so often whether something may travel, beside being woken: a metered link may have ended."""

_OF_A_FILE: Final = (Overloaded, Conflict, DiskFull, TooLarge, CorruptContent, BadMessage)
"""What a gateway answers to one file; other streams go on. Were it about all of them, the next call would hear it."""

_log = logging.getLogger("hybrid.agent.outbox")


class Sender:
    """See the module.

    Attributes:
        calls: the gateway; None while the box has none.
        on_deferred: is told when the gateway has taken a deferred request.
    """

    def __init__(
        self,
        store: OutboxStore,
        calls: FleetCalls | None,
        *,
        rng: Random,
        now_s: Callable[[], float],
        least_important: Callable[[], int],
    ) -> None:
        self.calls = calls
        self.on_deferred: Callable[[], None] = _ignore
        self._store = store
        self._rng = rng
        self._now_s = now_s
        self._least_important = least_important
        self._woken = asyncio.Event()
        self._held_until_s: dict[str, float] = {}
        self._n_held: dict[str, int] = {}
        self._held_codes: dict[str, str] = {}
        self._n_failures = 0
        self._n_sent = 0
        self._last_error = ""
        self._told_at_s: float | None = None

    def wake(self) -> None:
        """There is something to send."""
        self._woken.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._woken.clear()
            pause_s = await self._once()
            if pause_s is None:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    if self._n_failures:
                        await asyncio.sleep(pause_s)  # news do not shorten a pause after failures
                    await self._woken.wait()

    async def _once(self) -> float | None:
        """One call; how long to wait for news before the next one, None for not at all."""
        if self.calls is None:
            return _IDLE_S
        try:
            batch = await self._next()
            if batch.damaged:
                await self._lose(batch.damaged)
            if not batch.items:
                return None if batch.damaged else self._until_held_ones()
            ready = await self._bring_file(batch, self.calls)
            if ready is None:
                return None
            answer = await self.calls.ingest(IngestCall(epoch=batch.epoch, items=tuple(map(_item, batch.items))))
            advanced = await self._take(batch, answer)
        except HybridError as exc:
            return self._failed(exc)
        except TimeoutError as exc:
            return self._failed(LinkError(f"the gateway did not answer in time: {exc}"))
        except OSError as exc:
            return self._failed(StorageError(f"the disk of the outbox fails: {exc.strerror or exc}"))
        if self._n_failures:
            _log.info("outbox.sending_again n_failures=%d", self._n_failures)
        self._n_failures = 0
        self._last_error = ""
        self._told_at_s = self._now_s()
        return None if advanced else self._until_held_ones()

    async def _next(self) -> Batch:
        now_s = self._now_s()
        # Those that are over leave: a stream that has nothing to send now must not be what the pause is counted from.
        self._held_until_s = {stream: until_s for stream, until_s in self._held_until_s.items() if until_s > now_s}
        held = list(self._held_until_s)
        return await asyncio.to_thread(
            self._store.batch, least_important=self._least_important(), held=held, now_s=now_s
        )

    async def _bring_file(self, batch: Batch, calls: FleetCalls) -> Batch | None:
        """Bring the file that the head of the call names; None where it is damaged and nothing is to be sent."""
        head = batch.items[0]
        if not head.blob:
            return batch
        try:
            content = await asyncio.to_thread(self._store.read_file, head)
        except CorruptContent:
            await self._lose((head,))
            return None
        try:
            await calls.put_blob(head.blob, content)
        except _OF_A_FILE as exc:
            self._hold(head.stream, exc.code, _wanted_s(exc))
            return None
        return batch

    async def _take(self, batch: Batch, answer: IngestAnswer) -> bool:
        """Let go what the gateway has; whether anything moved."""
        refused = {(one.stream, one.seq): one for one in answer.refused}
        declined = [item for item in batch.items if (item.stream, item.seq) in refused]
        taken = [item for item in batch.items if (item.stream, item.seq) not in refused]
        done = [item for item in taken if item.seq <= answer.acked.get(item.stream, -1)]
        for item in declined:
            why = refused[item.stream, item.seq]
            _log.warning(
                "outbox.refused stream=%s seq=%d code=%s detail=%r", item.stream, item.seq, why.code, why.detail
            )
        acked = {stream: seq for stream, seq in answer.acked.items() if any(i.stream == stream for i in batch.items)}
        await asyncio.to_thread(self._store.settle, done, acked)
        if declined:
            await asyncio.to_thread(self._store.give_up, declined, why="refused")
        self._n_sent += len(done)
        if any(item.kind == "deferred" for item in done):
            self.on_deferred()
        if answer.stale_epoch:
            _log.error("outbox.stale_epoch epoch=%s", batch.epoch)
            await asyncio.to_thread(self._store.renew)
            return True
        gone = {item.id for item in (*done, *declined)}
        moved = {item.stream for item in batch.items if item.id in gone}
        for stream in {item.stream for item in batch.items} - moved:
            self._hold(stream, answer.held.get(stream, "held"))
        for stream in moved:
            self._let_go(stream)
        return bool(moved)

    async def _lose(self, items: Sequence[StoredItem]) -> None:
        for item in items:
            _log.error("outbox.lost stream=%s seq=%d n_bytes=%d reason=damaged", item.stream, item.seq, item.n_bytes)
        await asyncio.to_thread(self._store.give_up, items, why="lost")

    def _hold(self, stream: str, code: str, wanted_s: float = 0.0) -> None:
        n = self._n_held[stream] = self._n_held.get(stream, 0) + 1
        self._held_codes[stream] = code
        self._held_until_s[stream] = self._now_s() + self._pause_s(n, wanted_s)
        if n == 1 or n % 16 == 0:
            _log.warning("outbox.held stream=%s code=%s n=%d", stream, code, n)

    def _let_go(self, stream: str) -> None:
        self._n_held.pop(stream, None)
        self._held_codes.pop(stream, None)
        self._held_until_s.pop(stream, None)

    def _until_held_ones(self) -> float:
        first_s = min(self._held_until_s.values(), default=self._now_s() + _IDLE_S)
        return min(_IDLE_S, max(0.05, first_s - self._now_s()))

    def _failed(self, error: HybridError) -> float:
        self._n_failures += 1
        self._last_error = error.code
        pause_s = self._pause_s(self._n_failures, _wanted_s(error))
        if self._n_failures in (1, 8) or self._n_failures % 64 == 0:
            _log.warning("outbox.not_sent code=%s n_failures=%d error=%s", error.code, self._n_failures, error)
        return pause_s

    def _pause_s(self, n: int, wanted_s: float) -> float:
        """After so many failures, and where the gateway said when to come back."""
        drawn_s = self._rng.uniform(0.0, min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(n, 10)))
        return max(drawn_s, wanted_s * (1.0 + self._rng.random())) if wanted_s else drawn_s

    def problems(self) -> Sequence[Problem]:
        """What keeps things from arriving, where waiting alone will not mend it."""
        return [
            Problem(
                code=f"outbox_{code}",
                what=f"the gateway does not take stream {stream}: {code}",
                do="Look at `hybrid fleet alarms` on the gateway; the box goes on trying.",
            )
            for stream, code in self._held_codes.items()
            if self._n_held.get(stream, 0) >= 8
        ]

    def status(self) -> dict[str, object]:
        """How sending goes."""
        return {
            "n_sent": self._n_sent,
            "n_failures": self._n_failures,
            "last_error": self._last_error,
            "since_answer_s": None if self._told_at_s is None else round(self._now_s() - self._told_at_s, 1),
            "held": dict(self._held_codes),
        }


def _wanted_s(error: HybridError) -> float:
    """How long the gateway asked to wait; 0 where it did not."""
    wanted_s = error.fields.get("retry_after_s")
    return min(float(wanted_s), _MOST_WANTED_S) if isinstance(wanted_s, int | float) and wanted_s > 0 else 0.0


def _ignore() -> None:
    """Nobody wants to know."""


def _item(item: StoredItem) -> Item:
    return Item(
        stream=item.stream,
        seq=item.seq,
        kind=item.kind,
        digest=item.digest,
        skipped=item.skipped,
        age_s=item.age_s,
        body=item.body,
        blob_sha256=item.blob,
        origin=item.origin,
    )
