"""A running estimate of a positive quantity that drifts, jumps and is noisy."""

from math import exp, log

GAIN = 0.35
"""Weight of a new sample; about the last five samples count. Recorded uplinks wander so fast that more memory costs
more than it smooths."""

SPREAD_GAIN = 0.25
"""Weight of a new residual in the deviation."""

JUMP_LOG_RATIO = log(1.5)
"""A residual of this size, or of four deviations, is suspected to be a change and not noise."""

RARE_S = 1.5
"""A sample that comes so long after the one before is believed at once: a second one may not come for long."""

LIGHT = 0.3

FLOOR = 1e-9


class RunningEstimate:
    """Exponentially weighted mean and deviation of log(x), with a reset at change points.

    Times and rates are positive and their noise is multiplicative, hence the logarithm: a rate that halves and one
    that doubles are equally surprising. Two residuals in a row on the same side, each larger than four deviations and
    than a factor of 1.5, are a change: the mean moves there at once (so that two to three requests move a plan). A
    single one is an outlier and moves nothing (unless samples are rare); two on opposite sides are noise.

    Attributes:
        n_samples: samples so far.
        updated_s: time of the last one.
        epoch: counts the jumps.

    Source: the deviation is Jacobson's smoothed mean deviation (RFC 6298, section 2) in the log domain.
    """

    __slots__ = ("_deviation", "_log_mean", "_suspect", "_weight", "epoch", "n_samples", "updated_s")

    def __init__(self) -> None:
        self._log_mean = 0.0
        self._deviation = 0.0
        self._suspect = 0.0
        self._weight = 0.0
        self.n_samples = 0
        self.updated_s = 0.0
        self.epoch = 0

    @property
    def value(self) -> float | None:
        """The estimate, or None before the first sample."""
        return exp(self._log_mean) if self.n_samples else None

    @property
    def spread_ratio(self) -> float:
        """Deviation relative to the value, 0 for a steady quantity."""
        return self._deviation if self.n_samples else 0.0

    def observe(self, x: float, now_s: float, weight: float = 1.0) -> None:
        """Takes one sample.

        Args:
            x: above 0; smaller ones count as a nanounit.
            now_s: monotonic time.
            weight: from 0 to 1: how much it says beside a full sample; a light one is never a change point.
        """
        sample = log(max(x, FLOOR))
        is_rare = now_s - self.updated_s > RARE_S
        self.updated_s = now_s
        self.n_samples += 1
        self._weight += weight
        if self.n_samples == 1:
            self._log_mean, self._deviation, self._suspect = sample, 0.25, 0.0
            return
        residual = sample - self._log_mean
        gain = max(GAIN * weight, weight / self._weight)
        if gain < 0.5 and weight > LIGHT and abs(residual) > max(JUMP_LOG_RATIO, 4 * self._deviation):
            if self._suspect * residual > 0 or is_rare:
                self._log_mean, self._deviation, self._suspect = sample, 0.25, 0.0
                self.epoch += 1
                return
            if not self._suspect:
                self._suspect = residual
                return
        self._suspect = 0.0
        self._deviation += max(SPREAD_GAIN, 1 / self.n_samples) * (abs(residual) - self._deviation)
        self._log_mean += gain * residual

    def forget(self) -> None:
        """Back to the state before the first sample."""
        self.n_samples = 0
        self._weight = 0.0
