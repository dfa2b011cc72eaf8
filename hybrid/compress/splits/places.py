"""Cuts that are worth a trial: those that would win if their head and their bytes became as small as they may."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from hybrid.compress.splits.front import GAIN_RATIO
from hybrid.compress.splits.heads import MeasuredCut
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
        head_ratio: of a head's seconds, as its share of the work lets expect them.
        bytes_ratio: of what crosses, raw.
    """

    head_ratio: float
    bytes_ratio: float


FLOAT_HOPE: Final = Hope(head_ratio=0.5, bytes_ratio=1 / 16)
"""Work is no time: some operators take half of what their share lets expect. Four bits of 32, halved once more by the
entropy stage."""

INT8_HOPE: Final = Hope(head_ratio=0.2, bytes_ratio=1 / 16)
LEARNED_HOPE: Final = Hope(head_ratio=0.5, bytes_ratio=1 / 128)
"""A quarter of a bit of 32."""


def least_cost(cut: Cut, prices: Prices, hope: Hope, known: MeasuredCut | None = None) -> float:
    """What a request costs at a cut if the hope comes true; of a cut whose heads are timed only bytes are hoped for."""
    if known is None:
        head_s = hope.head_ratio * cut.head_work_ratio * prices.local_s
        tail_s = hope.head_ratio * (1 - cut.head_work_ratio) * prices.gateway_s
    else:
        head_s, tail_s = min(known.own_s, known.int8_s or known.own_s), known.tail_s
    spent = prices.divided(
        head_s=head_s,
        encode_s=0.0,
        up_bytes=hope.bytes_ratio * cut.n_bytes,
        decode_s=0.0,
        tail_s=tail_s,
        down_bytes=cut.reply_bytes,
    )
    return prices.cost(spent)


def hopeful(
    cuts: Sequence[Cut],
    prices: Prices,
    hope: Hope,
    rival_cost: float,
    *,
    most: int = MOST_CUTS,
    known: Mapping[str, MeasuredCut] | None = None,
) -> list[Cut]:
    """The cuts at which a rival of that cost may be beaten, the likeliest first, and not all beside one another.

    Args:
        cuts: to choose from; those of unknown size are none.
        prices: of a request.
        hope: what may come true there.
        rival_cost: of the cheapest that is known.
        most: so many.
        known: those that were measured, by id.
    """
    timed = known or {}
    costs = {cut.id: least_cost(cut, prices, hope, timed.get(cut.id)) for cut in cuts if cut.sized}
    found: list[Cut] = []
    for cut in sorted((cut for cut in cuts if cut.sized), key=lambda one: costs[one.id]):
        if len(found) == most or costs[cut.id] > GAIN_RATIO * rival_cost:
            break
        if all(abs(cut.head_work_ratio - other.head_work_ratio) >= _LEAST_APART for other in found):
            found.append(cut)
    return found
