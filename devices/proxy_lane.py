"""One direction of the shaped proxy: when a chunk of a byte stream is due at the other end.

Design: all connections share the lane, which has a virtual clock of when it is free again. Touched by the proxy's event
loop alone. Loss shows as what a program sees of it: now and then the stream stalls for a retransmission's round trip.
"""

import asyncio
from typing import Final

from devices.chance import Losses, Wander
from devices.shape import Direction, Passage
from devices.tally import Tally

_CHUNK_S: Final = 0.001
"""A chunk is about what the lane carries in this time, within the bounds below."""
_MIN_CHUNK_BYTES: Final = 1024
_MAX_CHUNK_BYTES: Final = 16 * 1024
_SEGMENT_BYTES: Final = 1448
_SLACK_S: Final = 0.004
"""How late a chunk may come and still count as in time: the event loop's clock ticks in milliseconds."""
_LATE_S: Final = 0.1
"""How late this thread may wake on a busy machine without slowing a lane that has work waiting."""
_LONGEST_SLEEP_S: Final = 0.02
"""After at most this time a changed rate is noticed."""


class Lane:
    """One direction's state."""

    def __init__(self, direction: Direction, seed: int) -> None:
        self.direction = direction
        self.tally = Tally()
        self._losses, self._wander = Losses(seed), Wander(seed + 1)
        self._free_at_s = 0.0
        self._closed_by_hand = False
        self._gate = asyncio.Event()
        self.set(direction)

    def set(self, direction: Direction) -> None:
        """Takes the new shape for all that still waits."""
        self.direction = direction
        self._turn_gate()

    def close(self, closed: bool) -> None:  # noqa: FBT001 - a valve has two positions
        """A blackhole on top of whatever shape there is, until it is opened again."""
        self._closed_by_hand = closed
        self._turn_gate()

    def _turn_gate(self) -> None:
        if self.direction.open and not self._closed_by_hand:
            self._gate.set()
        else:
            self._gate.clear()

    @property
    def chunk_bytes(self) -> int:
        """How much to read at once."""
        rate_bps = self.direction.rate_bps
        if rate_bps is None:
            return _MAX_CHUNK_BYTES
        return min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, int(rate_bps * _CHUNK_S / 8)))

    async def opened(self) -> None:
        """Returns while the lane is no blackhole."""
        while not self._gate.is_set():
            await self._gate.wait()

    async def carry(self, n_bytes: int, retransmission_s: float, *, has_waited: bool = False) -> float:
        """Waits until the lane has taken so many bytes; returns when they are due at the other end.

        Args:
            n_bytes: of the chunk.
            retransmission_s: what a lost segment costs the stream, about a round trip.
            has_waited: it lay there when the lane had time for it; so the lane was never idle, however late this is.
        """
        now_s = asyncio.get_running_loop().time
        came_s = now_s()
        rate_bps = self.direction.rate_bps
        finish_s, own_s = came_s, 0.0
        if rate_bps is not None:
            own_s = n_bytes * 8 / rate_bps
            finish_s = max(self._free_at_s, came_s - (_LATE_S if has_waited else _SLACK_S)) + own_s
            self._free_at_s = finish_s
        while (left_s := finish_s - now_s()) > 0:
            await asyncio.sleep(min(left_s, _LONGEST_SLEEP_S))
            changed_bps = self.direction.rate_bps
            if changed_bps != rate_bps:
                rate_bps = changed_bps
                own_s = n_bytes * 8 / rate_bps if rate_bps is not None else 0.0
                finish_s = min(finish_s, now_s() + own_s)
                self._free_at_s = finish_s
        await self.opened()
        left_s = now_s()
        due_s = left_s + self._delay_s(n_bytes, left_s, retransmission_s)
        self.tally.queued(max(0.0, left_s - own_s - came_s))
        self.tally.transit_s += due_s - came_s
        return due_s

    def _delay_s(self, n_bytes: int, at_s: float, retransmission_s: float) -> float:
        way = self.direction
        delay_s = self._wander.delay_s(way, at_s) if way.jitter_s else way.delay_s
        if not way.loss_ratio:
            return delay_s
        n_lost = sum(self._losses.next(way) for _ in range(-(-n_bytes // _SEGMENT_BYTES)))
        self.tally.n_lost += n_lost
        return delay_s + (retransmission_s if n_lost else 0.0)

    def passage(self) -> Passage:
        """What passed so far."""
        return self.tally.passage()
