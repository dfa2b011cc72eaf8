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

from devices.shape import Direction, Passage

PAYLOAD_RATIO: Final = 1448 / 1500
"""Payload of a full segment over IPv4 with TCP timestamps, in a packet of 1500 bytes."""
_CREDIT_S: Final = 0.0005
"""How long an idle link remembers that it was idle: a packet that was read so late still leaves in time."""
_WANDER_PER_JITTER: Final = 2.5
"""Seconds between two drawn delays, per second of jitter: slow enough that delays shrink by less than time passes."""
_SHORTEST_WANDER_S: Final = 0.01


class Lane:
    """One direction's queue and air."""

    def __init__(self, seed: int) -> None:
        self._losses, self._delays = random.Random(seed), random.Random(seed + 1)  # noqa: S311 - no secrets
        self._queue: deque[tuple[bytes, float]] = deque()
        self._queued_bytes = 0
        self._finish_s = 0.0
        """When the head of the queue has left; meaningless while the queue is empty."""
        self._air: list[tuple[float, int, bytes]] = []
        self._n_departed = 0
        self._last_due_s = -math.inf
        self._free_s = -math.inf
        self._in_burst = False
        self._wander = (0.0, 0.0, 0.0, 0.0)
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
            self._tally.waited(max(0.0, finish_s - size * self._byte_s - came_s))
            self._depart(packet, came_s, max(finish_s, came_s))
            if queue:
                self._finish_s = finish_s + len(queue[0][0]) * self._byte_s

    def _depart(self, packet: bytes, came_s: float, at_s: float) -> None:
        way = self._direction
        if way.loss_ratio and self._lost(way):
            self._tally.n_lost += 1
            return
        delay_s = way.delay_s + (self._wandering(at_s) if way.jitter_s else 0.0)
        if way.reorder_ratio and self._delays.random() < way.reorder_ratio:
            due_s = at_s
        else:
            due_s = at_s + max(0.0, delay_s)
            if way.keep_order:
                due_s = self._last_due_s = max(due_s, self._last_due_s)
        self._n_departed += 1
        self._tally.transit_s += due_s - came_s
        heapq.heappush(self._air, (due_s, self._n_departed, packet))

    def _lost(self, way: Direction) -> bool:
        """Gilbert's model: in a burst everything is lost; bursts are as long and as many as the direction says."""
        ends_ratio = 1 / way.loss_burst_packets
        if self._in_burst:
            self._in_burst = self._losses.random() >= ends_ratio
        if not self._in_burst:
            begins_ratio = way.loss_ratio * ends_ratio / (1 - way.loss_ratio * (1 - ends_ratio))
            self._in_burst = self._losses.random() < begins_ratio
        return self._in_burst

    def _wandering(self, at_s: float) -> float:
        """The jitter of a packet that departs now: between drawn delays, or drawn for it alone."""
        jitter_s = self._direction.jitter_s
        if not self._direction.keep_order:
            return self._delays.uniform(-jitter_s, jitter_s)
        from_s, to_s, from_jitter_s, to_jitter_s = self._wander
        if at_s >= to_s:
            step_s = max(_SHORTEST_WANDER_S, _WANDER_PER_JITTER * jitter_s)
            from_jitter_s = to_jitter_s if at_s < to_s + step_s else self._delays.uniform(-1, 1)
            from_s = to_s if at_s < to_s + step_s else at_s
            to_s, to_jitter_s = from_s + step_s, self._delays.uniform(-1, 1)
            self._wander = (from_s, to_s, from_jitter_s, to_jitter_s)
        share = (at_s - from_s) / (to_s - from_s)
        return jitter_s * (from_jitter_s + share * (to_jitter_s - from_jitter_s))

    def arrived(self, now_s: float) -> list[bytes]:
        """The packets that are due at the other end, in their order."""
        self.serve(now_s)
        air, due = self._air, []
        while air and air[0][0] <= now_s:
            due_s, _, packet = heapq.heappop(air)
            self._tally.delivered(packet, now_s, now_s - due_s)
            due.append(packet)
        return due

    def next_s(self) -> float:
        """When something will happen by itself; infinity while nothing will."""
        next_s = self._air[0][0] if self._air else math.inf
        return min(next_s, self._finish_s) if self._queue else next_s

    def passage(self) -> Passage:
        """What passed so far."""
        return self._tally.passage()


class Tally:
    """Counts of one direction."""

    def __init__(self) -> None:
        self.n_lost = self.n_overflow = self.n_blackholed = 0
        self.transit_s = 0.0
        self._n_packets = self._n_bytes = self._n_waited = 0
        self._waited_s = self._longest_wait_s = 0.0
        self._late_s = self._latest_s = 0.0
        self._second, self._second_bytes, self._peak_bytes = 0, 0, 0

    def waited(self, wait_s: float) -> None:
        """A packet left the queue after so long."""
        self._n_waited += 1
        self._waited_s += wait_s
        self._longest_wait_s = max(self._longest_wait_s, wait_s)

    def delivered(self, packet: bytes, now_s: float, late_s: float) -> None:
        """A packet is handed over, so long after it was due."""
        n_bytes = payload_bytes(packet)
        self._n_packets += 1
        self._n_bytes += n_bytes
        self._late_s += late_s
        if late_s > self._latest_s:
            self._latest_s = late_s
        second = int(now_s)
        if second != self._second:
            self._second, self._second_bytes = second, 0
        self._second_bytes += n_bytes
        if self._second_bytes > self._peak_bytes:
            self._peak_bytes = self._second_bytes

    def passage(self) -> Passage:
        """The counts, with means."""
        n_packets = self._n_packets
        late_s = self._late_s / n_packets if n_packets else 0.0
        return Passage(
            n_packets=n_packets,
            n_bytes=self._n_bytes,
            n_lost=self.n_lost,
            n_overflow=self.n_overflow,
            n_blackholed=self.n_blackholed,
            queue_mean_s=self._waited_s / self._n_waited if self._n_waited else 0.0,
            queue_max_s=self._longest_wait_s,
            transit_mean_s=self.transit_s / n_packets + late_s if n_packets else 0.0,
            late_mean_s=late_s,
            late_max_s=self._latest_s,
            peak_bps=8.0 * self._peak_bytes,
        )


def payload_bytes(packet: bytes) -> int:
    """Payload of an IP packet: what TCP or UDP carry, without their headers; all behind the IP header for others."""
    if packet[0] >> 4 == 4:
        at, protocol = (packet[0] & 15) * 4, packet[9]
    else:
        at, protocol = 40, packet[6]
    if protocol == 6:
        at += (packet[at + 12] >> 4) * 4
    elif protocol == 17:
        at += 8
    return max(0, len(packet) - at)
