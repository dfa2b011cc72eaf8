"""Every prospect of one decision with its plan, in words for people: what it would cost, and why it is taken or not."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from hybrid.schedule.beliefs import Inputs
from hybrid.schedule.plan import Plan
from hybrid.schedule.prospect import Candidate, Constraints, Prospect, refusal
from hybrid.schedule.weighing import Weighing

MOST_ROWS: Final = 40
"""More are not read by anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One way that could be taken.

    Attributes:
        prospect: with its profiled parts.
        cost: expected cost in seconds (latency + joules and bytes at their prices), None where it cannot be had.
        predicted_s: median of the seconds of the answer, hedge included.
        hedge_s: when the device would begin beside it, in seconds from departure; None: never.
        energy_j: modelled joules.
        chosen: whether it is taken.
        reason: in words.
    """

    prospect: Prospect
    cost: float | None
    predicted_s: float | None
    hedge_s: float | None
    energy_j: float | None
    chosen: bool
    reason: str


def alternatives(weighing: Weighing, chosen: int) -> tuple[Alternative, ...]:
    """All prospects of a decision, that index being chosen: the device's, the chosen one, then the cheapest first."""
    best = weighing.best()
    least = best.cost if best is not None else None
    rows = [
        _alternative(weighing, prospect, weighing.plan_of(index), least, is_chosen=index == chosen)
        for index, prospect in enumerate(weighing.table.prospects)
    ]
    return tuple(sorted(rows, key=_order))


def candidates(rows: Iterable[Alternative], others: Iterable[Prospect], constraints: Constraints) -> list[Candidate]:
    """The same for the callers of a session, with prospects that are not offered yet; at most `MOST_ROWS`."""
    found = [_candidate(row) for row in rows]
    for prospect in others:
        reason = refusal(prospect, constraints) or "not verified yet"
        found.append(_candidate(_unavailable(prospect, reason, is_chosen=False)))
    n_hidden = len(found) - MOST_ROWS
    if n_hidden > 0:
        del found[MOST_ROWS:]
        found[-1] = replace(found[-1], reason=f"{found[-1].reason} ({n_hidden} more ways are not shown)")
    return found


def _order(row: Alternative) -> tuple[bool, bool, float]:
    return row.prospect.placement != "local", not row.chosen, row.cost if row.cost is not None else inf


def _alternative(
    weighing: Weighing, prospect: Prospect, plan: Plan | None, least: float | None, *, is_chosen: bool
) -> Alternative:
    if plan is None:
        return _unavailable(prospect, _why_not(prospect, weighing.inputs), is_chosen=is_chosen)
    return Alternative(
        prospect=prospect,
        cost=plan.cost,
        predicted_s=plan.predicted_s,
        hedge_s=plan.hedge_s,
        energy_j=plan.energy_j,
        chosen=is_chosen,
        reason=_compared(plan.cost - least if least is not None else 0.0, is_chosen=is_chosen),
    )


def _unavailable(prospect: Prospect, reason: str, *, is_chosen: bool) -> Alternative:
    return Alternative(
        prospect=prospect, cost=None, predicted_s=None, hedge_s=None, energy_j=None, chosen=is_chosen, reason=reason
    )


def _candidate(row: Alternative) -> Candidate:
    prospect = row.prospect
    return Candidate(
        placement=prospect.placement,
        cut=prospect.cut,
        codec=prospect.codec,
        gateway=prospect.gateway,
        predicted_s=row.predicted_s,
        hedge_s=row.hedge_s,
        bytes_up=prospect.bytes_up,
        accuracy_drop=prospect.accuracy_drop,
        chosen=row.chosen,
        reason=row.reason,
        variant=prospect.variant,
    )


def _why_not(prospect: Prospect, inputs: Inputs) -> str:
    """Why a way cannot be had at all at that moment."""
    refused = refusal(prospect, inputs.constraints)
    if refused:
        return refused
    if prospect.head_s is None or prospect.tail_s is None:
        return "not timed yet"
    belief = next((belief for belief in inputs.gateways if belief.url == prospect.gateway), None)
    if prospect.gateway and (belief is None or not belief.is_usable):
        return "its gateway cannot be used: no connection, or left alone after failures"
    return "nothing is known of its link"


def _compared(above_s: float, *, is_chosen: bool) -> str:
    if not is_chosen:
        return f"costs {1e3 * above_s:.1f} ms more than the cheapest" if above_s > 0 else "as cheap as the one taken"
    if above_s <= 0:
        return "the cheapest"
    return f"kept: {1e3 * above_s:.1f} ms above the cheapest is not worth a change yet"
