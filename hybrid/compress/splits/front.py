"""Which ways are worth having: those that no other beats in cost and drop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

GAIN_RATIO: Final = 0.95
"""What has to be permitted costs at most this share of whatever loses no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A way, or the device alone, by what it costs.

    Attributes:
        id: of the way.
        cost: seconds or joules of a request.
        high: upper end of its drop's interval; 0 for what changes nothing.
        is_free: whether a session may take it without being told so.
    """

    id: str
    cost: float
    high: float
    is_free: bool = False


def beaten(every: Sequence[Weighed]) -> dict[str, Weighed]:
    """Those that are not worth having, each with the one that beats it: as exact, and as cheap."""
    best: Weighed | None = None
    found: dict[str, Weighed] = {}
    for each in sorted(every, key=lambda one: (one.high, one.cost, not one.is_free, one.id)):
        if best is not None and each.cost > (1.0 if each.is_free else GAIN_RATIO) * best.cost:
            found[each.id] = best
        else:
            best = each
    return found
