"""The choice among all ways to answer one request: a pure function of recorded inputs.

Design: no clock, no I/O, no state. What each way costs comes from `weighing.py`; here the cheapest is held against the
plan in use. The same inputs always give the same decision, so that one can be replayed from its record.
"""

from math import inf, isclose
from typing import Final

import msgspec

from hybrid.schedule.beliefs import Decision, Inputs
from hybrid.schedule.plan import Plan
from hybrid.schedule.table import Table
from hybrid.schedule.weighing import Weighing

SWITCH_REGRET_RATIO: Final = 0.5
"""The present plan is left once keeping it has cost this share of a request..."""

SWITCH_REGRET_S: Final = 0.001
"""...and at least so much, beside the request's own share."""

DWELL_S: Final = 10.0
DWELL_FACTOR: Final = 4.0
"""A plan that was taken up less than `DWELL_S` ago is left for this many times that regret only."""

CHANGE_GAIN_RATIO: Final = 0.02
"""After a change the plan is left at once for one that is better by this share."""

SURE_GAIN_RATIO: Final = 0.35
"""A plan is left at once for one that is better by this share: smoothed estimates do not err by so much."""

TRIAL_PAUSE_S: Final = 1.0
"""A gateway that was heard of so lately needs no trial."""

CHEAP_RATIO: Final = 0.01
CHEAP_PAUSE_RATIO: Final = 3.0
"""A trial that costs next to nothing (a race on several cores) waits only until the link is free of it."""

HOPELESS_PAUSE_S: Final = 10.0
HOPELESS_REQUESTS: Final = 25
"""Trials of a way that would hardly win come at pauses that double, up to this: so seldom that the slowest twentieth of
the requests does not feel them."""

REGRET_DECAY: Final = 0.5


def decide(inputs: Inputs, table: Table) -> Decision:
    """The plan to take now: the cheapest, or the present one while leaving it is not worth it.

    Keeping a plan that is not the cheapest adds up its regret; the plan is left when that sum has reached what a change
    is worth (the rent-or-buy rule: total regret stays within twice that of knowing the future, Karlin et al.,
    Algorithmica 1988), and at once where something jumped.
    """
    weighing = Weighing(inputs, table)
    best, least = weighing.cheapest()
    kept = best if inputs.current < 0 else inputs.current
    if best < 0:
        return Decision(index=0, is_switch=inputs.current > 0, inputs=inputs)
    regret_s = REGRET_DECAY * inputs.regret_s if best == inputs.current else 0.0
    if kept != best:
        sure = CHANGE_GAIN_RATIO if inputs.is_changed else SURE_GAIN_RATIO
        # Above least / (1 - sure) the gain is above its limit whatever the exact cost.
        kept_cost = inf if weighing.surely_above(kept, least / (1 - sure)) else weighing.cost_of(kept)
        gain = kept_cost - least
        regret_s = inputs.regret_s + gain
        limit = SWITCH_REGRET_RATIO * kept_cost + SWITCH_REGRET_S
        if inputs.now_s - inputs.current_since_s < DWELL_S:
            limit *= DWELL_FACTOR
        if kept_cost == inf or regret_s > limit or gain > sure * kept_cost:
            plan = weighing.plan_of(best)
            assert plan is not None
            return _decision(plan, best, inputs, 0.0)
    plan = weighing.plan_of(kept)
    assert plan is not None
    return _or_trial(_decision(plan, best, inputs, regret_s), plan, weighing)


def _or_trial(decision: Decision, kept: Plan, weighing: Weighing) -> Decision:
    """The decision, or a trial of a remote way that was not heard of for a while, where enough was saved up for it.

    What is dearer by a little is tried often, what is much dearer seldom: trials cost a fixed small share of all.
    """
    inputs = weighing.inputs
    if kept.index not in weighing.locals or inputs.n_in_flight or inputs.n_device_runs:
        return decision
    race = _free_race(kept, weighing)
    if race is not None:
        return _trial(race, decision, kept)
    if inputs.saved <= 0:
        return decision
    if all(gateway.silent_s < TRIAL_PAUSE_S for gateway in inputs.gateways):
        return decision
    other, hope = (None, inf) if inputs.prices.is_throughput else weighing.most_promising()
    if other is None or hope > kept.cost:
        return decision
    left_s = inf if inputs.deadline_left_s is None else inputs.deadline_left_s
    is_due = weighing.belief(other.index).silent_s >= _pause_s(other, kept, weighing)
    if inputs.rule >= 2 and not inputs.prices.is_guarded and inputs.deadline_left_s is None:
        other = weighing.unhurried(other, kept.cost)
    is_affordable = other.cost - kept.cost <= inputs.saved and other.latest_s <= left_s
    return _trial(other, decision, kept) if is_affordable and is_due else decision


def _pause_s(other: Plan, kept: Plan, weighing: Weighing) -> float:
    """Seconds of silence after which a trial of the other way is due."""
    inputs = weighing.inputs
    if other.cost - kept.cost <= CHEAP_RATIO * kept.cost:
        return max(TRIAL_PAUSE_S, CHEAP_PAUSE_RATIO * other.remote_s)
    if weighing.chance(other.index, kept.cost):
        return TRIAL_PAUSE_S
    most_s = max(HOPELESS_PAUSE_S, HOPELESS_REQUESTS * inputs.gap_s)
    return min(most_s, TRIAL_PAUSE_S * 2.0 ** min(inputs.n_trials, 10))


def _free_race(kept: Plan, weighing: Weighing) -> Plan | None:
    """A race that costs this device nothing, where the remote side wins if its link is as good as it has been.

    The device answers no later for it, since other cores encode and send; so it needs no fair chance, and what comes of
    it tells when the link is good again.
    """
    inputs = weighing.inputs
    if inputs.rule < 2 or inputs.n_cores < 2 or not inputs.prices.is_guarded or inputs.deadline_left_s is not None:
        return None
    race, hope = weighing.race()
    if race is None or race.hedge_s != 0.0 or hope > kept.cost:
        return None
    return None if weighing.belief(race.index).backlog_s > 0 else race


def _trial(other: Plan, decision: Decision, kept: Plan) -> Decision:
    """This request takes another way than the plan in use."""
    inputs = decision.inputs
    assert inputs is not None
    return msgspec.structs.replace(
        _decision(other, other.index, inputs, decision.regret_s),
        best=decision.best,
        is_switch=False,
        is_trial=True,
        trial_cost=max(0.0, (other.cost or 0.0) - (kept.cost or 0.0)),
    )


def replay(inputs: Inputs, table: Table) -> Decision:
    """The decision of a log once more.

    Raises:
        ValueError: the inputs refer to another table.
    """
    if inputs.table != table.id:
        raise ValueError(
            f"the decision refers to the table {inputs.table}, this is {table.id}; find its line in the log"
        )
    return decide(inputs, table)


def agrees(again: Decision, logged: Decision) -> bool:
    """Whether a replay chose what was logged, at the same cost, but for what floating point rounds."""
    if again.index != logged.index:
        return False
    pairs = ((again.hedge_s, logged.hedge_s), (again.cost, logged.cost))
    return all(
        one == other if one is None or other is None else isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)
        for one, other in pairs
    )


def _decision(plan: Plan, best: int, inputs: Inputs, regret_s: float) -> Decision:
    return Decision(
        index=plan.index,
        hedge_s=plan.hedge_s,
        predicted_s=plan.predicted_s,
        expected_s=plan.expected_s,
        latest_s=plan.latest_s,
        patience_s=plan.patience_s,
        cost=plan.cost,
        energy_j=plan.energy_j,
        remote_s=plan.remote_s,
        best=best,
        regret_s=regret_s,
        is_switch=plan.index != inputs.current and inputs.current >= 0,
        inputs=inputs,
    )
