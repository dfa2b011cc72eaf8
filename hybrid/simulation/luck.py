"""What chance gives each request, drawn beforehand: every policy meets the same noise at the same request.

Design: common random numbers. The n-th request of a stream meets the n-th draw whatever policy carries it out, so that
policies differ by what they decide and by nothing else, and an oracle can be asked about the very same request.
"""

from dataclasses import dataclass
from math import erf, sqrt

import numpy as np

N_DRAWS = 4096
"""Draws of one world; later requests meet the first ones again."""

JITTER_MEMORY = 0.7
"""How much of one request's jitter is in the next one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Luck:
    """Lists of `N_DRAWS` values each.

    Attributes:
        device: factor on the device's seconds.
        gateway: factor on the gateway's seconds.
        jitter_up: of the way up, -1 to 1.
        jitter_down: of the way down, -1 to 1.
        loss_up: where this request stands among the losses of the way up, 0 to 1.
        loss_down: the same for the way down.
        sample: which of the measured inputs it is, 0 to 1.
        hard: how unsure a small model would be, 0 to 1.
    """

    device: list[float]
    gateway: list[float]
    jitter_up: list[float]
    jitter_down: list[float]
    loss_up: list[float]
    loss_down: list[float]
    sample: list[float]
    hard: list[float]


def draw(rng: np.random.Generator, device_noise_ratio: float, gateway_noise_ratio: float) -> Luck:
    """The luck of one world."""

    def factors(deviation: float) -> list[float]:
        return list(map(float, np.exp(deviation * rng.standard_normal(N_DRAWS))))

    def even() -> list[float]:
        return list(map(float, rng.random(N_DRAWS)))

    return Luck(
        device=factors(device_noise_ratio),
        gateway=factors(gateway_noise_ratio),
        jitter_up=_wander(rng),
        jitter_down=_wander(rng),
        loss_up=even(),
        loss_down=even(),
        sample=even(),
        hard=even(),
    )


def _wander(rng: np.random.Generator) -> list[float]:
    """Values in -1 to 1, evenly spread, each like the one before: a Gaussian walk seen through its own distribution."""
    steps = rng.standard_normal(N_DRAWS)
    fresh = sqrt(1.0 - JITTER_MEMORY**2)
    value, values = 0.0, []
    for step in steps.tolist():
        value = JITTER_MEMORY * value + fresh * step
        values.append(erf(value / sqrt(2.0)))
    return values
