"""What a link leaves to chance, seeded: which packets are lost, and how the delay wanders."""

import random
from typing import Final

from devices.shape import Direction

_WANDER_PER_JITTER: Final = 2.5
"""Seconds between two drawn delays, per second of jitter: slow enough that delays shrink by less than time passes."""
_SHORTEST_WANDER_S: Final = 0.01


class Losses:
    """Which packets are lost: bursts by Gilbert's model, in which everything is lost inside a burst.

    Source: E. N. Gilbert, "Capacity of a burst-noise channel", Bell System Technical Journal 39 (1960).
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._in_burst = False

    def next(self, way: Direction) -> bool:
        """Whether the next packet is lost; over many packets `way.loss_ratio` of them are."""
        ends_ratio = 1 / way.loss_burst_packets
        if self._in_burst:
            self._in_burst = self._random.random() >= ends_ratio
        if not self._in_burst:
            begins_ratio = way.loss_ratio * ends_ratio / (1 - way.loss_ratio * (1 - ends_ratio))
            self._in_burst = self._random.random() < begins_ratio
        return self._in_burst


class Wander:
    """How the one-way delay changes: a line between delays that are drawn now and then, or a draw for each packet."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secrets
        self._from_s = self._to_s = 0.0
        self._from_ratio = self._to_ratio = 0.0

    def delay_s(self, way: Direction, at_s: float) -> float:
        """The delay of what departs at `at_s`, which never goes back: within `delay_s` ± `jitter_s`, not below 0."""
        if not way.keep_order:
            return max(0.0, way.delay_s + self._random.uniform(-way.jitter_s, way.jitter_s))
        if at_s >= self._to_s:
            step_s = max(_SHORTEST_WANDER_S, _WANDER_PER_JITTER * way.jitter_s)
            goes_on = at_s < self._to_s + step_s
            self._from_ratio = self._to_ratio if goes_on else self._random.uniform(-1, 1)
            self._from_s = self._to_s if goes_on else at_s
            self._to_s, self._to_ratio = self._from_s + step_s, self._random.uniform(-1, 1)
        share = (at_s - self._from_s) / (self._to_s - self._from_s)
        wander_s = way.jitter_s * (self._from_ratio + share * (self._to_ratio - self._from_ratio))
        return max(0.0, way.delay_s + wander_s)
