"""One-sided tests between boxes that have a new version and boxes that have not, each with its source.

Design: boxes were drawn by a hash, so the box is the unit of the experiment: one camera that fails all day is one box,
not ten thousand errors. Tests over boxes (ranks, shares) are therefore asked first, tests over runs only beside them or
where there are too few boxes. Pure functions of numbers, exact wherever that is cheap.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

_EXACT_RANKS: Final = 400
"""Up to this product of the two numbers of boxes, and without ties, the rank test counts exactly."""
_NEGLIGIBLE: Final = 1e-17
_LARGE_MEAN: Final = 500.0
"""From here on a Poisson count is as good as normal, and e to its negative soon no number any more."""


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Binomial(n, p), exact to rounding; sums at most a few standard deviations of terms."""
    if k <= 0:
        return 1.0
    if k > n or p <= 0.0:
        return 0.0
    if p >= 1.0:
        return 1.0
    if k <= n * p:  # the tail holds the mode: sum the other side, which is no longer than it has to be
        return 1.0 - _lower_sum(k - 1, n, p)
    term = math.exp(_log_choose(n, k) + k * math.log(p) + (n - k) * math.log1p(-p))
    total, odds = 0.0, p / (1.0 - p)
    while k <= n and term > total * _NEGLIGIBLE:
        total += term
        term *= (n - k) / (k + 1) * odds
        k += 1
    return min(1.0, total)


def _lower_sum(k: int, n: int, p: float) -> float:
    term = math.exp(_log_choose(n, k) + k * math.log(p) + (n - k) * math.log1p(-p))
    total, odds = 0.0, (1.0 - p) / p
    while k >= 0 and term > total * _NEGLIGIBLE:
        total += term
        term *= k / (n - k + 1) * odds
        k -= 1
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def usual_most(mean: float, chance: float) -> int:
    """The most events that a Poisson count of this mean has, but for so small a chance."""
    if mean > _LARGE_MEAN:
        return math.ceil(NormalDist(mean, math.sqrt(mean)).inv_cdf(1.0 - chance))
    term = math.exp(-mean)
    total, k = term, 0
    while 1.0 - total > chance and term > 0.0:
        k += 1
        term *= mean / k
        total += term
    return k


def events_p(new: int, new_runs: int, old: int, old_runs: int) -> float:
    """Chance of at least so many events on the new side, did both sides have one rate.

    Given all events, those of the new side are binomial with the new side's share of the runs.
    Source: Przyborowski and Wilenski, Homogeneity of results in testing samples from Poisson series,
    Biometrika 31 (1940).
    """
    if new_runs <= 0 or old_runs <= 0:
        return 1.0
    return binomial_tail(new, new + old, new_runs / (new_runs + old_runs))


def boxes_p(new: int, n_new: int, old: int, n_old: int) -> float:
    """Chance of at least so many boxes with an event on the new side, did it fall on boxes of both sides alike.

    Source: Fisher, The Design of Experiments (1935): the exact test of a table of two by two, its upper tail.
    """
    events, n = new + old, n_new + n_old
    if n_new <= 0 or n_old <= 0 or new <= 0:
        return 1.0
    whole = _log_choose(n, events)
    most = min(events, n_new)
    terms = (math.exp(_log_choose(n_new, k) + _log_choose(n_old, events - k) - whole) for k in range(new, most + 1))
    return min(1.0, sum(terms))


def ranks_p(new: Sequence[float], old: Sequence[float]) -> float:
    """Chance that the new side's values lie so far above the old side's, did both come from one distribution.

    The rank sum test: exact for few values without ties, else normal with the correction for ties and for continuity.
    Source: Mann and Whitney, On a test of whether one of two random variables is stochastically larger than the other,
    Annals of Mathematical Statistics 18 (1947).
    """
    n, m = len(new), len(old)
    if not n or not m:
        return 1.0
    u, tied = _rank_statistic(new, old)
    if not tied and n * m <= _EXACT_RANKS:
        return _exact_upper(math.ceil(u), n, m)
    size = n + m
    variance = n * m / 12.0 * (size + 1 - tied / (size * (size - 1)))
    if variance <= 0.0:
        return 1.0
    return 0.5 * math.erfc((u - n * m / 2.0 - 0.5) / math.sqrt(2.0 * variance))


def least_ranks_p(n: int, m: int) -> float:
    """The smallest chance that the rank test can give with so many boxes: one order in all of them."""
    return math.exp(-_log_choose(n + m, n)) if n and m else 1.0


def _rank_statistic(new: Sequence[float], old: Sequence[float]) -> tuple[float, float]:
    """Mann and Whitney's U of the new side, and the sum of t^3 - t over groups of ties."""
    ordered = sorted([(value, True) for value in new] + [(value, False) for value in old])
    rank_sum, tied, at = 0.0, 0.0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        rank = (at + 1 + end) / 2.0
        rank_sum += rank * sum(is_new for _, is_new in ordered[at:end])
        tied += (end - at) ** 3 - (end - at)
        at = end
    return rank_sum - len(new) * (len(new) + 1) / 2.0, tied


def _exact_upper(u: int, n: int, m: int) -> float:
    """P(U >= u) by counting orders: ways[j] of n new values among m old ones that give U = j."""
    ways = [1] + [0] * (n * m)
    for i in range(1, n + 1):  # the coefficients of the Gaussian binomial: multiply by (1 - q^(m+i)) / (1 - q^i)
        for j in range(n * m, m + i - 1, -1):
            ways[j] -= ways[j - m - i]
        for j in range(i, n * m + 1):
            ways[j] += ways[j - i]
    return sum(ways[max(0, u) :]) / math.comb(n + m, n)
