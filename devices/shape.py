"""A link between two machines as data: rate, delay, jitter, loss and queue of either direction, and what passed.

Both emulations of a link take and return these: real packets between two network namespaces (`devices.lab`), and the
proxy that needs no rights (`devices.shaped_proxy`).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

from devices.errors import EmulationError

MIN_QUEUE_BYTES: Final = 64 * 1024
"""A default queue is never smaller: about what the smallest home routers and modems hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """One way of the link.

    Attributes:
        rate_bps: goodput, bits of TCP payload a second that full segments get; None for as fast as it goes.
        delay_s: one-way delay of a packet that meets an empty queue.
        jitter_s: the delay wanders within `delay_s` ± this (never below 0). It wanders smoothly, so that packets keep
            their order, as radio links do that retransmit below IP.
        keep_order: False draws every packet's delay alone, so that jitter reorders packets.
        loss_ratio: share of packets that are lost, 0 to 1.
        loss_burst_packets: mean length of a run of losses (Gilbert's model); 1 makes every loss an event of its own.
        reorder_ratio: share of packets that overtake: they arrive without the delay.
        queue_bytes: what waits before the rate at most, what comes then is dropped; None for one bandwidth-delay
            product of the whole link, at least 64 KiB.
        open: False is a blackhole: nothing passes, nobody is told.
    """

    rate_bps: float | None = None
    delay_s: float = 0.0
    jitter_s: float = 0.0
    keep_order: bool = True
    loss_ratio: float = 0.0
    loss_burst_packets: float = 1.0
    reorder_ratio: float = 0.0
    queue_bytes: int | None = None
    open: bool = True

    def __post_init__(self) -> None:
        if self.rate_bps is not None and not 0 < self.rate_bps < math.inf:
            raise EmulationError(f"a rate of {self.rate_bps} bit/s is none; give more than 0, or None for no limit")
        for name in ("delay_s", "jitter_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise EmulationError(f"{name} of {getattr(self, name)} s is no time; give 0 or more")
        for name in ("loss_ratio", "reorder_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise EmulationError(f"{name} of {getattr(self, name)} is no share; give 0 to 1")
        if not 1 <= self.loss_burst_packets < math.inf:
            raise EmulationError(f"a burst of {self.loss_burst_packets} packets is none; give 1 or more")
        if self.queue_bytes is not None and self.queue_bytes < 0:
            raise EmulationError(f"a queue of {self.queue_bytes} bytes is none; give 0 or more, or None")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Both ways: `up` from the device (whoever connects) to the gateway (the target), `down` back."""

    up: Direction = Direction()
    down: Direction = Direction()

    @classmethod
    def even(
        cls,
        *,
        rate_bps: float | None = None,
        rtt_s: float = 0.0,
        jitter_s: float = 0.0,
        loss_ratio: float = 0.0,
        loss_burst_packets: float = 1.0,
    ) -> Self:
        """The same both ways; `rtt_s` is halved between them."""
        way = Direction(
            rate_bps=rate_bps,
            delay_s=rtt_s / 2,
            jitter_s=jitter_s,
            loss_ratio=loss_ratio,
            loss_burst_packets=loss_burst_packets,
        )
        return cls(up=way, down=way)

    @property
    def rtt_s(self) -> float:
        """The round trip of an empty link, without jitter."""
        return self.up.delay_s + self.down.delay_s

    def opened(self, *, up: bool, down: bool) -> Self:
        """The same link, with either way open or a blackhole."""
        return replace(self, up=replace(self.up, open=up), down=replace(self.down, open=down))

    def queue_bytes(self, direction: Direction) -> int:
        """What waits before this direction's rate at most: its own figure, or the rule for none."""
        if direction.queue_bytes is not None:
            return direction.queue_bytes
        product_bytes = (direction.rate_bps or 0.0) * self.rtt_s / 8
        return max(MIN_QUEUE_BYTES, int(product_bytes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One moment of a played trace: from `at_s` after its start the link has this shape."""

    at_s: float
    shape: Shape


def sound_steps(steps: Sequence[Step], loop_s: float = 0.0) -> tuple[Step, ...]:
    """The steps of a trace, checked.

    Args:
        steps: shapes and when they begin.
        loop_s: when the trace begins anew; 0 for never.

    Raises:
        EmulationError: no steps, a time that is none, times that do not grow, or a loop that ends before its last step.
    """
    times_s = [step.at_s for step in steps]
    if not times_s or not all(0 <= time_s < math.inf for time_s in times_s):
        raise EmulationError("a trace needs at least one step, and times of 0 s or more")
    if any(late_s >= next_s for late_s, next_s in itertools.pairwise(times_s)):
        raise EmulationError("the times of a trace's steps must grow")
    if loop_s and not times_s[-1] < loop_s < math.inf:
        raise EmulationError(f"a trace whose last step is at {times_s[-1]} s cannot begin anew every {loop_s} s")
    return tuple(steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What passed one way since the link began.

    Attributes:
        n_packets: delivered; for a proxy, the chunks that it read.
        n_bytes: payload delivered: of TCP and UDP without their headers.
        n_lost: packets lost on the way by `loss_ratio`; for a proxy, stalls in place of a retransmission.
        n_overflow: packets dropped because the queue was full.
        n_blackholed: packets that met a closed link.
        queue_mean_s: mean time that a packet waited for the rate.
        queue_max_s: the longest such wait.
        transit_mean_s: mean time from one end to the other, queue and jitter included.
        late_mean_s: how late packets were delivered, on average: the emulation's own error.
        late_max_s: the worst of that.
        peak_bps: goodput of the fastest second.
    """

    n_packets: int = 0
    n_bytes: int = 0
    n_lost: int = 0
    n_overflow: int = 0
    n_blackholed: int = 0
    queue_mean_s: float = 0.0
    queue_max_s: float = 0.0
    transit_mean_s: float = 0.0
    late_mean_s: float = 0.0
    late_max_s: float = 0.0
    peak_bps: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatistics:
    """What passed either way.

    Attributes:
        up: from the device to the gateway.
        down: back.
        elapsed_s: since the link began.
        cpu_s: processor seconds that the emulation itself has used.
    """

    up: Passage
    down: Passage
    elapsed_s: float
    cpu_s: float

    @property
    def rtt_s(self) -> float | None:
        """Mean round trip over the link, queues included; None before anything passed both ways."""
        if not (self.up.transit_mean_s and self.down.transit_mean_s):
            return None
        return self.up.transit_mean_s + self.down.transit_mean_s

    @property
    def cpu_ratio(self) -> float:
        """Share of one core that the emulation used."""
        return self.cpu_s / self.elapsed_s if self.elapsed_s else 0.0
