"""What releases cost together, and how much noise or how many releases a budget allows.

A release is one noised sum in which a device takes part at most once. Its cost is mu squared = 1 / noise multiplier
squared; costs add up, over rounds, campaigns and different noise. Only what a device took part in costs it anything.

Design: no amplification by sampling is counted. It needs a cohort drawn at random and kept secret; here devices come
when power, network and their owners let them, and the gateway knows who came.
"""

import math
from functools import lru_cache
from typing import Final

from hybrid.errors import BadMessage
from hybrid.federated.privacy.gaussian import epsilon_of, mu_of

MAX_NOISE_MULTIPLIER: Final = 1e6
_SLACK: Final = 1e-9
"""What a sum of many costs may be beyond the budget by the rounding of floats alone."""


def cost_of(noise_multiplier: float, n_releases: int = 1) -> float:
    """Mu squared of so many releases with this noise.

    Raises:
        BadMessage: a multiplier that is not above 0 (without noise nothing is private) or a negative count.
    """
    if not 0.0 < noise_multiplier <= MAX_NOISE_MULTIPLIER:
        raise BadMessage(f"the noise multiplier is {noise_multiplier}: a number above 0 and up to 1e6 is wanted")
    if n_releases < 0:
        raise BadMessage(f"{n_releases} releases: 0 or more are wanted")
    return n_releases / noise_multiplier**2


def epsilon_for(cost: float, delta: float) -> float:
    """Epsilon of all that was released at this cost together."""
    return epsilon_of(math.sqrt(cost), delta)


@lru_cache(maxsize=256)
def budget_of(epsilon: float, delta: float) -> float:
    """The cost that may be spent in all for this epsilon; remembered, since it is asked for every box that waits."""
    return mu_of(epsilon, delta) ** 2


def fits(cost: float, budget: float) -> bool:
    """Whether the cost is within the budget; sums of floats may miss it by a billionth."""
    return cost <= budget * (1.0 + _SLACK)


def noise_for(epsilon: float, delta: float, n_releases: int) -> float:
    """The least noise multiplier with which a device may take part in so many releases.

    Raises:
        BadMessage: no release at all is asked for, or epsilon or delta mean nothing.
    """
    if n_releases < 1:
        raise BadMessage(f"{n_releases} releases: 1 or more are wanted")
    return math.sqrt(n_releases / budget_of(epsilon, delta))
