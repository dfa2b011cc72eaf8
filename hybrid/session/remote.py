"""The half of a session that is not local: routes by shape, planning, attempts, and what happens when they fail."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from hybrid.errors import DigestMismatch, EngineFailed, GatewayStalled, HybridError, NotFound, PlanError, UnknownCut
from hybrid.route.allowance import Allowance
from hybrid.route.departure import Outgoing, outgoing
from hybrid.route.feeds import Declared, Shapes
from hybrid.route.holding import is_gateways_fault
from hybrid.route.route import Route
from hybrid.route.way import MOST_REFUSALS, Way
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.options import Options, unavailable
from hybrid.schedule.prices import prices_for
from hybrid.schedule.prospect import Candidate
from hybrid.scouting.preparation import Preparation
from hybrid.session.decision_log import DecisionLog
from hybrid.session.device import Device
from hybrid.session.patience import LEAST_RESERVE_S, LEAST_STALL_S, current_traceparent, stall_s
from hybrid.session.race import Outcome, first_answer, first_answer_awaitable
from hybrid.session.report import RunReport
from hybrid.session.trip import Answer, Trip
from hybrid.transport.pending import Reply

log = logging.getLogger("hybrid.session")

N_ROUTES = 8
"""Shape keys that a session keeps; the one used least recently gives way."""

MAX_ATTEMPTS = 2
FORCED_TIMEOUT_S = 60.0
FORCED_WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What an attempt does: a way, and when the device begins beside it (None: never)."""

    way: Way
    decision: Decision
    hedge_s: float | None


class Remote:
    """Plans each request and carries it out remotely where that is better; answers None where the device should.

    Args:
        options: the session's.
        declared: the model's inputs and outputs.
        device: this device's own runs.
        preparation: the background thread that makes ways.
        allowance: what may leave this machine.

    Attributes:
        decisions: of the last requests.
    """

    def __init__(
        self, options: Options, declared: Declared, device: Device, preparation: Preparation, allowance: Allowance
    ) -> None:
        self._options = options
        self._declared = declared
        self._device = device
        self._preparation = preparation
        self._allowance = allowance
        self._outputs = frozenset(declared.outputs)
        self.decisions = DecisionLog()
        # Free dimensions may differ with every request: only a shape that comes again is worth preparing for.
        self._prepare_at = 1 if options.is_forced or declared.static_shapes() is not None else 2
        self._routes: dict[Shapes, Route] = {}
        self._lock = Lock()

    @property
    def model_digest(self) -> str:
        """Digest of the model, empty while it is being hashed."""
        return self._preparation.model_digest

    def route(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> Route | None:
        """The route of these feeds, made when it is new; None where onnxruntime has to judge feeds or names."""
        shapes = self._declared.shapes_of(feeds)
        if shapes is None or (output_names and not self._outputs.issuperset(output_names)):
            return None
        route = self._routes.get(shapes) or self._new_route(shapes)
        route.last_used_s = monotonic()
        route.n_uses += 1
        if route.sample is None and route.n_uses >= self._prepare_at:
            route.take_sample(feeds)
            self._preparation.add(route)
        return route

    def run(
        self, route: Route, output_names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], trip: Trip
    ) -> Answer | None:
        """Tries what the planner chooses; None when the device should compute (`trip.fallback` says why if it failed).

        Raises:
            PlacementUnavailable: a forced placement that cannot be had, with `fallback=False`.
        """
        names = output_names or self._declared.outputs
        while plan := self._plan(route, trip):
            sent: Outgoing | None = None
            try:
                sent = self._depart(route, plan, names, feeds, trip)
                reply, timeout_s = self._send(route, plan, sent, trip)
                compute = partial(self._compute, route, output_names, feeds, trip)
                outcome = first_answer(sent, reply, plan.hedge_s, timeout_s, compute)
                return self._finish(route, plan, sent, outcome, trip)
            except Exception as exc:  # noqa: BLE001  (whatever it is, here or there: the device answers)
                self._fail(route, plan, sent, exc, trip)
        return None

    async def run_awaitable(
        self, route: Route, output_names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], trip: Trip
    ) -> Answer | None:
        """The same on asyncio: heads run in their turn, in threads; cancelling cancels the gateway's work too."""
        names = output_names or self._declared.outputs
        while plan := await self._plan_awaitable(route, trip):
            sent: Outgoing | None = None
            try:
                sent = await self._device.in_turn(partial(self._depart, route, plan, names, feeds, trip))
                reply, timeout_s = self._send(route, plan, sent, trip)
                compute = partial(self._compute, route, output_names, feeds, trip)
                outcome = await first_answer_awaitable(sent, reply, plan.hedge_s, timeout_s, compute)
                return self._finish(route, plan, sent, outcome, trip)
            except Exception as exc:  # noqa: BLE001
                self._fail(route, plan, sent, exc, trip)
        return None

    def compute(
        self,
        route: Route,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        trip: Trip,
        *,
        options: Any,
        left_s: float | None,
    ) -> list[Any]:
        """The device's own answer: by a local variant that somebody trusted calibrated, else by the model."""
        trip.variant = variant = route.variant
        if variant is None:
            return self._device.compute(output_names, feeds, options, left_s)
        return self._device.compute(output_names or self._declared.outputs, feeds, options, left_s, run=variant.run)

    def answered_here(self, route: Route, outputs: list[Any], seconds: float, trip: Trip) -> Answer:
        """The device answered alone, after computing so long."""
        whole_s = route.in_whole_s(seconds, trip.variant)
        route.scheduler.observe_local(whole_s, monotonic(), self._device.n_runs)
        return self._answered(route, trip, outputs, trip.report_here(seconds, self.model_digest))

    def _answered(self, route: Route, trip: Trip, outputs: list[Any], report: RunReport) -> Answer:
        """Holds the answer against what was expected of it, and keeps both."""
        if trip.decision is not None:
            if report.fallback is None:
                route.scheduler.observe_answer(trip.decision, report.total_s)
            self.decisions.put(route.shape_id, trip.table, trip.decision, report)
        return Answer(outputs, report)

    def explain(self) -> list[Candidate]:
        """The candidates of the shape key used last."""
        last = max(list(self._routes.values()), key=lambda route: route.last_used_s, default=None)
        return last.explain(self._options, self._allowance.constraints(), monotonic()) if last is not None else []

    def prepare(self, feeds: Mapping[str, np.ndarray], timeout_s: float) -> bool:
        """Waits until these shapes have a verified remote way; whether they have one."""
        route = self.route(None, feeds)
        if route is None:
            return False
        route.take_sample(feeds)
        self._preparation.add(route)
        return self._wait(route, timeout_s)

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent."""
        self._lock = Lock()
        self._device.forked()

    def _wait(self, route: Route, timeout_s: float) -> bool:
        self._preparation.wait_for(lambda: route.has_way() or route.is_hopeless, timeout_s)
        return route.has_way()

    def _new_route(self, shapes: Shapes) -> Route:
        dropped = None
        with self._lock:
            if shapes in self._routes:
                return self._routes[shapes]
            if len(self._routes) >= N_ROUTES:
                oldest = min(self._routes, key=lambda known: self._routes[known].last_used_s)
                dropped = self._routes.pop(oldest)
            route = self._routes[shapes] = Route(shapes, prices_for(self._options.objective))
        if dropped is not None:
            self._preparation.drop(dropped)
        return route

    # -- planning

    def _plan(self, route: Route, trip: Trip) -> Plan | None:
        if trip.attempts >= MAX_ATTEMPTS:
            return None
        self._preparation.ensure_running()
        if self._must_wait(route):
            self._wait(route, self._options.deadline_s or FORCED_WAIT_S)
        before_s = perf_counter()
        plan = self._forced(route, trip) if self._options.is_forced else self._chosen(route, trip)
        trip.plan_s += perf_counter() - before_s
        return plan

    async def _plan_awaitable(self, route: Route, trip: Trip) -> Plan | None:
        import asyncio

        return await asyncio.to_thread(self._plan, route, trip) if self._must_wait(route) else self._plan(route, trip)

    def _must_wait(self, route: Route) -> bool:
        return self._options.is_forced and not self._options.fallback and not route.has_way()

    def _chosen(self, route: Route, trip: Trip) -> Plan | None:
        deadline_s = self._options.deadline_s
        way, decision = route.decide(
            self._allowance.constraints(),
            monotonic(),
            left_s=deadline_s - (perf_counter() - trip.started_s) if deadline_s is not None else None,
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
        if deadline_s is not None:
            # The device must begin in time, whatever the planner thought: from departure on, and heads take time too.
            here_s = (way.prospect.head_s or 0.0) * route.device_speed_ratio + way.prospect.encode_s
            left_s = self._time_left_s(route, trip) - here_s
            if left_s <= 0:
                return None
            hedge_s = min(hedge_s, left_s) if hedge_s is not None else left_s
        return Plan(way, decision, hedge_s)

    def _forced(self, route: Route, trip: Trip) -> Plan | None:
        way, decision, why = route.forced(self._options, self._allowance.constraints(), monotonic())
        left_s = self._time_left_s(route, trip)
        if way is not None and left_s <= 0:
            way, why = None, f"deadline_s={self._options.deadline_s} leaves no time for it"
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

    # -- the steps of an attempt

    def _depart(
        self, route: Route, plan: Plan, names: Sequence[str], feeds: Mapping[str, np.ndarray], trip: Trip
    ) -> Outgoing:
        with self._device.computing():
            sent = outgoing(
                plan.way,
                feeds,
                names,
                model_digest=self._preparation.model_digest,
                shape_key=route.shape_text,
                deadline_s=self._time_left_s(route, trip) if self._options.deadline_s else None,
                traceparent=current_traceparent(),
            )
        self._allowance.spend(sent.bytes_up)
        return sent

    def _send(self, route: Route, plan: Plan, sent: Outgoing, trip: Trip) -> tuple[Reply, float]:
        client = plan.way.holding.client
        client.standing.breaker.sent(monotonic())
        client.standing.retries.request()
        timeout_s = self._timeout_s(route, plan, trip)
        return client.infer(sent.request, stall_s=stall_s(client), timeout_s=timeout_s), timeout_s

    def _compute(
        self,
        route: Route,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, np.ndarray],
        trip: Trip,
        options: Any,
    ) -> list[np.ndarray]:
        """The device's own run beside a gateway's; it may use the whole deadline."""
        deadline_s = self._options.deadline_s
        left_s = None if deadline_s is None else deadline_s - (perf_counter() - trip.started_s)
        return self.compute(route, output_names, feeds, trip, options=options, left_s=left_s)

    def _finish(self, route: Route, plan: Plan, sent: Outgoing, outcome: Outcome, trip: Trip) -> Answer:
        """One side has answered: what is learnt of both, and the report."""
        scheduler, prospect, now_s = route.scheduler, plan.way.prospect, monotonic()
        trip.hedge_s = outcome.hedged_s
        scheduler.observe_head(prospect, sent.head_s, now_s)
        response = outcome.response
        if response is not None:
            scheduler.observe_remote(
                plan.decision,
                prospect,
                outcome.arrived_s - sent.sent_s,
                queue_s=response.queue_s,
                tail_s=response.compute_s,
                now_s=now_s,
            )
            trip.wasted_s += outcome.local_s
            report = trip.report_there(plan.way, sent, outcome, response, self._preparation.model_digest)
        else:
            if outcome.error is not None:
                self._fail(route, plan, sent, outcome.error, trip)
            else:
                scheduler.observe_cut_short(plan.decision, prospect, outcome.waited_s, outcome.acked_bytes, now_s)
                self._withdrawn(sent, outcome, trip)
            here_s = route.in_whole_s(outcome.local_s, trip.variant)
            scheduler.observe_local(here_s, now_s, self._device.n_runs, is_beside_attempt=True)
            report = trip.report_here(outcome.local_s, self._preparation.model_digest)
        return self._answered(route, trip, outcome.outputs, report)

    def _withdrawn(self, sent: Outgoing, outcome: Outcome, trip: Trip) -> None:
        """The device was faster: what had gone by then is wasted, the rest never goes."""
        gone_bytes = min(sent.bytes_up, outcome.sent_bytes)
        trip.attempts += 1
        trip.bytes_up += gone_bytes
        trip.wasted_s += sent.head_s + sent.encode_s
        self._allowance.spend(gone_bytes - sent.bytes_up)

    def _fail(self, route: Route, plan: Plan, sent: Outgoing | None, exc: Exception, trip: Trip) -> None:
        """Counts a failed attempt, against whom it concerns, so that the next requests do not make the same one."""
        way = plan.way
        trip.attempts += 1
        code = _code_of(exc)
        trip.fallback = f"{code}: {exc}"
        if sent is not None:
            trip.bytes_up += sent.bytes_up
            trip.wasted_s += sent.head_s + sent.encode_s
        if isinstance(exc, DigestMismatch | UnknownCut | NotFound):
            route.drop(way.holding)
            self._preparation.wake()
        elif is_gateways_fault(exc):
            retry_after_s = exc.fields.get("retry_after_s") if isinstance(exc, HybridError) else None
            route.scheduler.observe_failure(way.prospect, monotonic(), retry_after_s)
        elif not isinstance(exc, PlanError):  # a head that was closed meanwhile is nobody's fault
            way.crossing.refusals += 1
            if way.crossing.refusals >= MOST_REFUSALS:
                way.crossing.verified = False
                route.put_crossings(route.crossings)
        log.info("attempt.failed placement=%s code=%s", way.prospect.placement, code)
        if self._options.is_forced and not self._options.fallback:
            raise unavailable(self._options, trip.fallback) from exc

    # -- how long to wait

    def _time_left_s(self, route: Route, trip: Trip) -> float:
        """Seconds that a remote attempt may take so that the device can still answer before the deadline."""
        if self._options.deadline_s is None:
            return float("inf")
        reserve_s = 0.0
        if self._options.fallback or not self._options.is_forced:  # else the device never answers
            local_s = (route.local_s or 0.0) * route.device_speed_ratio
            reserve_s = LEAST_RESERVE_S + 1.5 * local_s * (1 + 2 * route.scheduler.device_spread_ratio)
        return self._options.deadline_s - (perf_counter() - trip.started_s) - reserve_s

    def _timeout_s(self, route: Route, plan: Plan, trip: Trip) -> float:
        patience_s = FORCED_TIMEOUT_S
        if not self._options.is_forced:
            patience_s = max(plan.decision.patience_s, LEAST_STALL_S)
        if plan.hedge_s is None or self._options.deadline_s is None:
            return min(patience_s, self._time_left_s(route, trip))
        # The device computes beside it: the reply has until the deadline itself.
        return min(patience_s, self._options.deadline_s - (perf_counter() - trip.started_s))


def _code_of(exc: Exception) -> str:
    if isinstance(exc, HybridError):
        return exc.code
    return GatewayStalled.code if isinstance(exc, TimeoutError) else EngineFailed.code
