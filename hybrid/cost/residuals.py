"""How far predictions were off: the distribution of measured over predicted, as a few equally likely ratios."""

from collections.abc import Sequence
from math import exp, sqrt
from typing import Final

import numpy as np

N_POINTS: Final = 8
"""Points of the distribution: the quantiles 1/16, 3/16, ... 15/16, each standing for an eighth of the probability."""

N_KEPT: Final = 24
NORMAL_AT: Final = (-1.534, -0.887, -0.489, -0.157, 0.157, 0.489, 0.887, 1.534)
"""Standard normal quantiles at the points: the shape that is assumed before enough was measured."""

PRIOR_SIGMA: Final = 0.3
PRIOR_WEIGHT: Final = 4
LEAST_SIGMA: Final = 0.01
BEYOND_RATIO: Final = 1.1
MOST_BEYOND_RATIO: Final = 1.2
"""What is drawn for a censored ratio is no more than this above it: a tail must not feed on itself."""


_FULL: Final = tuple(exp(PRIOR_SIGMA * (1 - N_KEPT / (N_KEPT + PRIOR_WEIGHT)) * z) for z in NORMAL_AT)


def lognormal(sigma: float) -> tuple[float, ...]:
    """The points of a lognormal distribution with median 1."""
    return tuple(exp(sigma * z) for z in NORMAL_AT)


class Residuals:
    """The last ratios of measured to predicted seconds, and the distribution that they speak for.

    The points are the sample's own quantiles, so that a bias and a heavy tail are kept as they are; while there are few
    samples, they are drawn together with a lognormal prior.
    """

    def __init__(self) -> None:
        self._kept: tuple[float, ...] = ()
        self._n_censored = 0
        self.points = lognormal(PRIOR_SIGMA)

    @property
    def n_samples(self) -> int:
        """Samples that are kept now."""
        return len(self._kept)

    def observe(self, ratio: float) -> None:
        """Takes one ratio (> 0)."""
        self._kept = (*self._kept[-(N_KEPT - 1) :], min(max(ratio, 1e-3), 1e3))
        self._publish()

    def observe_longer(self, ratio: float) -> None:
        """Takes a censored one: it would have been more than this ratio.

        It counts as one of the points above it, each in turn (a censored value is replaced by what the distribution
        says of values beyond it: Buckley and James, Biometrika 1979, with draws instead of their mean, so that the
        spread stays); where there is none, as a little more than itself.
        """
        above = [point for point in self.points if point > ratio]
        if len(above) == N_POINTS:
            return  # every answer takes that long: nothing was learnt
        self._n_censored += 1
        drawn = above[self._n_censored % len(above)] if above else ratio * BEYOND_RATIO
        self.observe(min(drawn, ratio * MOST_BEYOND_RATIO))

    def forget(self) -> None:
        """After a change: what was off before says little now."""
        self._kept = ()
        self._publish()

    def _publish(self) -> None:
        kept = sorted(self._kept)
        n = len(kept)
        if not n:
            self.points = lognormal(PRIOR_SIGMA)
            return
        if n == N_KEPT:  # the quantiles fall on every third sample
            self.points = tuple(found * more for found, more in zip(kept[1::3], _FULL, strict=True))
            return
        share = n / (n + PRIOR_WEIGHT)
        middle = kept[n // 2] if n % 2 else sqrt(kept[n // 2 - 1] * kept[n // 2])
        sigma = PRIOR_SIGMA * (1 - share)
        points = []
        for place, z in enumerate(NORMAL_AT):
            at = (place + 0.5) / N_POINTS * n - 0.5
            low = min(max(int(at), 0), n - 1)
            high = min(low + 1, n - 1)
            found = kept[low] + (kept[high] - kept[low]) * min(max(at - low, 0.0), 1.0)
            points.append(found * exp(sigma * z) if n > 1 else middle * exp(max(sigma, LEAST_SIGMA) * z))
        self.points = tuple(sorted(points))


def even_rows(rows: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Distributions with one number of points: those with fewer are interpolated."""
    longest = max(map(len, rows))
    return [tuple(np.interp(np.linspace(0, 1, longest), np.linspace(0, 1, len(row)), row)) for row in rows]
