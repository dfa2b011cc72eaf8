"""The exact privacy curve of the Gaussian mechanism, by which every figure of privacy here is computed.

A sum to which one device adds at most C, released with Gaussian noise of standard deviation z C, is mu-GDP with
mu = 1 / z, and T releases are mu-GDP with mu squared = the sum of 1 / z squared, whatever was chosen in view of earlier
ones. It is (epsilon, delta)-private exactly where

    delta >= Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu).

Source: Balle and Wang 2018, theorem 8; Dong, Roth and Su 2019, corollaries 1 and 3.

Design: with a = epsilon / mu - mu / 2 and b = a + mu the right side is phi(a) (M(a) - M(b)), where M is Mills' ratio,
since exp(epsilon) phi(b) = phi(a). No term overflows, and the logarithm of delta is known where delta itself is 0.
"""

import math
from typing import Final

from hybrid.errors import BadMessage

_LOG_SQRT_2PI: Final = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF_PI: Final = math.sqrt(0.5 * math.pi)
_TAIL: Final = 5.0
"""Where Mills' ratio goes over from the error function to its continued fraction."""
_NODES: Final = (
    (0.1834346424956498, 0.3626837833783620),
    (0.5255324099163290, 0.3137066458778873),
    (0.7966664774136267, 0.2223810344533745),
    (0.9602898564975363, 0.1012285362903763),
)
"""Gauss and Legendre's rule of eight points on -1..1: places (both signs) and weights."""
_N_HALVINGS: Final = 200


def log_delta(epsilon: float, mu: float) -> float:
    """Natural logarithm of the least delta at this epsilon.

    Args:
        epsilon: 0 or more.
        mu: 0 or more; -inf is returned for 0.
    """
    if mu == 0.0:
        return -math.inf
    low, high = epsilon / mu - 0.5 * mu, epsilon / mu + 0.5 * mu
    if low < -1.0:
        return math.log(_upper_tail(low) - math.exp(_log_density(low)) * _mills(high))
    if mu < 0.5:
        return _log_density(low) + math.log(_falls_by(low, mu))
    return _log_density(low) + math.log(_mills(low) - _mills(high))


def epsilon_of(mu: float, delta: float) -> float:
    """The least epsilon at this delta, rounded up to the next float.

    Raises:
        BadMessage: mu is not a number of 0 or more, or delta is not between 0 and 1.
    """
    check_delta(delta)
    if not 0.0 <= mu < math.inf:
        raise BadMessage(f"mu is {mu}: a finite number of 0 or more is wanted")
    wanted = math.log(delta)
    if log_delta(0.0, mu) <= wanted:
        return 0.0
    low, high = 0.0, 0.5 * mu * mu + mu * math.sqrt(-2.0 * wanted)  # what zCDP promises bounds it from above
    for _ in range(_N_HALVINGS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if log_delta(middle, mu) <= wanted:
            high = middle
        else:
            low = middle
    return high


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu that is still (epsilon, delta)-private, rounded down to the float before.

    Raises:
        BadMessage: epsilon is not a finite number above 0, or delta is not between 0 and 1.
    """
    check_delta(delta)
    if not 0.0 < epsilon < math.inf:
        raise BadMessage(f"epsilon is {epsilon}: a finite number above 0 is wanted")
    wanted = math.log(delta)
    low, high = 0.0, 1.0
    while log_delta(epsilon, high) <= wanted:
        low, high = high, 2.0 * high
    for _ in range(_N_HALVINGS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if log_delta(epsilon, middle) <= wanted:
            low = middle
        else:
            high = middle
    return low


def check_delta(delta: float) -> None:
    """Raises `BadMessage` for a delta with which nothing can be said."""
    if not 1e-300 <= delta < 1.0:
        raise BadMessage(f"delta is {delta}: a number above 0 and below 1 is wanted, one over the devices or less")


def _log_density(x: float) -> float:
    return -0.5 * x * x - _LOG_SQRT_2PI


def _upper_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def _mills(x: float) -> float:
    """What lies above x under the normal curve, by the curve's height there; x of -1 or more."""
    if x < _TAIL:
        return _SQRT_HALF_PI * math.exp(0.5 * x * x) * math.erfc(x / math.sqrt(2.0))
    return 1.0 / (x + _fraction(x))


def _slope(x: float) -> float:
    """How fast Mills' ratio falls at x: 1 - x M(x), far out without losing its digits."""
    if x < _TAIL:
        return 1.0 - x * _mills(x)
    beyond = _fraction(x)
    return beyond / (x + beyond)


def _fraction(x: float) -> float:
    """1 / (x + 2 / (x + 3 / (x + ...))): by so much 1 / M(x) is larger than x."""
    beyond = 0.0
    for k in range(80, 0, -1):
        beyond = k / (x + beyond)
    return beyond


def _falls_by(low: float, mu: float) -> float:
    """M(low) - M(low + mu) for places near one another, where the difference of two floats would lose its digits."""
    middle, half = low + 0.5 * mu, 0.5 * mu
    total = 0.0
    for place, weight in _NODES:
        for x in (middle - half * place, middle + half * place):
            total += weight * _slope(x)
    return half * total
