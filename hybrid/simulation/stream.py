"""Streams of requests: due at fixed times, one after the other, or whenever they come."""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np

StreamKind = Literal["paced", "closed", "open"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """When requests come.

    Attributes:
        kind: `paced`: due every `period_s`, one at a time, a due time that comes while a request is still running is
            skipped (a camera whose program takes the newest frame); `closed`: the next comes `period_s` after the last
            answer; `open`: they come whatever happens, as a Poisson stream of one in `period_s`.
        period_s: seconds.
        duration_s: no request comes after this time.
    """

    kind: StreamKind = "paced"
    period_s: float
    duration_s: float

    def __post_init__(self) -> None:
        if self.duration_s <= 0 or self.period_s < 0 or (self.kind != "closed" and not self.period_s):
            raise ValueError(f"a stream of {self.kind} requests each {self.period_s} s for {self.duration_s} s is none")

    def arrivals(self, rng: np.random.Generator) -> list[float]:
        """All times of an open stream, in order; of others the due times that are known beforehand."""
        if self.kind == "closed":
            return []
        n_arrivals = int(self.duration_s / self.period_s)
        if self.kind == "open":
            return sorted(map(float, rng.uniform(0.0, self.duration_s, n_arrivals)))
        return [slot * self.period_s for slot in range(n_arrivals)]

    def next_slot(self, slot: int, end_s: float) -> int:
        """The first due time of a paced stream that has not passed when request `slot` is answered."""
        return max(slot + 1, ceil(end_s / self.period_s - 1e-9))
