"""What a joule and a byte are worth in seconds: an objective is a set of prices."""

from typing import Final

import msgspec

from hybrid.schedule.options import Objective


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of what a plan uses beside time; the cost of a plan is `latency_s + energy_j * x + bytes * y`.

    Attributes:
        s_per_j: seconds of latency that one joule of the device is worth.
        s_per_byte: seconds of latency that one byte on the link is worth.
        is_throughput: whether the slowest stage is minimised instead of the latency.
        is_guarded: whether a hedge always starts early enough that a dead link costs little beside the local seconds.
    """

    s_per_j: float = 0.0
    s_per_byte: float = 0.0
    is_throughput: bool = False
    is_guarded: bool = False


PRICES: Final[dict[Objective, Prices]] = {
    # Next to nothing, so that of two equally fast plans the thriftier one is taken; a race is worth it nearly always.
    "latency": Prices(s_per_j=1e-4, s_per_byte=1e-11, is_guarded=True),
    "throughput": Prices(is_throughput=True),
    # Joules dominate: at 3 W above idle a second of computing weighs as 30 s of waiting.
    "energy": Prices(s_per_j=10.0, s_per_byte=1e-11),
    # A metered link: a megabyte is worth ten seconds; computing on the device is next to free.
    "bytes": Prices(s_per_j=1e-4, s_per_byte=1e-5),
}
"""One default for each objective; the front between latency and energy is drawn by other values of `s_per_j`."""

BATTERY_S_PER_J: Final = 0.05
"""Least price of a joule while the device runs on its battery: a second of computing weighs as 0.2 s of waiting."""


def prices_for(objective: Objective, *, on_battery: bool = False) -> Prices:
    """The prices of an objective; on battery a race is not free any more, so that hedges start late."""
    prices = PRICES[objective]
    if not on_battery or prices.s_per_j >= BATTERY_S_PER_J:
        return prices
    return msgspec.structs.replace(prices, s_per_j=BATTERY_S_PER_J, is_guarded=False)
