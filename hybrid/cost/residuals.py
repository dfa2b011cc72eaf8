"""How far predictions were off: the distribution of measured over predicted, as a few equally likely ratios."""

from math import exp, sqrt
from typing import Final

N_POINTS: Final = 8
"""Points of the distribution: the quantiles 1/16, 3/16, ... 15/16, each standing for an eighth of the probability."""

N_KEPT: Final = 24
_NORMAL_AT: Final = (-1.534, -0.887, -0.489, -0.157, 0.157, 0.489, 0.887, 1.534)
"""Standard normal quantiles at the points: the shape that is assumed before enough was measured."""

PRIOR_SIGMA: Final = 0.3
PRIOR_WEIGHT: Final = 4
LEAST_SIGMA: Final = 0.01


def lognormal(sigma: float) -> tuple[float, ...]:
    """The points of a lognormal distribution with median 1."""
    return tuple(exp(sigma * z) for z in _NORMAL_AT)


class Residuals:
    """The last ratios of measured to predicted seconds, and the distribution that they speak for.

    The points are the sample's own quantiles, so that a bias and a heavy tail are kept as they are; while there are few
    samples, they are drawn together with a lognormal prior.
    """

    def __init__(self) -> None:
        self._kept: tuple[float, ...] = ()
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

        It counts as the middle of what the distribution leaves above it (Buckley and James, Biometrika 1979: a censored
        value is replaced by its conditional expectation); where that is nothing, as itself.
        """
        above = [point for point in self.points if point > ratio]
        if len(above) * 2 > N_POINTS:
            return  # most answers take that long anyway: next to nothing was learnt
        self.observe(above[len(above) // 2] if above else ratio * 1.1)

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
        share = n / (n + PRIOR_WEIGHT)
        middle = kept[n // 2] if n % 2 else sqrt(kept[n // 2 - 1] * kept[n // 2])
        sigma = PRIOR_SIGMA * (1 - share)
        points = []
        for place, z in enumerate(_NORMAL_AT):
            at = (place + 0.5) / N_POINTS * n - 0.5
            low = min(max(int(at), 0), n - 1)
            high = min(low + 1, n - 1)
            found = kept[low] + (kept[high] - kept[low]) * min(max(at - low, 0.0), 1.0)
            points.append(found * exp(sigma * z) if n > 1 else middle * exp(max(sigma, LEAST_SIGMA) * z))
        self.points = tuple(sorted(points))
