"""Which shadow request would teach most for least, and whether it could matter at all."""

from collections.abc import Callable
from math import inf
from typing import Final

import msgspec

from hybrid.cost.energy import Power
from hybrid.cost.link_view import LinkView
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.prices import Prices
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.table import Table

UNKNOWN_BPS: Final = 10e6
"""Assumed of a link that was never measured, to rank what may be sent over it."""

HOPE_FACTOR: Final = 64.0
"""A link may become so many times faster while nobody looks."""

LEAST_PAUSE_S: Final = 5.0
MOST_PAUSE_S: Final = 15.0
LINK_SHARE: Final = 0.15
"""Probes may fill this share of a link..."""

COST_SHARE: Final = 0.015
"""...and cost this share of what the requests cost, in the objective's own unit."""


IDLE_LINK_SHARE: Final = 0.1
"""A second of a link that nobody needs weighs this much beside one of the device."""


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow request that is due.

    Attributes:
        index: of the prospect that it takes.
        silent_s: seconds since its gateway was heard of.
        cost: what it costs, in the objective's unit.
        decision: what is expected of it, for `Scheduler.observe_remote`.
    """

    index: int
    silent_s: float
    cost: float
    decision: Decision


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest way through a gateway that could matter.

    Attributes:
        index: of the prospect.
        cost: of sending it, in the objective's unit.
        seconds: of the link and the device that it takes.
    """

    index: int
    cost: float
    seconds: float


def errand(
    table: Table,
    url: str,
    link: LinkView,
    *,
    prices: Prices,
    power: Power,
    constraints: Constraints,
    device_speed_ratio: float,
    suits: Callable[[Prospect], bool] = lambda _prospect: True,
) -> Errand | None:
    """What to send through a gateway to learn what it carries; None where nothing could matter.

    Nothing matters where the device alone would be cheaper even if the link's goodput were several times as high.
    Prospects that do not suit the errand are left out.
    """
    live = table.live(constraints)
    up_bps = link.uplink_bps or link.downlink_bps or UNKNOWN_BPS
    down_bps = link.downlink_bps or link.uplink_bps or UNKNOWN_BPS
    local_s = table.prospects[0].head_s if 0 not in live.barred_here else None
    best: Errand | None = None
    least = least_hope = inf
    for row, index in enumerate(table.remote):
        prospect = table.prospects[index]
        if prospect.gateway != url or row not in live.permitted or prospect.head_s is None:
            continue
        if constraints.uplink_left_bytes is not None and prospect.bytes_up > constraints.uplink_left_bytes:
            continue
        if not suits(prospect):
            continue
        here_s = (prospect.head_s + prospect.encode_s) * device_speed_ratio
        up_s, down_s = 8 * prospect.bytes_up / up_bps, 8 * prospect.bytes_down / down_bps
        moving_s = up_s + down_s
        cost = here_s * (1 + prices.s_per_j * power.compute_w)
        radio_j = (power.transmit_w - power.idle_w) * up_s + (power.receive_w - power.idle_w) * down_s
        cost += prices.s_per_j * max(0.0, radio_j)
        cost += prices.s_per_byte * (prospect.bytes_up + prospect.bytes_down)
        waited_s = (link.rtt_s or 0.0) + (prospect.tail_s or 0.0) + moving_s / HOPE_FACTOR
        least_hope = min(least_hope, cost + waited_s * (1 + prices.s_per_j * power.idle_w))
        if cost + IDLE_LINK_SHARE * moving_s < least:
            least = cost + IDLE_LINK_SHARE * moving_s
            best = Errand(index=index, cost=cost, seconds=here_s + moving_s)
    if local_s is None or prices.is_throughput:
        return best
    return best if least_hope <= local_s * device_speed_ratio * (1 + prices.s_per_j * power.compute_w) else None


def pause_s(seconds: float) -> float:
    """How long a gateway may be silent before a probe of so many seconds is due."""
    return min(MOST_PAUSE_S, max(LEAST_PAUSE_S, seconds / LINK_SHARE))
