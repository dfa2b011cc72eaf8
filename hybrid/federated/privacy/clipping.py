"""The clip: a bound on what one device can add, set by hand or following a quantile of the devices' norms.

The device clips what it is about to send, the residual of its error feedback already added; what the clip cuts off is
gone, and only what rounding loses goes into the next residual (a residual of what was cut off would grow in every
round). Where the bound follows a quantile, each device adds one bit to the sum: was its norm within the bound?

Source: McMahan et al. 2018 (clip and noise of whole updates); Andrew et al. 2021, algorithm 1 (the quantile).
"""

import math
from typing import Final

import numpy as np

from hybrid.errors import TensorMismatch

QUANTILE: Final = 0.5
"""The share of updates that are to be within the bound."""
RATE: Final = 0.2
"""How fast the bound follows."""
BITS_RATIO: Final = 0.1
"""The share of a release's cost that its bits take."""
_BELOW: Final = 1.0 - 2.0**-20
"""A scaled vector is a hair shorter than the bound, so that float32 cannot round it beyond."""
_BLOCK: Final = 1 << 16


def norm_of(vector: np.ndarray) -> float:
    """The Euclidean norm in float64, whatever the vector's dtype; inf or nan where an element is."""
    total = 0.0
    for start in range(0, len(vector), _BLOCK):
        block = vector[start : start + _BLOCK].astype(np.float64)
        total += float(np.dot(block, block))
    return math.sqrt(total)


def clipped(vector: np.ndarray, clip_norm: float) -> tuple[np.ndarray, float]:
    """The vector scaled down to the norm where it is longer (a new array), and the norm that it had.

    Raises:
        TensorMismatch: it is not finite: a bound on it cannot be kept by scaling.
    """
    norm = norm_of(vector)
    if not math.isfinite(norm):
        raise TensorMismatch("an update holds a number that is not finite: it is not clipped but left out")
    if norm <= clip_norm:
        return vector.astype(np.float32), norm
    return (vector * np.float32(clip_norm / norm * _BELOW)).astype(np.float32), norm


def split_noise(noise: float) -> tuple[float, float]:
    """Noise multipliers of update and bit that together cost what the one given does: 1/z2 = 1/zu2 + 1/zb2."""
    return noise / math.sqrt(1.0 - BITS_RATIO), noise / math.sqrt(BITS_RATIO)


def next_clip(clip_norm: float, noised_bits: int, n_boxes: int) -> float:
    """The bound of the next release: it moves towards the median norm, by at most a tenth.

    Args:
        noised_bits: the sum of the boxes' bits, each -1 or 1, noise added.
        n_boxes: how many bits are in it, 1 or more.
    """
    within_ratio = min(1.0, max(0.0, 0.5 + 0.5 * noised_bits / n_boxes))
    return clip_norm * math.exp(-RATE * (within_ratio - QUANTILE))


def clip_bit(norm: float, clip_norm: float) -> int:
    """What a device adds to the sum of bits: 1 where its norm is within the bound, else -1.

    A device whose data were left out would add 0: so one device changes the sum by 1.
    """
    return 1 if norm <= clip_norm else -1
