"""Secrets in shares: any `threshold` of them give the secret, fewer say nothing of it.

Source: Shamir, "How to Share a Secret", 1979, over the prime field of 2^256 - 189 (the largest prime below 2^256).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final

from hybrid.errors import CorruptContent

PRIME: Final = (1 << 256) - 189
SHARE_BYTES: Final = 32


def is_element(secret: bytes) -> bool:
    """Whether 32 bytes are a number of the field."""
    return len(secret) == SHARE_BYTES and int.from_bytes(secret, "little") < PRIME


def dealt(secret: bytes, threshold: int, points: Sequence[int], stream: Callable[[int], bytes]) -> list[bytes]:
    """A share of a secret for each point.

    Args:
        secret: a number of the field, 32 bytes.
        threshold: shares that rebuild it.
        points: different whole numbers above 0.
        stream: unpredictable bytes, the coefficients.
    """
    coefficients = [_coefficient(stream) for _ in range(threshold - 1)]
    constant = int.from_bytes(secret, "little")
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares.append(((value + constant) % PRIME).to_bytes(SHARE_BYTES, "little"))
    return shares


def _coefficient(stream: Callable[[int], bytes]) -> int:
    while True:
        text = stream(SHARE_BYTES)
        if is_element(text):
            return int.from_bytes(text, "little")


def rebuilt(shares: Mapping[int, bytes]) -> bytes:
    """The secret of exactly a threshold of shares, by their points.

    Raises:
        CorruptContent: a share is no number of the field.
    """
    points = tuple(sorted(shares))
    if not all(is_element(share) for share in shares.values()):
        raise CorruptContent("a share is no number of the field: leave its device out")
    total = sum(
        weight * int.from_bytes(shares[point], "little") for point, weight in zip(points, _weights(points), strict=True)
    )
    return (total % PRIME).to_bytes(SHARE_BYTES, "little")


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange's weights at 0."""
    weights = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
