"""What the next attempt of a request is to be: the scheduler's choice or a forced way, and how long it may take."""

from dataclasses import dataclass
from time import monotonic, perf_counter

from hybrid.route.allowance import Allowance
from hybrid.route.route import Route
from hybrid.route.way import Way
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.options import Options, unavailable
from hybrid.scouting.preparation import Preparation
from hybrid.session.device import Device
from hybrid.session.patience import LEAST_RESERVE_S, LEAST_STALL_S
from hybrid.session.trip import Trip

MAX_ATTEMPTS = 2
FORCED_TIMEOUT_S = 60.0
FORCED_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What an attempt does.

    Attributes:
        way: where it goes.
        decision: by which.
        hedge_s: when the device begins beside it, in seconds from departure; None: never.
        is_race: whether the device begins at once, and the request is encoded and sent beside it.
    """

    way: Way
    decision: Decision
    hedge_s: float | None
    is_race: bool = False


class Planner:
    """Plans the attempts of a session's requests.

    Args:
        options: the session's.
        device: this device's own runs.
        preparation: the background thread that makes ways.
        allowance: what may leave this machine.
        n_cores: cores that this process may use.
    """

    def __init__(
        self, options: Options, device: Device, preparation: Preparation, allowance: Allowance, n_cores: int
    ) -> None:
        self._options = options
        self._device = device
        self._preparation = preparation
        self._allowance = allowance
        self._n_cores = n_cores

    def plan(self, route: Route, trip: Trip) -> Plan | None:
        """The next attempt; None where the device should compute, alone.

        Raises:
            PlacementUnavailable: a forced placement that cannot be had, with `fallback=False`.
        """
        if trip.attempts >= MAX_ATTEMPTS:
            return None
        self._preparation.ensure_running()
        if self._must_wait(route):
            self.wait(route, trip.deadline_s or FORCED_WAIT_S)
        before_s = perf_counter()
        plan = self._forced(route, trip) if self._options.is_forced else self._chosen(route, trip)
        trip.plan_s += perf_counter() - before_s
        return plan

    async def plan_awaitable(self, route: Route, trip: Trip) -> Plan | None:
        """The same on asyncio."""
        import asyncio

        return await asyncio.to_thread(self.plan, route, trip) if self._must_wait(route) else self.plan(route, trip)

    def wait(self, route: Route, timeout_s: float) -> bool:
        """Waits until a route has a verified way, or none can be hoped for; whether it has one."""
        self._preparation.wait_for(lambda: route.has_way() or route.is_hopeless, timeout_s)
        return route.has_way()

    def _must_wait(self, route: Route) -> bool:
        return self._options.is_forced and not self._options.fallback and not route.has_way()

    def _chosen(self, route: Route, trip: Trip) -> Plan | None:
        way, decision = route.decide(
            self._allowance.constraints(),
            monotonic(),
            left_s=trip.left_s,
            n_device_runs=self._device.n_runs,
            n_in_flight=self._device.n_requests - 1,
        )
        self._note(route, trip, decision)
        if way is None:
            if not route.has_way():
                trip.fallback = trip.fallback or f"not_available: {route.why_none}"
            return None
        if trip.attempts and not way.holding.client.standing.retries.take():
            return None
        hedge_s = decision.hedge_s
        if trip.deadline_s is not None:
            # The device must begin in time, whatever the planner thought: from departure on, and heads take time too.
            encode_s, can_race = way.prospect.encode_s, self._n_cores > 1
            left_s = self.time_left_s(route, trip) - (way.prospect.head_s or 0.0) * route.device_speed_ratio
            if left_s <= (0.0 if can_race else encode_s):
                return None
            left_s = max(0.0, left_s - encode_s)
            hedge_s = min(hedge_s, left_s) if hedge_s is not None else left_s
        return Plan(way, decision, hedge_s, is_race=hedge_s == 0.0 and self._n_cores > 1)

    def _forced(self, route: Route, trip: Trip) -> Plan | None:
        way, decision, why = route.forced(self._options, self._allowance.constraints(), monotonic())
        left_s = self.time_left_s(route, trip)
        if way is not None and left_s <= 0:
            way, why = None, f"deadline_s={trip.deadline_s} leaves no time for it"
        if way is None:
            trip.fallback = trip.fallback or f"not_available: {why}"
            if not self._options.fallback:
                raise unavailable(self._options, trip.fallback)
            return None
        self._note(route, trip, decision)
        return Plan(way, decision, None)

    def _note(self, route: Route, trip: Trip, decision: Decision) -> None:
        """The first decision of a run is the one that its answer is held against."""
        if trip.decision is None:
            table = route.scheduler.table
            is_its = decision.inputs is None or decision.inputs.table == table.id
            trip.decision, trip.table, trip.predicted_s = decision, table if is_its else None, decision.predicted_s

    # -- how long to wait

    def time_left_s(self, route: Route, trip: Trip) -> float:
        """Seconds that a remote attempt may take so that the device can still answer before the deadline."""
        left_s = trip.left_s
        if left_s is None:
            return float("inf")
        reserve_s = 0.0
        if self._options.fallback or not self._options.is_forced:  # else the device never answers
            local_s = (route.local_s or 0.0) * route.device_speed_ratio
            reserve_s = LEAST_RESERVE_S + 1.5 * local_s * (1 + 2 * route.scheduler.device_spread_ratio)
        return left_s - reserve_s

    def timeout_s(self, route: Route, plan: Plan, trip: Trip) -> float:
        """Seconds from now after which the reply to an attempt is given up."""
        patience_s = FORCED_TIMEOUT_S
        if not self._options.is_forced:
            patience_s = max(plan.decision.patience_s, LEAST_STALL_S)
        left_s = trip.left_s
        if plan.hedge_s is None or left_s is None:
            return min(patience_s, self.time_left_s(route, trip))
        # The device computes beside it: the reply has until the deadline itself.
        return min(patience_s, left_s)
