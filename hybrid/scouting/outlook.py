"""What may be expected of a crossing: once it is measured, and before anything of it is."""

from dataclasses import replace
from time import monotonic

from hybrid.route.allowance import LOSSLESS
from hybrid.route.route import Route
from hybrid.route.way import Crossing, Way
from hybrid.schedule.prospect import Constraints, Prospect
from hybrid.schedule.sum_of_parts import predicted_s

UNKNOWN_S = float("inf")


def is_permitted(prospect: Prospect, constraints: Constraints) -> bool:
    """Whether its codec costs no more accuracy than it may."""
    drop = prospect.accuracy_drop
    return constraints.lossy_allowed or (drop is not None and drop <= constraints.max_accuracy_drop)


def best_s(route: Route, crossing: Crossing, constraints: Constraints) -> float:
    """Expected seconds of its best codec; unknown for one that was not measured, or has an obstacle."""
    view = crossing.holding.view(monotonic())
    if view is None or not crossing.can_run:
        return UNKNOWN_S
    usable = (way.prospect for way in crossing.ways if not way.prospect.obstacle)
    known = (
        predicted_s(prospect, route.device_speed_ratio, view)
        for prospect in usable
        if is_permitted(prospect, constraints)
    )
    return min((total_s for total_s in known if total_s is not None), default=UNKNOWN_S)


def hope_s(route: Route, crossing: Crossing, constraints: Constraints, head_s: float | None) -> float:
    """An estimate before anything is timed here.

    Args:
        route: the crossing's.
        crossing: what is hoped of.
        constraints: what a plan must keep.
        head_s: what the head is expected to take; None counts with its share of the work.
    """
    prospects = [way.prospect for way in crossing.ways if is_permitted(way.prospect, constraints)]
    prospect = min(prospects or [crossing.ways[0].prospect], key=lambda prospect: prospect.bytes_up)
    if prospect.head_s is not None:
        head_s = prospect.head_s
    elif head_s is None:
        head_s = (crossing.cut.head_work_ratio if crossing.cut else 0.0) * (route.local_s or 0.0)
    view = crossing.holding.view(monotonic())
    network_s = view.link.transfer_s(prospect.bytes_up, prospect.bytes_down) if view else None
    return head_s * route.device_speed_ratio + (network_s or 0.0) + (prospect.tail_s or 0.0)


def exact_way(crossing: Crossing) -> Way:
    """The lightest way that gives every bit back, for comparing: a lossy codec is meant to differ. A split has one."""
    if crossing.split is not None:
        return crossing.ways[0]
    exact = [way for way in crossing.ways if way.prospect.codec in LOSSLESS]
    if exact:
        return min(exact, key=lambda way: way.prospect.bytes_up)
    return Way(replace(crossing.ways[0].prospect, codec="none"), crossing)


def forbid(crossing: Crossing, reason: str) -> None:
    """Notes why none of its ways can be used; an empty reason lifts that."""
    for way in crossing.ways:
        way.prospect = replace(way.prospect, obstacle=reason)
