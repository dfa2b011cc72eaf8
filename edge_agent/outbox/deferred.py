"""Deferred inference as the box sees it: a request kept now, computed by the gateway when it is reached, fetched later.

Design: a ticket and its request are stored in one transaction; the outcome is on this box's disk before the gateway is
told that it may forget it. So wherever the power fails there is a request, or its outcome, and never two of them.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from edge_agent.outbox.blob_files import Sealer
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.tickets import Ticket, Tickets
from edge_agent.part import Problem
from hybrid.errors import CorruptContent, HybridError, NotFound, StorageError
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import Outcome, OutcomesCall
from hybrid.fleet.packed import pack_request, unpack_response
from hybrid.wire.message import InferRequest, InferResponse

MOST_WAIT_S: Final = 60.0
_POLL_S: Final = 60.0
_LOOK_S: Final = 30.0
_FIRST_PAUSE_S: Final = 1.0
_MOST_PAUSE_S: Final = 60.0
_TIDY_S: Final = 3600.0
_MOST_OUTCOME_BYTES: Final = (64 << 20) + (128 << 10)
_log = logging.getLogger("hybrid.agent.deferred")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """No outcome yet.

    Attributes:
        is_sent: the gateway has the request.
        waits_s: since it was kept, by a clock that may have missed the time for which the box was off.
    """

    is_sent: bool
    waits_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the gateway computed."""

    response: InferResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """It will not be computed; a code of docs/errors.md and the error's message."""

    code: str
    detail: str


class Deferred:
    """Requests that wait for the gateway; a `Part`. All methods are for the event loop."""

    name = "deferred"

    def __init__(self, outbox: Outbox, calls: FleetCalls | None, *, vault: Sealer, rng: Random) -> None:
        """Make the part.

        Args:
            outbox: carries the requests.
            calls: the gateway; None while the box has none.
            vault: seals outcomes on the disk; the outbox's.
            rng: draws tickets and pauses; whoever knows a ticket may fetch its outcome, so not one with a seed.
        """
        self.calls = calls
        self._outbox = outbox
        self._tickets = Tickets(outbox.store, vault)
        self._rng = rng
        self._came: dict[str, set[asyncio.Event]] = {}
        self._woken = asyncio.Event()
        outbox.sender.on_deferred = self._woken.set
        self._received: dict[str, list[tuple[str, int]]] = {}
        self._counts = (0, 0)
        self._n_failures = 0
        self._tidied_s = float("-inf")

    async def take(self, request: InferRequest) -> str:
        """Keep a request for the gateway; on the disk when this returns its ticket.

        Raises:
            OutboxFull, DiskFull, StorageError: it was not kept.
            TooLarge: more than the wire carries.
        """
        ticket = f"{self._rng.getrandbits(128):032x}"
        content = await asyncio.to_thread(pack_request, replace(request, deadline_s=None))
        await self._outbox.put("deferred", content, ticket=ticket)
        self._counts = (self._counts[0] + 1, self._counts[1])
        self._woken.set()
        return ticket

    async def outcome(self, ticket: str, wait_s: float = 0.0) -> Waiting | Answered | Failed:
        """What became of a request; waits up to a minute for it where that is wished.

        Raises:
            NotFound: there is no such ticket, or not any more.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + min(max(0.0, wait_s), MOST_WAIT_S)
        while True:
            event = asyncio.Event()
            self._came.setdefault(ticket, set()).add(event)
            try:
                found = await self._find(ticket)
                if found.is_settled or loop.time() >= until_s:
                    return await _told(found)
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(until_s):
                        await event.wait()
            finally:
                self._came[ticket].discard(event)
                if not self._came[ticket]:
                    del self._came[ticket]

    async def forget(self, ticket: str) -> None:
        """Forget a request and its outcome; one that was not sent is not sent any more.

        Raises:
            NotFound: there is no such ticket.
        """
        if not await asyncio.to_thread(self._tickets.forget, ticket):
            raise _no_ticket(ticket)
        self._counts = await asyncio.to_thread(self._tickets.count)

    async def run(self) -> None:
        """Fetch outcomes until cancelled."""
        await self._outbox.opened()
        self._counts = await asyncio.to_thread(self._tickets.count)
        while True:
            self._woken.clear()
            try:
                asked = await self._fetch()
            except HybridError as exc:
                await self._pause(exc)
                continue
            except OSError as exc:
                await self._pause(StorageError(f"the disk of the outbox fails: {exc.strerror or exc}"))
                continue
            self._n_failures = 0
            if not asked:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S if self._counts[0] else None):
                        await self._woken.wait()

    def problems(self) -> Sequence[Problem]:
        """Nothing that the outbox does not tell."""
        return ()

    def status(self) -> dict[str, object]:
        """How many wait, and how many outcomes lie here."""
        return {"n_waiting": self._counts[0], "n_settled": self._counts[1], "n_failures": self._n_failures}

    async def _fetch(self) -> bool:
        """Ask for outcomes of what the gateway has; whether it was asked."""
        calls = self.calls
        await self._tidy()
        waiting = await asyncio.to_thread(self._tickets.waiting)
        epochs = {*waiting, *self._received}
        if calls is None or not epochs:
            return False
        for epoch in epochs:
            told = self._received.get(epoch, [])
            # With several epochs none is waited for, or the others' outcomes would lie.
            wait_s = _POLL_S if len(epochs) == 1 and waiting else 0.0
            answer = await calls.outcomes(OutcomesCall(epoch=epoch, received=tuple(told), wait_s=wait_s))
            rest = [one for one in self._received.pop(epoch, []) if one not in told]
            taken = await self._take(epoch, answer.outcomes, calls)
            if rest or taken:
                self._received[epoch] = rest + taken
        if len(epochs) > 1 and not self._received:
            await asyncio.sleep(self._rng.uniform(0.0, 2.0 * _FIRST_PAUSE_S))
        return True

    async def _take(self, epoch: str, outcomes: Sequence[Outcome], calls: FleetCalls) -> list[tuple[str, int]]:
        """Keep outcomes; those that the gateway may forget: they are on this disk, or nobody here wants them."""
        if not outcomes:
            return []
        whole = [await _whole(one, calls) for one in outcomes]
        tickets = await asyncio.to_thread(self._tickets.settle, epoch, whole, self._outbox.now_s())
        self._counts = await asyncio.to_thread(self._tickets.count)
        for ticket in tickets:
            for event in self._came.get(ticket, ()):
                event.set()
        return [(one.stream, one.seq) for one in outcomes]

    async def _find(self, ticket: str) -> Ticket:
        try:
            found = await asyncio.to_thread(self._tickets.find, ticket, self._outbox.now_s())
        except CorruptContent:
            return Ticket(
                is_settled=True,
                is_sent=True,
                waits_s=0.0,
                code=CorruptContent.code,
                detail="the disk of the box damaged the outcome; send the request again",
                content=b"",
            )
        if found is None:
            raise _no_ticket(ticket)
        return found

    async def _tidy(self) -> None:
        now_s = self._outbox.now_s()
        if now_s - self._tidied_s >= _TIDY_S:
            self._tidied_s = now_s
            await asyncio.to_thread(self._tickets.tidy, now_s)

    async def _pause(self, error: HybridError) -> None:
        self._n_failures += 1
        if self._n_failures in (1, 8) or self._n_failures % 64 == 0:
            _log.warning("deferred.not_asked code=%s n_failures=%d error=%s", error.code, self._n_failures, error)
        bound_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._n_failures, 10))
        await asyncio.sleep(self._rng.uniform(0.0, bound_s))


async def _whole(outcome: Outcome, calls: FleetCalls) -> Outcome:
    """An outcome with its reply, fetched where it is a blob."""
    if not outcome.blob_sha256:
        return outcome
    content = bytearray()
    async for block in calls.own_blob(outcome.blob_sha256, 0):
        content += block
        if len(content) > _MOST_OUTCOME_BYTES:
            raise CorruptContent(f"an outcome of more than {_MOST_OUTCOME_BYTES} bytes")
    return Outcome(
        stream=outcome.stream, seq=outcome.seq, body=bytes(content), code=outcome.code, detail=outcome.detail
    )


async def _told(found: Ticket) -> Waiting | Answered | Failed:
    if not found.is_settled:
        return Waiting(is_sent=found.is_sent, waits_s=found.waits_s)
    if found.code:
        return Failed(code=found.code, detail=found.detail)
    return Answered(response=await asyncio.to_thread(unpack_response, found.content))


def _no_ticket(ticket: str) -> NotFound:
    return NotFound(
        f"no ticket {ticket[:40]!r} on this box; outcomes are kept for seven days after they came",
        advice="Send the request again.",
    )
