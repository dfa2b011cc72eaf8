"""One direction of the emulated link, in virtual time: packets in at one moment, out at another, or not at all.

Design: no sockets and no clock here; the caller says what time it is, so that tests need none. A packet waits in the
queue for the rate, may then be lost, and spends the delay in the air. Times are computed from the moment when a packet
should have left, not from when somebody looked, so that a relay that wakes late does not slow the link down.

The rate means goodput: each packet is charged the share of its bytes that a full TCP segment has for payload (1448 of
1500), so that a bulk transfer sees `rate_bps` and acknowledgements still cost their part.
"""

import heapq
import math
import random
from collections import deque
from typing import Final

from devices.chance import Losses, Wander
from devices.shape import Direction, Passage
from devices.tally import Tally

PAYLOAD_RATIO: Final = 1448 / 1500
"""Payload of a full segment over IPv4 with TCP timestamps, in a packet of 1500 bytes."""
_CREDIT_S: Final = 0.0005
"""How long an idle link remembers that it was idle: a packet that was read so late still leaves in time."""


class Lane:
    """One direction's queue and air."""

    def __init__(self, seed: int) -> None:
        self._losses, self._wander = Losses(seed), Wander(seed + 1)
        self._draws = random.Random(seed + 2)  # noqa: S311 - no secrets
        self._queue: deque[tuple[bytes, float]] = deque()
        self._queued_bytes = 0
        self._finish_s = 0.0
        """When the head of the queue has left; meaningless while the queue is empty."""
        self._air: list[tuple[float, int, bytes]] = []
        self._n_departed = 0
        self._last_due_s = -math.inf
        self._free_s = -math.inf
        self._closed_by_hand = False
        self._tally = Tally()
        self._set(Direction(), 0)

    def _set(self, direction: Direction, queue_bytes: int) -> None:
        self._direction = direction
        self._limit_bytes = queue_bytes
        self._byte_s = 8 * PAYLOAD_RATIO / direction.rate_bps if direction.rate_bps is not None else 0.0
        self._open = direction.open and not self._closed_by_hand

    def set(self, direction: Direction, queue_bytes: int, now_s: float) -> None:
        """Takes a new shape; what waits in the queue leaves by the new rate, what is in the air arrives as it would."""
        self.serve(now_s)
        old_byte_s = self._byte_s
        self._set(direction, queue_bytes)
        if self._queue:
            left_ratio = (self._finish_s - now_s) / (len(self._queue[0][0]) * old_byte_s) if old_byte_s else 0.0
            self._finish_s = now_s + min(1.0, max(0.0, left_ratio)) * len(self._queue[0][0]) * self._byte_s
        self._drop_if_closed()
        self.serve(now_s)

    def close(self, closed: bool) -> None:  # noqa: FBT001 - a valve has two positions
        """A blackhole on top of whatever shape there is, until it is opened again."""
        self._closed_by_hand = closed
        self._open = self._direction.open and not closed
        self._drop_if_closed()

    def _drop_if_closed(self) -> None:
        if not self._open:
            self._tally.n_blackholed += len(self._queue)
            self._queue.clear()
            self._queued_bytes = 0

    def take(self, packet: bytes, now_s: float) -> None:
        """A packet came in at this end."""
        if not self._open:
            self._tally.n_blackholed += 1
            return
        if self._direction.rate_bps is None:
            self._depart(packet, now_s, now_s)
            return
        size = len(packet)
        if self._queue:
            if self._queued_bytes + size > self._limit_bytes:
                self._tally.n_overflow += 1
                return
        else:
            self._finish_s = max(self._free_s, now_s - _CREDIT_S) + size * self._byte_s
        self._queue.append((packet, now_s))
        self._queued_bytes += size

    def serve(self, now_s: float) -> None:
        """Moves what has left the queue by now into the air."""
        queue = self._queue
        while queue and self._finish_s <= now_s:
            packet, came_s = queue.popleft()
            size = len(packet)
            self._queued_bytes -= size
            finish_s = self._free_s = self._finish_s
            self._tally.queued(max(0.0, finish_s - size * self._byte_s - came_s))
            self._depart(packet, came_s, max(finish_s, came_s))
            if queue:
                self._finish_s = finish_s + len(queue[0][0]) * self._byte_s

    def _depart(self, packet: bytes, came_s: float, at_s: float) -> None:
        way = self._direction
        if way.loss_ratio and self._losses.next(way):
            self._tally.n_lost += 1
            return
        if way.reorder_ratio and self._draws.random() < way.reorder_ratio:
            due_s = at_s
        else:
            due_s = at_s + (self._wander.delay_s(way, at_s) if way.jitter_s else way.delay_s)
            if way.keep_order:
                due_s = self._last_due_s = max(due_s, self._last_due_s)
        self._n_departed += 1
        self._tally.transit_s += due_s - came_s
        heapq.heappush(self._air, (due_s, self._n_departed, packet))

    def arrived(self, now_s: float) -> list[bytes]:
        """The packets that are due at the other end, in their order."""
        self.serve(now_s)
        air, due = self._air, []
        while air and air[0][0] <= now_s:
            due_s, _, packet = heapq.heappop(air)
            self._tally.delivered(payload_bytes(packet), now_s, now_s - due_s)
            due.append(packet)
        return due

    def next_s(self) -> float:
        """When something will happen by itself; infinity while nothing will."""
        next_s = self._air[0][0] if self._air else math.inf
        return min(next_s, self._finish_s) if self._queue else next_s

    def passage(self) -> Passage:
        """What passed so far."""
        return self._tally.passage()


def payload_bytes(packet: bytes) -> int:
    """Payload of an IP packet: what TCP or UDP carry, without their headers; 0 for other protocols."""
    if packet[0] >> 4 == 4:
        at, protocol = (packet[0] & 15) * 4, packet[9]
    else:
        at, protocol = 40, packet[6]
    if protocol == 6:
        at += (packet[at + 12] >> 4) * 4
    elif protocol == 17:
        at += 8
    else:
        return 0
    return max(0, len(packet) - at)
