"""A recorded decision made once more, with all that was to be chosen from, what each would have cost, and why not."""

from dataclasses import dataclass

from hybrid.errors import CorruptContent
from hybrid.schedule.beliefs import Inputs
from hybrid.schedule.deciding import agrees, replay
from hybrid.schedule.prospect import Prospect, refusal
from hybrid.schedule.table import Table
from hybrid.schedule.weighing import Weighing
from hybrid.session.decision_log import RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One way that could have been taken.

    Attributes:
        prospect: with its profiled parts.
        cost: expected cost in seconds (latency + joules and bytes at their prices), None where it could not be had.
        predicted_s: median of the seconds of the answer, hedge included.
        hedge_s: when the device would have begun beside it, in seconds from departure; None: never.
        energy_j: modelled joules.
        chosen: whether it was taken.
        reason: in words.
    """

    prospect: Prospect
    cost: float | None
    predicted_s: float | None
    hedge_s: float | None
    energy_j: float | None
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One request of a log, replayed.

    Attributes:
        record: as it was logged.
        alternatives: in the order of the table; empty where the placement was forced.
        is_same: whether the replay chose what the session had chosen, at the same cost; None where it was forced.
    """

    record: RequestRecord
    alternatives: tuple[Alternative, ...]
    is_same: bool | None


def replayed(record: RequestRecord, tables: dict[str, Table]) -> Replayed:
    """The decision of a request once more, with its alternatives.

    Raises:
        CorruptContent: the log does not hold the prospects that it refers to.
    """
    inputs = record.decision.inputs
    if inputs is None:
        return Replayed(record=record, alternatives=(), is_same=None)
    table = tables.get(inputs.table)
    if table is None:
        raise CorruptContent(
            f"request {record.n} refers to the prospects {inputs.table}, which are not in this log; it may have begun"
            " in the file that was put aside (PATH.1)",
            path=inputs.table,
        )
    again = replay(inputs, table)
    weighing = Weighing(inputs, table)
    alternatives = tuple(
        _alternative(weighing, index, prospect, record.decision.index) for index, prospect in enumerate(table.prospects)
    )
    return Replayed(record=record, alternatives=alternatives, is_same=agrees(again, record.decision))


def _alternative(weighing: Weighing, index: int, prospect: Prospect, chosen: int) -> Alternative:
    plan = weighing.plan_of(index)
    best = weighing.best()
    least = best.cost if best is not None else None
    reason = _why_not(prospect, weighing.inputs)
    if plan is not None:
        reason = _compared(index == chosen, plan.cost, least)
    return Alternative(
        prospect=prospect,
        cost=plan.cost if plan is not None else None,
        predicted_s=plan.predicted_s if plan is not None else None,
        hedge_s=plan.hedge_s if plan is not None else None,
        energy_j=plan.energy_j if plan is not None else None,
        chosen=index == chosen,
        reason=reason,
    )


def _why_not(prospect: Prospect, inputs: Inputs) -> str:
    """Why a way could not be had at all at that moment."""
    refused = refusal(prospect, inputs.constraints)
    if refused:
        return refused
    if prospect.head_s is None or prospect.tail_s is None:
        return "not timed yet"
    belief = next((belief for belief in inputs.gateways if belief.url == prospect.gateway), None)
    if prospect.gateway and (belief is None or not belief.is_usable):
        return "its gateway could not be used then: no connection, or left alone after failures"
    return "nothing was known of its link"


def _compared(is_chosen: bool, cost: float, least: float | None) -> str:  # noqa: FBT001
    above_s = cost - least if least is not None else 0.0
    if not is_chosen:
        return f"costs {1e3 * above_s:.1f} ms more than the cheapest" if above_s > 0 else "as cheap as the one taken"
    if above_s <= 0:
        return "the cheapest"
    return f"kept: {1e3 * above_s:.1f} ms above the cheapest is not worth a change yet"
