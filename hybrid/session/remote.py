"""The half of a session that is not local: routes by shape, attempts, and what happens when they fail."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from time import monotonic
from typing import Any

import numpy as np

from hybrid.errors import (
    DigestMismatch,
    EngineFailed,
    GatewayStalled,
    HybridError,
    NotFound,
    PlanError,
    UnknownCut,
    UnknownSplit,
)
from hybrid.route.allowance import Allowance
from hybrid.route.departure import Headed, Outgoing, gone_on, headed, outgoing
from hybrid.route.feeds import Declared, Shapes
from hybrid.route.holding import is_gateways_fault
from hybrid.route.route import Route
from hybrid.route.this_machine import ThisMachine
from hybrid.route.way import MOST_REFUSALS
from hybrid.schedule.options import Options, unavailable
from hybrid.schedule.prospect import Candidate
from hybrid.scouting.preparation import Preparation
from hybrid.session.courier import Courier
from hybrid.session.decision_log import DecisionLog
from hybrid.session.device import Device
from hybrid.session.patience import current_traceparent, stall_s
from hybrid.session.planning import Plan, Planner
from hybrid.session.race import Attempt, Compute, Outcome, first_answer, first_answer_awaitable
from hybrid.session.report import RunReport
from hybrid.session.trip import Answer, Trip
from hybrid.transport.pending import Reply

log = logging.getLogger("hybrid.session")

N_ROUTES = 8
"""Shape keys that a session keeps; the one used least recently gives way."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request that may travel.

    Attributes:
        route: of its shapes.
        output_names: as the caller wants them; None or empty for all.
        feeds: the model's inputs by name.
        trip: what was done for it so far.
    """

    route: Route
    output_names: Sequence[str] | None
    feeds: Mapping[str, np.ndarray]
    trip: Trip


class Remote:
    """Carries requests out remotely where that is better; answers None where the device should compute alone.

    Args:
        options: the session's.
        declared: the model's inputs and outputs.
        device: this device's own runs.
        preparation: the background thread that makes ways.
        allowance: what may leave this machine.
        hops: how many services pass each request on, this one included.

    Attributes:
        decisions: of the last requests.
    """

    def __init__(
        self,
        options: Options,
        declared: Declared,
        device: Device,
        preparation: Preparation,
        *,
        allowance: Allowance,
        hops: int = 0,
    ) -> None:
        self._options = options
        self._hops = hops
        self._declared = declared
        self._device = device
        self._preparation = preparation
        self._allowance = allowance
        self._machine = ThisMachine.found()
        self._planner = Planner(options, device, preparation, allowance, self._machine.n_cores)
        self._courier = Courier()
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

    def call(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], trip: Trip) -> Call | None:
        """A request that may travel; None where onnxruntime has to judge feeds or names."""
        route = self.route(output_names, feeds)
        return None if route is None else Call(route, output_names, feeds, trip)

    def run(self, call: Call) -> Answer | None:
        """Tries what the planner chooses; None when the device should compute (`trip.fallback` says why if it failed).

        Raises:
            PlacementUnavailable: a forced placement that cannot be had, with `fallback=False`.
        """
        while plan := self._planner.plan(call.route, call.trip):
            attempt = Attempt()
            try:
                here = self._headed(call, plan)
                self._set_out(call, plan, here, attempt)
                timeout_s = self._planner.timeout_s(call.route, plan, call.trip)
                outcome = first_answer(attempt, plan.hedge_s, timeout_s, self._own_run(call, here))
                return self._finish(call, plan, here, outcome)
            except Exception as exc:  # noqa: BLE001  (whatever it is, here or there: the device answers)
                self._fail(call, plan, attempt.sent, exc)
        return None

    async def run_awaitable(self, call: Call) -> Answer | None:
        """The same on asyncio: heads run in their turn, in threads; cancelling cancels the gateway's work too."""
        while plan := await self._planner.plan_awaitable(call.route, call.trip):
            attempt = Attempt()
            try:
                here = await self._set_out_awaitable(call, plan, attempt)
                timeout_s = self._planner.timeout_s(call.route, plan, call.trip)
                outcome = await first_answer_awaitable(attempt, plan.hedge_s, timeout_s, self._own_run(call, here))
                return self._finish(call, plan, here, outcome)
            except Exception as exc:  # noqa: BLE001
                self._fail(call, plan, attempt.sent, exc)
        return None

    def compute(self, call: Call, options: Any, left_s: float | None) -> list[Any]:
        """The device's own answer: by a local variant that somebody trusted calibrated, else by the model."""
        call.trip.variant = variant = call.route.variant
        if variant is None:
            return self._device.compute(call.output_names, call.feeds, options, left_s)
        names = call.output_names or self._declared.outputs
        return self._device.compute(names, call.feeds, options, left_s, run=variant.run)

    def answered_here(self, call: Call, outputs: list[Any], seconds: float) -> Answer:
        """The device answered alone, after computing so long."""
        whole_s = call.route.in_whole_s(seconds, call.trip.variant)
        call.route.scheduler.observe_local(whole_s, monotonic(), self._device.n_runs)
        return self._answered(call, outputs, call.trip.report_here(seconds, self.model_digest))

    def _answered(self, call: Call, outputs: list[Any], report: RunReport) -> Answer:
        """Holds the answer against what was expected of it, and keeps both."""
        trip = call.trip
        if trip.decision is not None:
            if report.fallback is None:
                call.route.scheduler.observe_answer(trip.decision, report.total_s)
            self.decisions.put(call.route.shape_id, trip.table, trip.decision, report)
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
        return self._planner.wait(route, timeout_s)

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent."""
        self._lock = Lock()
        self._device.forked()
        self._courier.forked()

    def close(self, wait_s: float) -> None:
        """Ends the courier after what it does, waiting at most this long; requests go on without it."""
        self._courier.close(wait_s)

    def _new_route(self, shapes: Shapes) -> Route:
        dropped = None
        with self._lock:
            if shapes in self._routes:
                return self._routes[shapes]
            if len(self._routes) >= N_ROUTES:
                oldest = min(self._routes, key=lambda known: self._routes[known].last_used_s)
                dropped = self._routes.pop(oldest)
            route = self._routes[shapes] = Route(shapes, self._options.objective, self._machine)
        if dropped is not None:
            self._preparation.drop(dropped)
        return route

    # -- the steps of an attempt

    def _names(self, call: Call) -> Sequence[str]:
        return call.output_names or self._declared.outputs

    def _headed(self, call: Call, plan: Plan) -> Headed:
        if not plan.way.prospect.cut:
            return headed(plan.way, call.feeds, ())
        with self._device.computing():
            return headed(plan.way, call.feeds, self._names(call))

    def _set_out(self, call: Call, plan: Plan, here: Headed, attempt: Attempt) -> None:
        """Encodes and sends: in a race beside what this thread does next, else before it."""
        encode = partial(self._encode, call, plan, here, current_traceparent())
        depart = partial(attempt.depart, encode, partial(self._send, call, plan))
        if plan.is_race and self._courier.carry(depart):
            return
        with self._device.computing():
            depart()

    async def _set_out_awaitable(self, call: Call, plan: Plan, attempt: Attempt) -> Headed:
        """The same with its head; what computes does so in its turn, in a thread."""

        def set_out() -> Headed:
            here = self._headed(call, plan)
            self._set_out(call, plan, here, attempt)
            return here

        return set_out() if plan.is_race and not plan.way.prospect.cut else await self._device.in_turn(set_out)

    def _encode(self, call: Call, plan: Plan, here: Headed, traceparent: str) -> Outgoing:
        return outgoing(
            plan.way,
            here,
            self._names(call),
            model_digest=self._preparation.model_digest,
            shape_key=call.route.shape_text,
            deadline_s=self._planner.time_left_s(call.route, call.trip) if call.trip.deadline_s else None,
            traceparent=traceparent,
            hops=self._hops,
        )

    def _send(self, call: Call, plan: Plan, sent: Outgoing) -> Reply:
        self._allowance.spend(sent.bytes_up)
        client = plan.way.holding.client
        client.standing.breaker.sent(monotonic())
        client.standing.retries.request()
        timeout_s = self._planner.timeout_s(call.route, plan, call.trip)
        return client.infer(sent.request, stall_s=stall_s(client), timeout_s=timeout_s)

    def _own_run(self, call: Call, here: Headed) -> Compute:
        """The device's own run beside a gateway's, from the activation where it can; it may use the whole deadline."""

        def compute(options: Any) -> list[np.ndarray]:
            left_s = call.trip.left_s
            if here.rest is None:
                return self.compute(call, options, left_s)
            call.trip.variant = None
            return self._device.compute(self._names(call), here.held, options, left_s, run=partial(_gone_on, here))

        return compute

    def _finish(self, call: Call, plan: Plan, here: Headed, outcome: Outcome) -> Answer:
        """One side has answered: what is learnt of both, and the report."""
        route, trip, prospect, now_s = call.route, call.trip, plan.way.prospect, monotonic()
        sent, response = outcome.sent, outcome.response
        trip.hedge_s = outcome.hedged_s
        route.scheduler.observe_head(prospect, here.head_s, now_s)
        if response is not None and sent is not None:
            route.scheduler.observe_remote(
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
                self._fail(call, plan, sent, outcome.error)
            else:
                self._withdrawn(call, plan, here, outcome)
            computed_s, whole_s = outcome.local_s, route.in_whole_s(outcome.local_s, trip.variant)
            if here.rest is not None:
                trip.cut, computed_s = prospect.cut, computed_s + here.head_s
                parts_s = (prospect.head_s or 0.0) + (prospect.rest_s or 0.0)
                whole_s = computed_s * (route.local_s or parts_s) / parts_s if parts_s else computed_s
            route.scheduler.observe_local(whole_s, now_s, self._device.n_runs, is_beside_attempt=True)
            report = trip.report_here(computed_s, self._preparation.model_digest)
        return self._answered(call, outcome.outputs, report)

    def _withdrawn(self, call: Call, plan: Plan, here: Headed, outcome: Outcome) -> None:
        """The device was faster: what had gone by then is wasted, the rest never goes."""
        trip, sent = call.trip, outcome.sent
        trip.attempts += 1
        trip.wasted_s += here.head_s if here.rest is None else 0.0
        if sent is None:
            return  # nothing was sent: nothing is learnt of the link, and nothing is to be paid
        gone_bytes = min(sent.bytes_up, outcome.sent_bytes)
        trip.bytes_up += gone_bytes
        trip.wasted_s += sent.encode_s
        self._allowance.spend(gone_bytes - sent.bytes_up)
        scheduler, prospect = call.route.scheduler, plan.way.prospect
        scheduler.observe_cut_short(plan.decision, prospect, outcome.waited_s, outcome.acked_bytes, monotonic())

    def _fail(self, call: Call, plan: Plan, sent: Outgoing | None, exc: Exception) -> None:
        """Counts a failed attempt, against whom it concerns, so that the next requests do not make the same one."""
        route, trip, way = call.route, call.trip, plan.way
        trip.attempts += 1
        code = _code_of(exc)
        trip.fallback = f"{code}: {exc}"
        if sent is not None:
            trip.bytes_up += sent.bytes_up
            trip.wasted_s += sent.head_s + sent.encode_s
        if isinstance(exc, DigestMismatch | UnknownCut | UnknownSplit | NotFound):
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


def _gone_on(here: Headed, names: Sequence[str], _: Mapping[str, Any], options: Any) -> list[np.ndarray]:
    """`gone_on` as an engine's run."""
    return gone_on(here, names, options)


def _code_of(exc: Exception) -> str:
    if isinstance(exc, HybridError):
        return exc.code
    return GatewayStalled.code if isinstance(exc, TimeoutError) else EngineFailed.code
