"""Noise that nobody can foretell, in whole steps of a grid.

Design: the sum and the noise are integers. Sums of floats depend on their order, and the low bits of a float that noise
was added to tell of what it was added to (Mironov 2012). On a grid every sum has the same outcomes, and rounding the
Gaussian to it costs nothing: where the sum is on the grid, rounding after the addition and before are the same, so what
is released is a function of what the accountant counts. What is left is that float64 computes the Gaussian (to about
one part in 2^50) and that it ends at 9.4 standard deviations (one in 2^64): docs/privacy.md says what that comes to.

Bits are SHAKE-256 of a secret of 32 bytes that the caller draws from the operating system for each release, uses once
and never keeps: numpy's own generators can be told from their output.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from hybrid.errors import BadMessage

SEED_BYTES: Final = 32
_BLOCK: Final = 1 << 15
_TWO_PI: Final = 2.0 * math.pi
_MAX_STD: Final = 2.0**50


def gaussian_integers(seed: bytes, label: str, n: int, std: float) -> np.ndarray:
    """Gaussian noise rounded to whole steps: int64 (n,).

    Args:
        seed: 32 secret bytes, fresh for each release.
        label: what the noise is for; the same seed gives other noise under another label.
        n: how many.
        std: standard deviation in steps, up to 2^50.

    Raises:
        BadMessage: a seed of another length, or a deviation that is negative, too large or no number.
    """
    if len(seed) != SEED_BYTES or not 0.0 <= std <= _MAX_STD:
        raise BadMessage(f"noise wants {SEED_BYTES} secret bytes and a deviation of 0 to 2^50 steps")
    noise = np.empty(n, np.int64)
    for start, block in _blocks(seed, label, n):
        noise[start : start + len(block)] = np.rint(block * std)
    return noise


def _blocks(seed: bytes, label: str, n: int) -> Iterator[tuple[int, np.ndarray]]:
    """Box and Muller's pairs, from 64 bits each; at most 2^16 at a time, whatever n is."""
    prefix = hashlib.sha256(label.encode()).digest()
    for start in range(0, n, 2 * _BLOCK):
        counter = start.to_bytes(8, "big")
        bits = np.frombuffer(hashlib.shake_256(seed + prefix + counter).digest(16 * _BLOCK), "<u8")
        radius = np.sqrt(-2.0 * np.log((bits[:_BLOCK].astype(np.float64) + 0.5) / 2.0**64))
        angle = bits[_BLOCK:].astype(np.float64) * (_TWO_PI / 2.0**64)
        pair = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
        yield start, pair[: n - start]
