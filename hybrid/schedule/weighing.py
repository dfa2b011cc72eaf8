"""What each way to answer a request costs at one moment: bounds for all of them, exact plans for those that matter.

Design: expected costs of all prospects are bounded from below at once (`bounding.py`); then exact costs, the best hedge
time included, are computed in the order of the bounds until no bound can beat the best one found. So the result is that
of trying everything, at the price of trying a few.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from math import inf, isfinite, isnan
from typing import NamedTuple

import msgspec
import numpy as np

from hybrid.schedule.beliefs import GatewayBelief, Inputs
from hybrid.schedule.bounding import Floats, hopes, lower_bounds
from hybrid.schedule.hedge import Race, best_hedge, expected_cost
from hybrid.schedule.moment import Moment, Path
from hybrid.schedule.plan import (
    FAIR_CHANCE,
    GUARD_RATIO,
    HOPE_FACTOR,
    LEARNING_RATIO,
    RESERVE_S,
    Plan,
    patience_s,
)
from hybrid.schedule.table import Block, Table


class Parts(NamedTuple):
    """Seconds of one remote prospect at this moment.

    Attributes:
        path: to its gateway.
        here_s: on the device before it could go on by itself.
        lead_s: from then on until departure: encoding on another core, else nothing.
        up_s, down_s: of its bytes.
        lasting_s: from departure to the answer when the plan is kept.
        remote_s: the same for this request.
        rest_s: of the device from a hedge on; an attempt takes its share of the device.
        paid: cost for certain, beside the time from departure on.
        sure: the same as bounds count it, without what only breaks ties.
    """

    path: Path
    here_s: float
    lead_s: float
    up_s: float
    down_s: float
    lasting_s: float
    remote_s: float
    rest_s: float
    paid: float
    sure: float


class Weighing:
    """One moment's prospects, weighed: bounds for all, exact plans on demand."""

    def __init__(self, inputs: Inputs, table: Table) -> None:
        self.inputs = inputs
        self.table = table
        self._moment = Moment(inputs, table)
        self._live = table.live(inputs.constraints)
        local = [plan for i in table.local if (plan := self._local_plan(i)) is not None]
        self.local: Plan | None = min(local, key=_cost_of, default=None)
        self.locals = {plan.index: plan for plan in local}
        self._rest_s = self.local.expected_s if self.local is not None else inf
        is_idle = not inputs.n_in_flight and not inputs.n_device_runs and self.local is not None
        self._credit_s = LEARNING_RATIO * self._rest_s if is_idle and inputs.prices.is_guarded else 0.0
        self._bounds: list[tuple[list[float], tuple[int, ...]]] = []
        self._parts_of: dict[int, Parts | None] = {}
        self._offers: dict[int, tuple[float, float | None]] = {}

    # -- here

    def _local_plan(self, index: int) -> Plan | None:
        prospect, inputs, moment = self.table.prospects[index], self.inputs, self._moment
        if prospect.head_s is None or index in self._live.barred_here:
            return None
        seconds = prospect.head_s * moment.scale
        latest_s = seconds * moment.slower + RESERVE_S
        cost = seconds * moment.here_price if not inputs.prices.is_throughput else seconds
        return Plan(
            index=index,
            cost=cost + self._penalty(latest_s),
            predicted_s=seconds,
            expected_s=seconds,
            latest_s=latest_s,
            energy_j=inputs.power.compute_w * seconds,
        )

    def _penalty(self, latest_s: float) -> float:
        """What missing the deadline costs: more than any delay within it, and more the later."""
        left_s = self.inputs.deadline_left_s
        return 0.0 if left_s is None or latest_s <= left_s else 1e3 * (1 + latest_s - left_s)

    # -- there

    def _parts(self, row: int) -> Parts | None:
        """What a remote prospect takes; None where it cannot be used or predicted now."""
        if row in self._parts_of:
            return self._parts_of[row]
        numbers, moment = self.table.rows[row], self._moment
        path = moment.paths[numbers.place]
        left_bytes = self.inputs.constraints.uplink_left_bytes
        is_allowed = row in self._live.permitted and (left_bytes is None or numbers.bytes_up <= left_bytes)
        is_timed = not isnan(numbers.head_s) and not isnan(numbers.tail_s)
        found = None
        if path is not None and is_allowed and is_timed and path.carries(numbers):
            found = self._known_parts(row, path)
        self._parts_of[row] = found
        return found

    def _known_parts(self, row: int, path: Path) -> Parts:
        head_s, encode_s, bytes_up, bytes_down, tail_s, own_rest_s, _ = self.table.rows[row]
        moment, belief, prices = self._moment, path.belief, self.inputs.prices
        here_s, lead_s = head_s * moment.scale, encode_s * moment.scale
        if not moment.is_beside:
            here_s, lead_s = here_s + lead_s, 0.0
        up_s, down_s = bytes_up * path.up_s, bytes_down * path.down_s
        done = here_s * moment.here_price + lead_s * moment.lead_price
        sure = done + up_s * moment.sure_up_price + moment.byte_price * (bytes_up + bytes_down)
        paid = done + up_s * moment.up_price + down_s * moment.down_price + prices.s_per_byte * (bytes_up + bytes_down)
        paid += moment.attempt_price * self.inputs.attempt_s
        lasting_s = remote_s = path.fixed_s + up_s + down_s + tail_s * belief.speed_ratio
        for waits, n_bytes in ((path.waits_up, bytes_up), (path.waits_down, bytes_down)):
            if waits is not None:
                waited_s = belief.cold_ratio * waits.of(n_bytes)
                remote_s += waited_s
                lasting_s += belief.lasting_ratio * waited_s
        rest_s = (own_rest_s * moment.scale if isfinite(own_rest_s) else self._rest_s) + self.inputs.attempt_s
        return Parts(path, here_s, lead_s, up_s, down_s, lasting_s, remote_s, rest_s, paid, sure)

    def _offer(self, row: int, parts: Parts) -> tuple[float, float | None]:
        """The cost of a remote prospect with its best hedge time (before a deadline's penalty), and that time."""
        known = self._offers.get(row)
        if known is None:
            known = self._offers[row] = self._computed_offer(row, parts)
        return known

    def _computed_offer(self, row: int, parts: Parts) -> tuple[float, float | None]:
        hedge_s, race = None, self._race(parts)
        times, failing = race.remote_s, race.failure_ratio
        if isfinite(parts.rest_s):
            hedge_s, cost = best_hedge(race)
        else:
            waits_s = patience_s(parts.remote_s)
            cost = race.time_price * ((1 - failing) * sum(times) / len(times) + failing * waits_s)
        if self.inputs.prices.is_throughput:
            return self._stage_s(row, parts), hedge_s
        if hedge_s == 0.0 and self._credit_s:
            chance = bisect_left(times, self._rest_s - parts.here_s) / len(times)
            cost -= self._credit_s * min(1.0, chance / FAIR_CHANCE)
        return parts.paid + cost, hedge_s

    def _race(self, parts: Parts) -> Race:
        """What a hedge of it is computed from."""
        moment, belief, lead_s = self._moment, parts.path.belief, parts.lead_s
        times = [lead_s + parts.lasting_s * point for point in belief.points]
        latest_s = self._latest_hedge_s(parts, lead_s + patience_s(parts.remote_s))
        return Race(times, parts.rest_s, belief.failure_ratio, moment.time_price, moment.work_price, latest_s)

    def _stage_s(self, row: int, parts: Parts) -> float:
        """Seconds of the slowest stage of a stream of such requests."""
        belief = parts.path.belief
        served_s = self.table.rows[row].tail_s * belief.speed_ratio + belief.queue_s
        return max(parts.here_s, served_s, parts.up_s, parts.down_s)

    def _latest_hedge_s(self, parts: Parts, waits_s: float) -> float:
        """A hedge that starts later than this would wait for a dead link too long, or miss the deadline."""
        inputs, latest_s = self.inputs, waits_s
        if inputs.prices.is_guarded and not inputs.n_in_flight:
            latest_s = min(latest_s, GUARD_RATIO * self._rest_s - parts.here_s - inputs.attempt_s)
        left_s = inputs.deadline_left_s
        if left_s is not None:
            surely_s = (parts.here_s + parts.rest_s) * self._moment.slower + RESERVE_S
            latest_s = min(latest_s, left_s - surely_s)
        return max(0.0, latest_s)

    def _latest_s(self, parts: Parts, hedge_s: float | None) -> float:
        """Mean + k * sigma of the answer's seconds; `hedge_s` counts from the end of the head, as in `_offer`."""
        slower = self._moment.slower
        wait_s = parts.lead_s + parts.remote_s * parts.path.late_point
        if hedge_s is not None:
            wait_s = min(wait_s, hedge_s + parts.rest_s * slower + RESERVE_S)
        return parts.here_s * slower + wait_s

    def _remote_plan(self, row: int, parts: Parts) -> Plan:
        """The exact plan of a remote prospect, with its best hedge time."""
        cost, hedge_s = self._offer(row, parts)
        path, here_s, lead_s, remote_s = parts.path, parts.here_s, parts.lead_s, parts.remote_s
        failing, n, waits_s = path.belief.failure_ratio, len(path.belief.points), patience_s(remote_s)
        # The plan is compared by what it costs when it is kept, and predicted by what this request will take.
        times = ends = [lead_s + remote_s * point for point in path.belief.points]
        work_s, done_s = 0.0, lead_s + waits_s
        if hedge_s is not None:
            done_s = hedge_s + parts.rest_s
            n_before = bisect_left(times, done_s)
            ends = times[:n_before] + [done_s] * (n - n_before)
            n_free = bisect_left(ends, hedge_s)
            work_s = (sum(ends[n_free:]) - (n - n_free) * hedge_s) / n
        mean_s = (1 - failing) * sum(ends) / n + failing * done_s
        latest_s = self._latest_s(parts, hedge_s)
        return Plan(
            index=self.table.remote[row],
            cost=cost + self._penalty(latest_s),
            hedge_s=None if hedge_s is None else max(0.0, hedge_s - lead_s),
            predicted_s=here_s + 0.5 * (ends[(n - 1) // 2] + ends[n // 2]),
            expected_s=here_s + mean_s,
            latest_s=latest_s,
            patience_s=waits_s,
            energy_j=self.inputs.power.energy_j(
                total_s=here_s + mean_s,
                compute_s=here_s + lead_s + work_s,
                transmit_s=parts.up_s,
                receive_s=parts.down_s,
            ),
            remote_s=remote_s,
        )

    # -- the choice

    def bounds(self) -> Iterator[tuple[Floats, tuple[int, ...]]]:
        """For each gateway, lower bounds of the costs of those prospects that may be the cheapest, and their rows."""
        for path, block in self._open():
            yield lower_bounds(self._moment, block, path, self._rest_s, self._credit_s), block.rows

    def cheapest(self) -> tuple[int, float]:
        """The prospect of least expected cost, and that cost; -1 where nothing can be had."""
        least, found = (self.local.cost, self.local.index) if self.local is not None else (inf, -1)
        for bounds, rows in self.bounds():
            values: list[float] = bounds.tolist()
            self._bounds.append((values, rows))
            for at in bounds.argsort().tolist():
                if values[at] >= least:
                    break
                cost = self._cost(rows[at])
                if cost < least:
                    least, found = cost, self.table.remote[rows[at]]
        return found, least

    def surely_above(self, index: int, cost: float) -> bool:
        """Whether the bounds that `cheapest` made say that this prospect costs more: no exact cost is needed then."""
        row = self.table.row_of.get(index, -1)
        return any(row in rows and values[rows.index(row)] > cost for values, rows in self._bounds)

    def best(self) -> Plan | None:
        """The plan of least expected cost."""
        return self.plan_of(self.cheapest()[0])

    def _cost(self, row: int) -> float:
        """The cost of a remote plan, without the rest of it."""
        parts = self._parts(row)
        if parts is None:
            return inf
        if self.inputs.deadline_left_s is None and self.inputs.prices.is_throughput:
            return self._stage_s(row, parts)
        cost, hedge_s = self._offer(row, parts)
        if self.inputs.deadline_left_s is None:
            return cost
        return cost + self._penalty(self._latest_s(parts, hedge_s))

    def most_promising(self) -> tuple[Plan | None, float]:
        """The remote plan that would be cheapest if its link had become several times as fast, and that cost.

        It is the one that is worth knowing more of.
        """
        return self._least([hopes(self._moment, block, path, HOPE_FACTOR) for path, block in self._open()])

    def race(self) -> tuple[Plan | None, float]:
        """The way without a head that would be cheapest if its link were as good as in its good moments."""
        costs = [hopes(self._moment, block, path, path.belief.likely_ratio) for path, block in self._open()]
        return self._least(
            [np.where(block.head_s > 0, inf, one) for one, (_, block) in zip(costs, self._open(), strict=True)]
        )

    def _least(self, costs: Sequence[Floats]) -> tuple[Plan | None, float]:
        least, found = inf, -1
        for one, (_, block) in zip(costs, self._open(), strict=True):
            at = int(one.argmin())
            if one[at] < least:
                least, found = float(one[at]), block.rows[at]
        return (self.plan_of(self.table.remote[found]) if found >= 0 else None), least

    def _open(self) -> list[tuple[Path, Block]]:
        """The gateways that can be used now, with what is worth sending there."""
        pairs = zip(self._moment.paths, self._live.blocks, strict=True)
        return [(path, block) for path, block in pairs if path is not None and block.rows]

    def unhurried(self, plan: Plan, cost: float) -> Plan:
        """The same remote plan with a hedge that leaves it the time to answer, as long as waiting costs less than this.

        A trial that the device cuts short teaches little, and costs both sides.
        """
        row = self.table.row_of[plan.index]
        parts = self._parts(row)
        if plan.hedge_s is None or parts is None:
            return plan
        hedge_s = max(plan.hedge_s, min(plan.patience_s, cost / self._moment.time_price))
        race = self._race(parts)
        return msgspec.structs.replace(
            plan, hedge_s=hedge_s, cost=parts.paid + expected_cost(race, parts.lead_s + hedge_s)
        )

    def chance(self, index: int, cost: float) -> float:
        """How likely it is that a remote plan, if nothing hedged it, costs less than this."""
        parts = self._parts(self.table.row_of[index])
        if parts is None:
            return 0.0
        paid = parts.sure + self._moment.time_price * parts.lead_s
        lasting_cost, points = self._moment.time_price * parts.lasting_s, parts.path.belief.points
        return sum(paid + lasting_cost * point < cost for point in points) / len(points)

    def belief(self, index: int) -> GatewayBelief:
        """What is believed of the gateway of a remote plan that can be had."""
        path = self._moment.paths[self.table.rows[self.table.row_of[index]].place]
        assert path is not None
        return path.belief

    def cost_of(self, index: int) -> float:
        """The cost of one prospect's plan; infinite where it cannot be had now."""
        if index in self.locals:
            return self.locals[index].cost
        row = self.table.row_of.get(index, -1)
        return self._cost(row) if row >= 0 else inf

    def plan_of(self, index: int) -> Plan | None:
        """The plan of one prospect; None where it cannot be had now."""
        row = self.table.row_of.get(index, -1)
        if row < 0:
            return self.locals.get(index)
        parts = self._parts(row)
        return None if parts is None else self._remote_plan(row, parts)


def _cost_of(plan: Plan) -> float:
    return plan.cost
