"""Confidence intervals for shares and for differences of paired shares.

Sources: the interval of one share is Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209-212). The
difference of two shares that were counted on the same samples is Tango's score interval (T. Tango, Stat. Med. 17 (1998)
891-908), which R. G. Newcombe's comparison (Stat. Med. 17 (1998) 2635-2650) and later ones recommend: unlike the
textbook's interval it stays honest where few samples, or none, changed. Where none did, both say z²/(n + z²).
"""

from math import erfc, exp, fsum, lgamma, log, sqrt
from typing import Final

CONFIDENCE: Final = 0.95
"""Of the two-sided interval; its upper end alone holds with 97.5 %."""

Z: Final = 1.959963984540054
"""The standard normal distribution's quantile at 0.975."""

_STEPS: Final = 60


def wilson(n_hits: int, n: int, z: float = Z) -> tuple[float, float]:
    """Both ends of the interval of a share, 0 to 1; the whole range where nothing was counted."""
    if n <= 0:
        return 0.0, 1.0
    share = n_hits / n
    centre = share + z * z / (2 * n)
    reach = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)
    return (0.0 if n_hits == 0 else low), (1.0 if n_hits == n else high)


def paired_drop(n_lost: int, n_won: int, n: int, z: float = Z) -> tuple[float, float]:
    """Both ends of the interval of a drop in accuracy, -1 to 1, positive where accuracy was lost.

    Args:
        n_lost: samples that were right before and are wrong now.
        n_won: samples that were wrong before and are right now.
        n: all samples.
        z: quantile of the standard normal distribution.
    """
    if n <= 0:
        return -1.0, 1.0
    estimate = (n_lost - n_won) / n
    counts = (n_lost, n_won, n)
    return _solve(counts, z, -1.0, estimate), _solve(counts, -z, estimate, 1.0)


def mcnemar(n_lost: int, n_won: int) -> float:
    """Two-sided p-value of McNemar's exact test: how likely a split as uneven as this one is where nothing changed.

    Source: Q. McNemar, Psychometrika 12 (1947) 153-157, with the binomial distribution instead of its limit.
    """
    n, least = n_lost + n_won, min(n_lost, n_won)
    if n == 0:
        return 1.0
    logs = (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2) for k in range(least + 1))
    return min(1.0, 2 * fsum(exp(value) for value in logs))


def beyond(n_lost: int, n_won: int, n: int, limit: float) -> float:
    """One-sided p-value of a drop of at least `limit`, by the statistic that `paired_drop` inverts; 1 for no samples.

    Where no answer can be won (`n_won` is 0) and few are lost, the statistic is that of Wilson's interval.
    """
    if n <= 0:
        return 1.0
    return 0.5 * erfc(-_score(n_lost, n_won, n, limit) / sqrt(2))


def samples_for(drop: float, z: float = Z) -> int:
    """How many samples without any change it takes to show a drop of at most this share."""
    return int(z * z * (1 - drop) / drop) + 1 if drop > 0 else 0


def _solve(counts: tuple[int, int, int], wanted: float, low: float, high: float) -> float:
    """The difference at which the score statistic has this value: it falls as the difference grows, so halve."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _score(*counts, middle) > wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _score(n_lost: int, n_won: int, n: int, difference: float) -> float:
    """Tango's statistic: standardised distance of the counts from this difference."""
    gap = n_lost - n_won - n * difference
    a = 2.0 * n
    b = -n_lost - n_won + (2 * n - n_lost + n_won) * difference
    c = -n_won * difference * (1 - difference)
    won = max(0.0, (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a))
    variance = n * (2 * won + difference * (1 - difference))
    if variance <= 0:
        return 0.0 if gap == 0 else (float("inf") if gap > 0 else float("-inf"))
    return gap / sqrt(variance)
