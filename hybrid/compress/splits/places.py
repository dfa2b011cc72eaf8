"""Cuts that are worth a trial: those that would win if their head and their bytes became as small as they may."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hybrid.compress.splits.front import GAIN_RATIO
from hybrid.compress.splits.prices import Prices
from hybrid.partition.cut import Cut

MOST_CUTS: Final = 3
"""At which heads are made, timed and tried."""

_LEAST_APART: Final = 0.05
"""In the head's share of the work, between two cuts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hope:
    """What may be hoped for before anything is made.

    Attributes:
        head_ratio: of a head's seconds.
        bytes_ratio: of what crosses, raw.
    """

    head_ratio: float
    bytes_ratio: float


FLOAT_HOPE: Final = Hope(head_ratio=1.0, bytes_ratio=1 / 16)
"""Four bits of 32, halved once more by the entropy stage."""

INT8_HOPE: Final = Hope(head_ratio=0.25, bytes_ratio=1 / 16)
LEARNED_HOPE: Final = Hope(head_ratio=1.0, bytes_ratio=1 / 128)
"""A quarter of a bit of 32."""


def least_cost(cut: Cut, prices: Prices, hope: Hope) -> float:
    """What a request costs at a cut if the hope comes true."""
    spent = prices.divided(
        head_s=hope.head_ratio * cut.head_work_ratio * prices.local_s,
        encode_s=0.0,
        up_bytes=hope.bytes_ratio * cut.n_bytes,
        decode_s=0.0,
        tail_s=(1 - cut.head_work_ratio) * prices.gateway_s,
        down_bytes=cut.reply_bytes,
    )
    return prices.cost(spent)


def hopeful(cuts: Sequence[Cut], prices: Prices, hope: Hope, rival_cost: float, most: int = MOST_CUTS) -> list[Cut]:
    """The cuts at which a rival of that cost may be beaten, the likeliest first, and not all beside one another."""
    costs = {cut.id: least_cost(cut, prices, hope) for cut in cuts if cut.sized}
    found: list[Cut] = []
    for cut in sorted((cut for cut in cuts if cut.sized), key=lambda one: costs[one.id]):
        if len(found) == most or costs[cut.id] > GAIN_RATIO * rival_cost:
            break
        if all(abs(cut.head_work_ratio - other.head_work_ratio) >= _LEAST_APART for other in found):
            found.append(cut)
    return found
