"""The choice among all ways to answer one request: a pure function of recorded inputs.

Design: no clock, no I/O, no state. Expected costs of all prospects are bounded from below at once (a few operations on
columns); then exact costs, the best hedge time included, are computed in the order of the bounds until no bound can
beat the best one found. So the result is that of trying everything, at the price of trying a few.
"""

from math import isfinite
from typing import Final

import msgspec
import numpy as np

from hybrid.cost.slow_start import slow_start_column_s
from hybrid.schedule.beliefs import Decision, GatewayBelief, Inputs
from hybrid.schedule.hedge import Race, best_hedge
from hybrid.schedule.table import Table

SMALL_BYTES: Final = 8 * 1024
"""A message below this takes a round trip, whatever the goodput: it is predicted though no goodput is known."""

K_SIGMA: Final = 3.0
"""A deadline is held against mean + k * sigma. One-sided Chebyshev (Cantelli 1928): P(X >= mean + k sigma) is at most
1 / (1 + k^2), so at most 10 % whatever the distribution; 0.13 % for a normal one."""

RESERVE_S: Final = 0.010
"""Kept free before a deadline: waking a thread takes milliseconds on a busy machine."""

LEAST_PATIENCE_S: Final = 0.5
PATIENCE_RATIO: Final = 3.0

GUARD_RATIO: Final = 0.15
"""Objective latency: a hedge starts early enough that a dead link costs at most this share of the local seconds."""

BUSY_PRICE: Final = 10.0
"""Throughput: a second of computing that is not needed delays the requests behind it."""

LEARNING_RATIO: Final = 0.04
"""Objective latency: what a race teaches of the link is worth this share of the local seconds, while the remote side
still has a fair chance: without it a link that has become better is noticed late."""

FAIR_CHANCE: Final = 0.25

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

REGRET_DECAY: Final = 0.5


class Plan(msgspec.Struct, frozen=True):
    """What is expected of one prospect with its best hedge time; see `Decision` for the fields."""

    index: int
    cost: float
    hedge_s: float | None
    predicted_s: float
    expected_s: float
    latest_s: float
    patience_s: float
    energy_j: float
    remote_s: float


class Weighing:
    """One moment's prospects, weighed: bounds for all, exact plans on demand."""

    def __init__(self, inputs: Inputs, table: Table) -> None:
        self.inputs = inputs
        self.table = table
        prices, power = inputs.prices, inputs.power
        self._scale = inputs.device_speed_ratio * (1 + inputs.n_device_runs)
        self._spread = 1.25 * K_SIGMA * inputs.device_spread_ratio
        self._column, self._local_barred = table.barred(inputs.constraints)
        # A second on this device delays those who compute here already by as much.
        self._here_price = 1 + prices.s_per_j * power.compute_w + inputs.n_device_runs
        self._time_price = 1 + prices.s_per_j * power.idle_w
        self._work_price = prices.s_per_j * (power.compute_w - power.idle_w)
        self._work_price += max(inputs.n_device_runs, min(1, inputs.n_in_flight))
        if prices.is_throughput:
            self._work_price += BUSY_PRICE
        self._beliefs: list[GatewayBelief | None] = []
        local = [plan for i in table.local if (plan := self._local_plan(i)) is not None]
        self.local: Plan | None = min(local, key=_cost_of, default=None)
        self.locals = {plan.index: plan for plan in local}
        self._rest_s = self.local.expected_s if self.local is not None else float("inf")
        self.bounds = self._bounds() if table.remote else np.empty(0)

    # -- here

    def _local_plan(self, index: int) -> Plan | None:
        prospect, inputs = self.table.prospects[index], self.inputs
        if prospect.head_s is None or index in self._local_barred:
            return None
        seconds = prospect.head_s * self._scale
        energy_j = inputs.power.compute_w * seconds
        latest_s = seconds * (1 + self._spread) + RESERVE_S
        cost = seconds * self._here_price if not inputs.prices.is_throughput else seconds
        cost += self._penalty(latest_s)
        return Plan(index, cost, None, seconds, seconds, latest_s, 0.0, energy_j, 0.0)

    def _penalty(self, latest_s: float) -> float:
        """What missing the deadline costs: more than any delay within it, and more the later."""
        left_s = self.inputs.deadline_left_s
        return 0.0 if left_s is None or latest_s <= left_s else 1e3 * (1 + latest_s - left_s)

    # -- there

    def _bounds(self) -> np.ndarray:
        """Lower bounds of the remote prospects' costs, NaN for what cannot be used or predicted."""
        table, inputs = self.table, self.inputs
        by_url = {belief.url: belief for belief in inputs.gateways}
        rows: list[tuple[float, ...]] = []
        points: list[tuple[float, ...]] = []
        is_cold, has_rates = False, True
        for url in table.urls:
            belief = by_url.get(url)
            if belief is None or not belief.is_usable or belief.rtt_s is None:
                self._beliefs.append(None)
                rows.append((np.nan, 0.0, 0.0, 0.0, 0.0))
                points.append((1.0,))
                continue
            self._beliefs.append(belief)
            up_bps, down_bps = belief.uplink_bps or belief.downlink_bps, belief.downlink_bps or belief.uplink_bps
            has_rates = has_rates and up_bps is not None
            windows = (belief.up_window_bytes, belief.down_window_bytes)
            is_cold = is_cold or windows[0] < table.most_bytes_up or windows[1] < table.most_bytes_down
            up, down = 8 / up_bps if up_bps else 0.0, 8 / down_bps if down_bps else 0.0
            rows.append((belief.rtt_s + belief.backlog_s, up, down, belief.queue_s, belief.speed_ratio))
            points.append(belief.points)
        of = table.gateway_of
        per = np.array(rows)[of].T
        self._up_s, self._down_s = table.bytes_up * per[1], table.bytes_down * per[2]
        self._here_s = (table.head_s + table.encode_s) * self._scale
        self._queued_tail_s = per[3] + table.tail_s * per[4]
        self._lasting_s = self._remote_s = per[0] + self._up_s + self._down_s + self._queued_tail_s + self._column
        if is_cold:
            self._add_slow_start()
        if not has_rates:
            unknown = np.array([belief is not None and not belief.uplink_bps for belief in self._beliefs])[of]
            self._lasting_s[unknown & (table.bytes_up + table.bytes_down >= SMALL_BYTES)] = np.nan
        left_bytes = inputs.constraints.uplink_left_bytes
        if left_bytes is not None:
            self._lasting_s[table.bytes_up > left_bytes] = np.nan
        return self._bound(np.array(points if len(set(map(len, points))) == 1 else _even(points))[of])

    def _add_slow_start(self) -> None:
        """What slow start adds to those messages that are larger than the connection's window."""
        table, several = self.table, len(self._beliefs) > 1
        for place, belief in enumerate(self._beliefs):
            if belief is None or belief.rtt_s is None:
                continue
            up_bps, down_bps = belief.uplink_bps or belief.downlink_bps, belief.downlink_bps or belief.uplink_bps
            waited_s: np.ndarray | float = 0.0
            if up_bps and belief.up_window_bytes < table.most_bytes_up:
                waited_s = slow_start_column_s(table.bytes_up, 8 / up_bps, belief.up_window_bytes, belief.rtt_s)
            if down_bps and belief.down_window_bytes < table.most_bytes_down:
                window = belief.down_window_bytes
                waited_s = waited_s + slow_start_column_s(table.bytes_down, 8 / down_bps, window, belief.rtt_s)
            added_s = belief.cold_ratio * waited_s
            if several:
                added_s = np.where(table.gateway_of == place, added_s, 0.0)
            self._lasting_s = self._lasting_s + belief.lasting_ratio * added_s
            self._remote_s = self._remote_s + added_s

    def _bound(self, points: np.ndarray) -> np.ndarray:
        """What is paid for certain, and for each point the cheaper of waiting for it and computing here from departure.

        No hedge time can do better; failures and a deadline only make it dearer.
        """
        table, prices, power = self.table, self.inputs.prices, self.inputs.power
        if prices.is_throughput:
            stages = np.maximum(np.maximum(self._here_s, self._queued_tail_s), np.maximum(self._up_s, self._down_s))
            self._paid = stages
            return np.asarray(stages + 0 * self._lasting_s)
        self._paid = self._here_s * self._here_price + prices.s_per_byte * (table.bytes_up + table.bytes_down)
        if prices.s_per_j:
            sending_w, receiving_w = power.transmit_w - power.idle_w, power.receive_w - power.idle_w
            self._paid += prices.s_per_j * (sending_w * self._up_s + receiving_w * self._down_s)
        rest_s = np.where(np.isnan(table.rest_s), self._rest_s, table.rest_s * self._scale)
        most = (rest_s * (self._time_price + self._work_price))[:, None]
        likely = np.minimum(self._lasting_s[:, None] * (points * self._time_price), most)
        return np.asarray(self._paid + likely.mean(axis=1) - self._most_credit_s())

    def remote_plan(self, column: int) -> Plan | None:
        """The exact plan of a remote prospect, with its best hedge time; None where it cannot be had."""
        table = self.table
        belief = self._beliefs[table.gateway_of[column]]
        remote_s = float(self._remote_s[column])
        if belief is None or not isfinite(remote_s) or not isfinite(self.bounds[column]):
            return None
        here_s, rest_s = float(self._here_s[column]), float(table.rest_s[column]) * self._scale
        if not isfinite(rest_s):
            rest_s = self._rest_s
        patience_s = max(PATIENCE_RATIO * remote_s, remote_s + LEAST_PATIENCE_S)
        failing, n = belief.failure_ratio, len(belief.points)
        times = [remote_s * point for point in belief.points]
        ends, likely, hedge_s, work_s, done_s = times, times, None, 0.0, patience_s
        mean_s = sum(times) / n
        latest_s = mean_s + K_SIGMA * (sum((time_s - mean_s) ** 2 for time_s in times) / n) ** 0.5
        if isfinite(rest_s):
            # The plan is compared by what it costs when it is kept, and predicted by what this request will take.
            lasting_s = float(self._lasting_s[column])
            if lasting_s != remote_s:
                likely = [lasting_s * point for point in belief.points]
            latest_hedge_s = self._latest_hedge_s(here_s, rest_s, patience_s)
            race = Race(likely, rest_s, failing, self._time_price, self._work_price, latest_hedge_s)
            hedge_s, cost = best_hedge(race)
            done_s = hedge_s + rest_s
            ends = [min(time_s, done_s) for time_s in times]
            work_s = sum(max(0.0, end_s - hedge_s) for end_s in ends) / n
            latest_s = min(latest_s, hedge_s + rest_s * (1 + self._spread) + RESERVE_S)
        mean_s = (1 - failing) * sum(ends) / n + failing * done_s
        if hedge_s is None:
            cost = self._time_price * mean_s
        latest_s += here_s * (1 + self._spread)
        energy_j = self.inputs.power.energy_j(
            total_s=here_s + mean_s,
            compute_s=here_s + work_s,
            transmit_s=float(self._up_s[column]),
            receive_s=float(self._down_s[column]),
        )
        paid = float(self._paid[column])
        if hedge_s == 0.0 and self._most_credit_s():
            chance = sum(here_s + time_s < self._rest_s for time_s in likely) / n
            paid -= self._most_credit_s() * min(1.0, chance / FAIR_CHANCE)
        return Plan(
            index=table.remote[column],
            cost=(paid if self.inputs.prices.is_throughput else paid + cost) + self._penalty(latest_s),
            hedge_s=hedge_s,
            predicted_s=here_s + 0.5 * (ends[(n - 1) // 2] + ends[n // 2]),
            expected_s=here_s + mean_s,
            latest_s=latest_s,
            patience_s=patience_s,
            energy_j=energy_j,
            remote_s=remote_s,
        )

    def _most_credit_s(self) -> float:
        """What a race is worth beside its answer, at most."""
        inputs = self.inputs
        if not inputs.prices.is_guarded or inputs.n_in_flight or inputs.n_device_runs or self.local is None:
            return 0.0
        return LEARNING_RATIO * self._rest_s

    def _latest_hedge_s(self, here_s: float, rest_s: float, patience_s: float) -> float:
        """A hedge that starts later than this would wait for a dead link too long, or miss the deadline."""
        inputs, latest_s = self.inputs, patience_s
        if inputs.prices.is_guarded and not inputs.n_in_flight:
            latest_s = min(latest_s, GUARD_RATIO * self._rest_s - here_s)
        left_s = inputs.deadline_left_s
        if left_s is not None:
            latest_s = min(latest_s, left_s - (here_s + rest_s) * (1 + self._spread) - RESERVE_S)
        return max(0.0, latest_s)

    # -- the choice

    def best(self) -> Plan | None:
        """The plan of least expected cost."""
        best = self.local
        for column in np.argsort(self.bounds):
            bound = self.bounds[column]
            if not (best is None or bound < best.cost):
                break
            plan = self.remote_plan(int(column))
            if plan is not None and (best is None or plan.cost < best.cost):
                best = plan
        return best

    def plan_of(self, index: int) -> Plan | None:
        """The plan of one prospect; None where it cannot be had now."""
        if index in self.locals:
            return self.locals[index]
        return self.remote_plan(self.table.remote.index(index)) if index in self.table.remote else None


def decide(inputs: Inputs, table: Table) -> Decision:
    """The plan to take now: the cheapest, or the present one while leaving it is not worth it.

    Keeping a plan that is not the cheapest adds up its regret; the plan is left when that sum has reached what a change
    is worth (the rent-or-buy rule: total regret stays within twice that of knowing the future, Karlin et al.,
    Algorithmica 1988), and at once where something jumped.
    """
    weighing = Weighing(inputs, table)
    best = weighing.best()
    if best is None:
        return Decision(index=0, is_switch=inputs.current > 0, inputs=inputs)
    if inputs.current < 0 or best.index == inputs.current:
        regret_s = REGRET_DECAY * inputs.regret_s if best.index == inputs.current else 0.0
        return _decision(best, best, inputs, regret_s)
    kept = weighing.plan_of(inputs.current)
    if kept is None:
        return _decision(best, best, inputs, 0.0)
    gain = kept.cost - best.cost
    regret_s = inputs.regret_s + gain
    limit = SWITCH_REGRET_RATIO * kept.cost + SWITCH_REGRET_S
    if inputs.now_s - inputs.current_since_s < DWELL_S:
        limit *= DWELL_FACTOR
    sure = CHANGE_GAIN_RATIO if inputs.is_changed else SURE_GAIN_RATIO
    if regret_s > limit or gain > sure * kept.cost:
        return _decision(best, best, inputs, 0.0)
    return _decision(kept, best, inputs, regret_s)


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


def _decision(plan: Plan, best: Plan, inputs: Inputs, regret_s: float) -> Decision:
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
        best=best.index,
        regret_s=regret_s,
        is_switch=plan.index != inputs.current and inputs.current >= 0,
        inputs=inputs,
    )


def _cost_of(plan: Plan) -> float:
    return plan.cost


def _even(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Rows of one length: a shorter one is repeated."""
    longest = max(map(len, points))
    return [tuple(np.interp(np.linspace(0, 1, longest), np.linspace(0, 1, len(row)), row)) for row in points]
