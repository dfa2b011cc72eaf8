"""One knock a box: while the gateway cannot be reached one of the agent's parts tries it, and the others wait for it.

Design: every part waits a random time after a failure, but a thousand boxes with three parts each come back as three
thousand. Following (`state`) knocks; what else there is to ask waits until it got through, and then a random time more,
no longer than the outage was.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall
from hybrid.errors import LinkError
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import IngestAnswer, IngestCall, OutcomesAnswer, OutcomesCall, StateAnswer, StateCall

PATIENCE_S: Final = 90.0
"""So long the others wait; then they try it themselves: nobody may be following at all."""

HELD_PATIENCE_S: Final = 10.0
"""So long, where a poll is held at the gateway as far as this box knows: it says nothing for minutes if all is well."""

SPREAD_S: Final = 45.0

_T = TypeVar("_T")


class OneKnock:
    """`FleetCalls` over other ones."""

    def __init__(self, calls: FleetCalls, *, rng: random.Random) -> None:
        self._calls = calls
        self._rng = rng
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._shut_s = 0.0
        self._n_polls = 0

    @property
    def is_shut(self) -> bool:
        """Whether the gateway could not be reached, and has not been since."""
        return not self._is_open.is_set()

    async def state(self, call: StateCall) -> StateAnswer:
        """See `FleetCalls`; the one that knocks, and then wants an answer at once, not a poll that is held."""
        if not self._is_open.is_set():
            call = msgspec.structs.replace(call, wait_s=0.0)
        self._n_polls += 1
        try:
            return await self._watched(self._calls.state(call))
        finally:
            self._n_polls -= 1

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        """See `FleetCalls`."""
        await self._turn()
        return await self._watched(self._calls.ingest(call))

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        """See `FleetCalls`."""
        await self._turn()
        return await self._watched(self._calls.outcomes(call))

    async def put_blob(self, sha256: str, content: bytes) -> None:
        """See `FleetCalls`."""
        await self._turn()
        await self._watched(self._calls.put_blob(sha256, content))

    async def own_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        await self._turn()
        async for block in self._flowing(self._calls.own_blob(sha256, offset)):
            yield block

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """See `FleetCalls`."""
        await self._turn()
        return await self._watched(self._calls.manifest(name, version))

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        """See `FleetCalls`."""
        await self._turn()
        return await self._watched(self._calls.chunk_index(call))

    async def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        await self._turn()
        async for block in self._flowing(self._calls.chunk_ranges(call)):
            yield block

    async def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """See `FleetCalls`."""
        await self._turn()
        async for block in self._flowing(self._calls.blob(sha256, offset)):
            yield block

    async def in_turn(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Any other call over the same link."""
        await self._turn()
        return await self._watched(call())

    async def _turn(self) -> None:
        """Return when it makes sense to try."""
        if self._is_open.is_set():
            return
        loop = asyncio.get_running_loop()
        shut_s = self._shut_s
        try:
            async with asyncio.timeout(HELD_PATIENCE_S if self._n_polls else PATIENCE_S):
                await self._is_open.wait()
        except TimeoutError:
            return
        await asyncio.sleep(self._rng.uniform(0.0, min(SPREAD_S, max(0.0, loop.time() - shut_s))))

    async def _watched(self, work: Awaitable[_T]) -> _T:
        try:
            answer = await work
        except LinkError:
            self._shut()
            raise
        self._is_open.set()
        return answer

    async def _flowing(self, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        has_flowed = False
        try:
            async for block in blocks:
                self._is_open.set()
                has_flowed = True
                yield block
        except LinkError:
            # One connection of several broke: where the gateway is gone, the poll that is held there says so too.
            if not (has_flowed and self._n_polls):
                self._shut()
            raise

    def _shut(self) -> None:
        if self._is_open.is_set():
            self._shut_s = asyncio.get_running_loop().time()
            self._is_open.clear()
