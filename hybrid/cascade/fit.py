"""Chooses a cascade's temperature and threshold from samples whose answers are known.

Design: the temperature is the one that makes the small model's probabilities likeliest (temperature scaling: Guo et
al., "On Calibration of Modern Neural Networks", 2017), found on one part of the samples. The threshold is found on the
rest: from the strictest on, thresholds are eased step by step while the upper end of the interval of the accuracy lost
(of paired samples, against the large model on all of them) stays within what may be lost, and the first that does not
ends it. Testing in a fixed order, and stopping, keeps the promise of a single test although many thresholds are looked
at (Angelopoulos et al., "Learn then Test", 2021).
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

import numpy as np

from hybrid.artifact.manifest import CascadeRule, Measured, ScoreKind
from hybrid.calibration.intervals import paired_drop
from hybrid.cascade.confidence import calibration_error, confidences, logits_of, probabilities
from hybrid.errors import BadMessage

LEAST_SAMPLES: Final = 100
_TEMPERATURES: Final = (0.05, 20.0)
_N_STEPS: Final = 40
_GOLDEN: Final = (sqrt(5.0) - 1.0) / 2.0
NEVER: Final = 1.0
"""A threshold that no confidence passes: every request escalates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """What both models answered to samples whose answers are known.

    Attributes:
        scores: the small model's, one row a sample.
        labels: the right class of each.
        large_right: whether the large model is right.
    """

    scores: np.ndarray
    labels: np.ndarray
    large_right: np.ndarray

    @property
    def small_right(self) -> np.ndarray:
        """Whether the small model is right."""
        found: np.ndarray = self.scores.argmax(axis=1) == self.labels
        return found

    def part(self, chosen: np.ndarray) -> "Graded":
        """Some of the samples."""
        return Graded(scores=self.scores[chosen], labels=self.labels[chosen], large_right=self.large_right[chosen])


def fitted_temperature(scores: np.ndarray, labels: np.ndarray, kind: ScoreKind) -> float:
    """The temperature at which the known answers are likeliest (golden section over its logarithm)."""
    logits, rows = logits_of(scores, kind), np.arange(len(labels))

    def loss(place: float) -> float:
        right = probabilities(logits, exp(place))[rows, labels]
        return -float(np.log(np.maximum(right, 1e-300)).mean())

    low, high = map(log, _TEMPERATURES)
    for _ in range(_N_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return exp((low + high) / 2.0)


def fit(
    graded: Graded,
    *,
    small: str,
    output: str,
    kind: ScoreKind,
    max_accuracy_drop: float = 0.01,
    seed: int = 0,
) -> CascadeRule:
    """The rule that sends as little as possible and loses no more accuracy than this, as far as the samples can tell.

    Args:
        graded: samples that neither model was trained on.
        small: id of the small variant.
        output: name of the output that holds the scores.
        kind: what the scores are.
        max_accuracy_drop: share of samples that may be lost against the large model alone, with 97.5 % confidence.
        seed: of the division into the part for the temperature and the part for the threshold.

    Raises:
        BadMessage: too few samples to say anything.
    """
    n = len(graded.labels)
    if n < LEAST_SAMPLES:
        raise BadMessage(f"{n} samples are too few to set a threshold with; give {LEAST_SAMPLES} or more with labels")
    order = np.random.default_rng(seed).permutation(n)
    first, rest = graded.part(order[: n // 3]), graded.part(order[n // 3 :])
    temperature = fitted_temperature(first.scores, first.labels, kind)
    sure = confidences(rest.scores, kind, temperature)
    threshold = _threshold(rest, sure, max_accuracy_drop)
    return CascadeRule(
        small=small,
        output=output,
        kind=kind,
        temperature=temperature,
        threshold=threshold,
        max_accuracy_drop=max_accuracy_drop,
        measured=measured(rest, sure, threshold),
    )


def _threshold(graded: Graded, sure: np.ndarray, max_accuracy_drop: float) -> float:
    found = NEVER
    for share in np.linspace(0.02, 1.0, 50):
        threshold = float(np.quantile(sure, 1.0 - share))
        if _drop(graded, sure >= threshold)[2] > max_accuracy_drop:
            return found
        found = threshold
    return found


def _drop(graded: Graded, kept: np.ndarray) -> tuple[float, float, float]:
    """Accuracy lost against the large model alone when these samples stay with the small one, and its interval."""
    n_lost = int((graded.large_right & ~graded.small_right & kept).sum())
    n_won = int((graded.small_right & ~graded.large_right & kept).sum())
    n = len(graded.labels)
    return ((n_lost - n_won) / n, *paired_drop(n_lost, n_won, n))


def measured(graded: Graded, sure: np.ndarray, threshold: float) -> Measured:
    """What a threshold gives on samples."""
    kept = sure >= threshold
    right = np.where(kept, graded.small_right, graded.large_right)
    drop, low, high = _drop(graded, kept)
    return Measured(
        n=len(graded.labels),
        small_accuracy=float(graded.small_right.mean()),
        large_accuracy=float(graded.large_right.mean()),
        accuracy=float(right.mean()),
        drop=drop,
        drop_low=low,
        drop_high=high,
        escalated_ratio=float(1.0 - kept.mean()),
        calibration_error=calibration_error(sure, graded.small_right),
    )
