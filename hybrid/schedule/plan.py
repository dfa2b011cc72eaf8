"""What is expected of one prospect with its best hedge time, and the bounds that every plan keeps."""

from typing import Final

import msgspec

SMALL_BYTES: Final = 8 * 1024
"""A message below this takes a round trip, whatever the goodput: it is predicted though no goodput is known."""

K_SIGMA: Final = 3.0
"""A deadline is held against mean + k * sigma. One-sided Chebyshev (Cantelli 1928): P(X >= mean + k sigma) is at most
1 / (1 + k^2), so at most 10 % whatever the distribution; 0.13 % for a normal one."""

RESERVE_S: Final = 0.010
"""Kept free before a deadline: waking a thread takes milliseconds on a busy machine."""

TINY_PRICE, TINY_PRICE_J = 1e-9, 1e-3
"""Prices of a byte and a joule that only break ties; bounds leave them out."""

HOPE_FACTOR: Final = 64.0
"""A link may become so many times faster while nobody looks."""

LEAST_PATIENCE_S: Final = 0.5
PATIENCE_RATIO: Final = 3.0

GUARD_RATIO: Final = 0.15
"""Objective latency: a hedge starts early enough that a dead link costs at most this share of the local seconds."""

BUSY_PRICE: Final = 10.0
"""Throughput: a second of computing that is not needed delays the requests behind it."""

LEARNING_RATIO: Final = 0.04
"""Objective latency: what a race teaches of the link is worth this share of the local seconds, while the remote side
still has a fair chance: without it a link that has become better is noticed late."""

FAIR_CHANCE: Final = 0.25


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is expected of one prospect with its best hedge time; see `Decision` for the fields."""

    index: int
    cost: float
    hedge_s: float | None = None
    predicted_s: float
    expected_s: float
    latest_s: float
    patience_s: float = 0.0
    energy_j: float
    remote_s: float = 0.0


def patience_s(remote_s: float) -> float:
    """Seconds from departure after which a remote side of which so much was expected counts as failed."""
    return max(PATIENCE_RATIO * remote_s, remote_s + LEAST_PATIENCE_S)
