"""Where a quantity is likely to be by now that was measured some time ago: it drifts back to where it usually is.

Design: an estimate that is not renewed must not stay what it was: a link that was left because it was bad would never
be tried again. In the logarithm the quantity is taken for an Ornstein-Uhlenbeck process: with age the expectation
returns to the long-run mean and the spread grows to the long-run spread. How fast is learnt: a sample that comes after
a pause says whether the last value or the usual one was the better guess.

Source: Uhlenbeck and Ornstein, Physical Review 36 (1930).
"""

from math import exp, hypot, log, sqrt
from typing import Final

import msgspec

LONG_GAIN: Final = 0.03
"""Weight of a new sample in the long-run mean; about the last sixty samples count."""

START_REVERT_S: Final = 5.0
LEAST_REVERT_S: Final = 1.0
MOST_REVERT_S: Final = 20.0
STEP: Final = 1.5
APART: Final = 0.3
"""Two guesses that differ by less (in the logarithm) do not tell which was better."""

LEAST_PAUSE_S: Final = 0.5

GOOD_SIGMA: Final = 2.05
"""The standard normal's quantile of 0.98."""


class Outlook(msgspec.Struct, frozen=True):
    """A drifting quantity as it was measured last, and where it tends to.

    Attributes:
        value: the last estimate.
        usual: its long-run (geometric) mean.
        spread_ratio: long-run deviation of its logarithm.
        revert_s: time in which the distance to the usual value falls to 1/e.
    """

    value: float
    usual: float
    spread_ratio: float
    revert_s: float

    def after(self, age_s: float) -> tuple[float, float]:
        """The expected value at this age, and how much spread the age has added (deviation of the logarithm)."""
        if age_s <= 0:
            return self.value, 0.0
        kept = exp(-age_s / self.revert_s)
        return self.usual * (self.value / self.usual) ** kept, self.spread_ratio * sqrt(1 - kept * kept)

    def good(self) -> float:
        """What it is, or more, in one moment out of fifty."""
        return self.usual * exp(GOOD_SIGMA * self.spread_ratio)


class Drift:
    """Learns how far and how fast a positive quantity drifts."""

    __slots__ = ("_log_usual", "_n", "_revert_s", "_variance")

    def __init__(self) -> None:
        self._n = 0.0
        self._log_usual = 0.0
        self._variance = 0.0
        self._revert_s = START_REVERT_S

    def observe(self, x: float, believed: float | None, age_s: float, weight: float = 1.0) -> None:
        """One sample of this weight, what was believed when it was last measured, and how long ago that was."""
        sample = log(max(x, 1e-9))
        if self._n and believed and age_s > LEAST_PAUSE_S:
            last = log(max(believed, 1e-9))
            if abs(last - self._log_usual) > APART:
                is_back = abs(sample - self._log_usual) < abs(sample - last)
                changed = self._revert_s / STEP if is_back else self._revert_s * STEP
                self._revert_s = min(MOST_REVERT_S, max(LEAST_REVERT_S, changed))
        self._n += weight
        gain = max(LONG_GAIN * weight, weight / self._n)
        residual = sample - self._log_usual
        self._log_usual += gain * residual
        if gain < 1:
            self._variance += gain * (residual * residual - self._variance)

    def outlook(self, value: float) -> Outlook:
        """What is known of a quantity whose estimate is `value` now."""
        if not self._n:
            return Outlook(value, value, 0.0, START_REVERT_S)
        return Outlook(value, exp(self._log_usual), sqrt(self._variance), self._revert_s)


def widened(points: tuple[float, ...], standard: tuple[float, ...], sigma: float) -> tuple[float, ...]:
    """Equally likely ratios with more spread: their own and `sigma` add as variances.

    Args:
        points: ratios, ascending.
        standard: standard normal quantiles at the points.
        sigma: deviation of the logarithm that comes to it.
    """
    if sigma <= 0 or len(points) != len(standard):
        return points
    own = log(points[-1] / points[0]) / (standard[-1] - standard[0])
    more = hypot(own, sigma) - own
    return tuple(point * exp(more * z) for point, z in zip(points, standard, strict=True))
