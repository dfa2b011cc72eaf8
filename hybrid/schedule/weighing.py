"""What each way to answer a request costs at one moment: bounds for all of them, exact plans for those that matter.

Design: expected costs of all prospects are bounded from below at once (a few operations on columns); then exact costs,
the best hedge time included, are computed in the order of the bounds until no bound can beat the best one found. So the
result is that of trying everything, at the price of trying a few.
"""

from math import inf, isfinite, nan, sqrt

import numpy as np

from hybrid.cost.residuals import even_rows
from hybrid.cost.slow_start import slow_start_column_s
from hybrid.schedule.beliefs import GatewayBelief, Inputs
from hybrid.schedule.hedge import Race, best_hedge
from hybrid.schedule.plan import (
    BUSY_PRICE,
    FAIR_CHANCE,
    GUARD_RATIO,
    HOPE_FACTOR,
    K_SIGMA,
    LEARNING_RATIO,
    RESERVE_S,
    SMALL_BYTES,
    TINY_PRICE,
    TINY_PRICE_J,
    Plan,
    patience_s,
)
from hybrid.schedule.table import Table


class Weighing:
    """One moment's prospects, weighed: bounds for all, exact plans on demand."""

    def __init__(self, inputs: Inputs, table: Table) -> None:
        self.inputs = inputs
        self.table = table
        prices, power = inputs.prices, inputs.power
        n_device_runs = inputs.n_device_runs
        self._scale = inputs.device_speed_ratio * (1 + n_device_runs)
        self._spread = 1.25 * K_SIGMA * inputs.device_spread_ratio
        self._column, self._local_barred = table.barred(inputs.constraints)
        # A second on this device delays those who compute here already by as much.
        self._here_price = 1 + prices.s_per_j * power.compute_w + n_device_runs
        self._time_price = 1 + prices.s_per_j * power.idle_w
        self._work_price = prices.s_per_j * (power.compute_w - power.idle_w)
        self._work_price += max(n_device_runs, min(1, inputs.n_in_flight))
        if prices.is_throughput:
            self._work_price += BUSY_PRICE
        local = [plan for i in table.local if (plan := self._local_plan(i)) is not None]
        self.local: Plan | None = min(local, key=_cost_of, default=None)
        self.locals = {plan.index: plan for plan in local}
        self._rest_s = self.local.expected_s if self.local is not None else inf
        is_idle = prices.is_guarded and not inputs.n_in_flight and not n_device_runs and self.local is not None
        self._credit_s = LEARNING_RATIO * self._rest_s if is_idle else 0.0
        self._beliefs: list[GatewayBelief | None] = []
        self._offers: dict[int, tuple[float, float | None]] = {}
        self.bounds = self._bounds() if table.remote else np.empty(0)

    # -- here

    def _local_plan(self, index: int) -> Plan | None:
        prospect, inputs = self.table.prospects[index], self.inputs
        if prospect.head_s is None or index in self._local_barred:
            return None
        seconds = prospect.head_s * self._scale
        latest_s = seconds * (1 + self._spread) + RESERVE_S
        cost = seconds * self._here_price if not inputs.prices.is_throughput else seconds
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

    def _bounds(self) -> np.ndarray:
        """Lower bounds of the remote prospects' costs, NaN for what cannot be used or predicted."""
        table, inputs = self.table, self.inputs
        by_url = {belief.url: belief for belief in inputs.gateways}
        rows: list[tuple[float, ...]] = []
        for url in table.urls:
            belief = by_url.get(url)
            if belief is None or not belief.is_usable or belief.rtt_s is None:
                self._beliefs.append(None)
                rows.append((nan, 0.0, 0.0, 0.0, 0.0))
                continue
            self._beliefs.append(belief)
            up, down = belief.s_per_byte
            fixed_s = belief.rtt_s + belief.overhead_s + belief.backlog_s
            rows.append((fixed_s, up, down, belief.speed_ratio, belief.queue_s))
        fixed_s, up, down, speed, queue_s = rows[0] if len(rows) == 1 else np.array(rows)[table.gateway_of].T
        self._up_s, self._down_s = table.bytes_up * up, table.bytes_down * down
        self._here_s = table.device_s * self._scale
        # Seconds from the moment that the device could go on until departure: nothing, where it must encode first.
        self._lead_s: np.ndarray | None = None
        if inputs.n_cores > 1 and not inputs.prices.is_throughput:
            self._lead_s = table.encode_s * self._scale
            self._here_s -= self._lead_s
        self._served_s = table.tail_s * speed + queue_s
        self._remote_s = self._up_s + self._down_s + self._served_s + fixed_s
        if self._column is not None:
            self._remote_s += self._column
        self._lasting_s = self._remote_s
        self._add_slow_start()
        self._bar_for_now()
        return self._bound()

    def _add_slow_start(self) -> None:
        """What slow start adds to those messages that are larger than the connection's window."""
        table, several = self.table, len(self._beliefs) > 1
        for place, belief in enumerate(self._beliefs):
            if belief is None or belief.rtt_s is None or not belief.cold_ratio:
                continue
            up, down = belief.s_per_byte
            waited_s: np.ndarray | float = 0.0
            if up and belief.up_window_bytes < table.most_bytes_up:
                waited_s = slow_start_column_s(table.bytes_up, up, belief.up_window_bytes, belief.rtt_s)
            if down and belief.down_window_bytes < table.most_bytes_down:
                added_s = slow_start_column_s(table.bytes_down, down, belief.down_window_bytes, belief.rtt_s)
                waited_s = waited_s + added_s
            if isinstance(waited_s, float):
                continue
            waited_s *= belief.cold_ratio
            if several:
                waited_s = np.where(table.gateway_of == place, waited_s, 0.0)
            self._lasting_s = self._lasting_s + belief.lasting_ratio * waited_s
            self._remote_s = self._remote_s + waited_s

    def _bar_for_now(self) -> None:
        """What cannot be predicted, since no goodput is known, and what the uplink budget does not allow now."""
        table = self.table
        for place, belief in enumerate(self._beliefs):
            if belief is not None and not belief.uplink_bps and not belief.downlink_bps:
                unknown = (table.gateway_of == place) & (table.bytes_up + table.bytes_down >= SMALL_BYTES)
                self._lasting_s = np.where(unknown, nan, self._lasting_s)
        left_bytes = self.inputs.constraints.uplink_left_bytes
        if left_bytes is not None:
            self._lasting_s = np.where(table.bytes_up > left_bytes, nan, self._lasting_s)

    def _bound(self) -> np.ndarray:
        """What is paid for certain, and for each point the cheaper of waiting for it and computing here from departure.

        No hedge time can do better; failures, the rest of the joules and a deadline only make it dearer.
        """
        table, prices, price, left_s = self.table, self.inputs.prices, self._time_price, self.inputs.deadline_left_s
        known = [belief.points if belief is not None else (1.0,) for belief in self._beliefs]
        if len(known) == 1:
            points = np.array(known[0])
        else:
            points = np.array(known if len(set(map(len, known))) == 1 else even_rows(known))[table.gateway_of]
        rest_s: np.ndarray | float = self._rest_s + self.inputs.attempt_s
        if table.has_own_rest:
            own = np.where(np.isnan(table.rest_s), self._rest_s, table.rest_s * self._scale)
            rest_s = own + self.inputs.attempt_s
        late = 0.0 if left_s is None else self._surely_late(points, rest_s, left_s)
        if prices.is_throughput:
            stages = np.maximum(np.maximum(self._here_s, self._served_s), np.maximum(self._up_s, self._down_s))
            self._stages_s = stages + 0 * self._lasting_s  # NaN stays NaN
            return np.asarray(self._stages_s + late)
        paid = self._here_s * self._here_price
        if self._lead_s is not None:
            paid += self._lead_s * (self._here_price - 1)
        if prices.s_per_j > TINY_PRICE_J:
            power = self.inputs.power
            paid += prices.s_per_j * max(0.0, power.transmit_w - power.idle_w) * self._up_s
        if prices.s_per_byte > TINY_PRICE:
            paid += prices.s_per_byte * (table.bytes_up + table.bytes_down)
        self._paid = paid
        times = self._lasting_s[:, None] * points
        if self._lead_s is not None:
            times += self._lead_s[:, None]
        likely = times * price
        if left_s is not None and self._work_price > TINY_PRICE_J:
            # The hedge cannot wait for ever: what comes after its last moment is computed beside.
            from_s = np.maximum(0.0, left_s - RESERVE_S - (self._here_s + rest_s) * (1 + self._spread))
            likely += self._work_price * np.maximum(0.0, times - from_s[:, None])
        most = rest_s * (price + self._work_price)
        likely = np.minimum(likely, most[:, None] if isinstance(most, np.ndarray) else most)
        return np.asarray(paid + np.add.reduce(likely, axis=1) / points.shape[-1] - self._credit_s + late)

    def _surely_late(self, points: np.ndarray, rest_s: np.ndarray | float, left_s: float) -> np.ndarray:
        """The penalty of those that miss the deadline even if the device starts at once."""
        wait_s = self._lasting_s * (points.mean(axis=-1) + K_SIGMA * points.std(axis=-1))
        if self._lead_s is not None:
            wait_s = wait_s + self._lead_s
        done_s = rest_s * (1 + self._spread) + RESERVE_S
        latest_s = self._here_s * (1 + self._spread) + np.minimum(wait_s, done_s)
        return np.where(latest_s > left_s, 1e3 * (1 + latest_s - left_s), 0.0)

    def _offer(self, column: int) -> tuple[float, float | None]:
        """The cost of a remote prospect with its best hedge time (before a deadline's penalty), and that time."""
        known = self._offers.get(column)
        if known is None:
            known = self._offers[column] = self._computed_offer(column)
        return known

    def _computed_offer(self, column: int) -> tuple[float, float | None]:
        prices, power, table = self.inputs.prices, self.inputs.power, self.table
        belief = self._belief(column)
        here_s, lasting_s, rest_s = float(self._here_s[column]), float(self._lasting_s[column]), self._rest(column)
        waits_s = patience_s(float(self._remote_s[column]))
        lead_s = 0.0 if self._lead_s is None else float(self._lead_s[column])
        times = [lead_s + lasting_s * point for point in belief.points]
        paid = here_s * self._here_price + lead_s * (self._here_price - 1)
        if prices.s_per_byte:
            paid += prices.s_per_byte * float(table.bytes_up[column] + table.bytes_down[column])
        if prices.s_per_j:
            paid += prices.s_per_j * (power.compute_w - power.idle_w) * self.inputs.attempt_s
            sent_j = (power.transmit_w - power.idle_w) * float(self._up_s[column])
            paid += prices.s_per_j * (sent_j + (power.receive_w - power.idle_w) * float(self._down_s[column]))
        hedge_s = None
        if isfinite(rest_s):
            latest_s = self._latest_hedge_s(here_s, rest_s, lead_s + waits_s)
            race = Race(times, rest_s, belief.failure_ratio, self._time_price, self._work_price, latest_s)
            hedge_s, cost = best_hedge(race)
        else:
            failing = belief.failure_ratio
            cost = self._time_price * ((1 - failing) * sum(times) / len(times) + failing * waits_s)
        if prices.is_throughput:
            return float(self._stages_s[column]), hedge_s
        if hedge_s == 0.0 and self._credit_s:
            chance = sum(here_s + time_s < self._rest_s for time_s in times) / len(times)
            paid -= self._credit_s * min(1.0, chance / FAIR_CHANCE)
        return paid + cost, hedge_s

    def remote_plan(self, column: int) -> Plan | None:
        """The exact plan of a remote prospect, with its best hedge time; None where it cannot be had."""
        if not isfinite(self.bounds[column]):
            return None
        cost, hedge_s = self._offer(column)
        belief = self._belief(column)
        here_s, remote_s, rest_s = float(self._here_s[column]), float(self._remote_s[column]), self._rest(column)
        failing, n, waits_s = belief.failure_ratio, len(belief.points), patience_s(remote_s)
        # The plan is compared by what it costs when it is kept, and predicted by what this request will take.
        lead_s = 0.0 if self._lead_s is None else float(self._lead_s[column])
        times = ends = [lead_s + remote_s * point for point in belief.points]
        work_s, done_s = 0.0, lead_s + waits_s
        if hedge_s is not None:
            done_s = hedge_s + rest_s
            ends = [min(time_s, done_s) for time_s in times]
            work_s = sum(max(0.0, end_s - hedge_s) for end_s in ends) / n
        mean_s = (1 - failing) * sum(ends) / n + failing * done_s
        latest_s = self._latest_s(column, hedge_s)
        energy_j = self.inputs.power.energy_j(
            total_s=here_s + mean_s,
            compute_s=here_s + lead_s + work_s,
            transmit_s=float(self._up_s[column]),
            receive_s=float(self._down_s[column]),
        )
        return Plan(
            index=self.table.remote[column],
            cost=cost + self._penalty(latest_s),
            hedge_s=None if hedge_s is None else max(0.0, hedge_s - lead_s),
            predicted_s=here_s + 0.5 * (ends[(n - 1) // 2] + ends[n // 2]),
            expected_s=here_s + mean_s,
            latest_s=latest_s,
            patience_s=waits_s,
            energy_j=energy_j,
            remote_s=remote_s,
        )

    def _belief(self, column: int) -> GatewayBelief:
        belief: GatewayBelief | None = self._beliefs[int(self.table.gateway_of[column])]
        assert belief is not None  # its bound would be NaN
        return belief

    def _rest(self, column: int) -> float:
        """Device seconds from the hedge on: the attempt takes its share of the device."""
        own_s = float(self.table.rest_s[column]) * self._scale if self.table.has_own_rest else nan
        return (own_s if isfinite(own_s) else self._rest_s) + self.inputs.attempt_s

    def _latest_hedge_s(self, here_s: float, rest_s: float, waits_s: float) -> float:
        """A hedge that starts later than this would wait for a dead link too long, or miss the deadline."""
        inputs, latest_s = self.inputs, waits_s
        if inputs.prices.is_guarded and not inputs.n_in_flight:
            latest_s = min(latest_s, GUARD_RATIO * self._rest_s - here_s - inputs.attempt_s)
        left_s = inputs.deadline_left_s
        if left_s is not None:
            latest_s = min(latest_s, left_s - (here_s + rest_s) * (1 + self._spread) - RESERVE_S)
        return max(0.0, latest_s)

    # -- the choice

    def best(self) -> Plan | None:
        """The plan of least expected cost."""
        least, found = (self.local.cost if self.local is not None else inf), -1
        bounds: list[float] = self.bounds.tolist()
        for column in self.bounds.argsort().tolist():
            if not bounds[column] < least:  # NaN too
                break
            cost = self._cost(column)
            if cost < least:
                least, found = cost, column
        return self.local if found < 0 else self.remote_plan(found)

    def _cost(self, column: int) -> float:
        """The cost of a remote plan, without the rest of it."""
        if self.inputs.deadline_left_s is None:
            return float(self._stages_s[column]) if self.inputs.prices.is_throughput else self._offer(column)[0]
        cost, hedge_s = self._offer(column)
        return cost + self._penalty(self._latest_s(column, hedge_s))

    def _latest_s(self, column: int, hedge_s: float | None) -> float:
        """Mean + k * sigma of the answer's seconds; `hedge_s` counts from the end of the head, as in `_offer`."""
        points = self._belief(column).points
        mean = sum(points) / len(points)
        sigma = sqrt(sum((point - mean) ** 2 for point in points) / len(points))
        wait_s = float(self._remote_s[column]) * (mean + K_SIGMA * sigma)
        if self._lead_s is not None:
            wait_s += float(self._lead_s[column])
        if hedge_s is not None:
            wait_s = min(wait_s, hedge_s + self._rest(column) * (1 + self._spread) + RESERVE_S)
        return float(self._here_s[column]) * (1 + self._spread) + wait_s

    def most_promising(self) -> tuple[Plan | None, float]:
        """The remote plan that would be cheapest if its link had become several times as fast, and that cost.

        It is the one that is worth knowing more of.
        """
        if not len(self.bounds) or self.inputs.prices.is_throughput:
            return None, inf
        moving_s = self._up_s + self._down_s
        wait_s = self._lasting_s if self._lead_s is None else self._lead_s + self._lasting_s
        hopes = self._paid + self._time_price * (wait_s - (1 - 1 / HOPE_FACTOR) * moving_s)
        column = int(hopes.argsort()[0])  # NaN come last
        return self.remote_plan(column), float(hopes[column])

    def chance(self, index: int, cost: float) -> float:
        """How likely it is that a remote plan, if nothing hedged it, costs less than this."""
        column = self.table.column_of[index]
        lead_s = 0.0 if self._lead_s is None else float(self._lead_s[column])
        paid = float(self._paid[column]) + self._time_price * lead_s
        lasting, points = self._time_price * float(self._lasting_s[column]), self._belief(column).points
        return sum(paid + lasting * point < cost for point in points) / len(points)

    def silent_s(self, index: int) -> float:
        """Seconds since a remote plan's gateway was heard of."""
        return self._belief(self.table.column_of[index]).silent_s

    def cost_of(self, index: int) -> float:
        """The cost of one prospect's plan; infinite where it cannot be had now."""
        if index in self.locals:
            return self.locals[index].cost
        column = self.table.column_of.get(index, -1)
        return self._cost(column) if column >= 0 and isfinite(self.bounds[column]) else inf

    def plan_of(self, index: int) -> Plan | None:
        """The plan of one prospect; None where it cannot be had now."""
        column = self.table.column_of.get(index, -1)
        return self.locals.get(index) if column < 0 else self.remote_plan(column)


def _cost_of(plan: Plan) -> float:
    return plan.cost
