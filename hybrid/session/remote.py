"""The half of a session that is not local: routes by shape, planning, attempts, and what happens when they fail."""

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Lock
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from hybrid.errors import (
    DigestMismatch,
    EngineFailed,
    GatewayStalled,
    HybridError,
    NotFound,
    UnknownCut,
)
from hybrid.route.allowance import Allowance
from hybrid.route.departure import Outgoing, assembled, outgoing
from hybrid.route.feeds import Declared, Shapes
from hybrid.route.holding import is_gateways_fault
from hybrid.route.route import Route
from hybrid.route.way import MOST_REFUSALS, Way
from hybrid.schedule.options import Options, unavailable
from hybrid.schedule.planner import Candidate
from hybrid.scouting.preparation import Preparation
from hybrid.session.report import RunReport
from hybrid.session.trip import Trip
from hybrid.wire.message import InferResponse

log = logging.getLogger("hybrid.session")

N_ROUTES = 8
"""Shape keys that a session keeps; the one used least recently gives way."""

MAX_ATTEMPTS = 2
FORCED_TIMEOUT_S = 60.0
FORCED_WAIT_S = 60.0
LEAST_STALL_S = 0.5
MOST_STALL_S = 3.0
LEAST_RESERVE_S = 0.010
"""Kept free before a deadline beside the device's own seconds: waking a thread takes milliseconds on a busy machine."""


class Remote:
    """Plans each request and carries it out remotely where that is better; answers None where the device should.

    Args:
        options: the session's.
        declared: the model's inputs and outputs.
        preparation: the background thread that makes ways.
        allowance: what may leave this machine.
    """

    def __init__(self, options: Options, declared: Declared, preparation: Preparation, allowance: Allowance) -> None:
        self._options = options
        self._declared = declared
        self._preparation = preparation
        self._allowance = allowance
        self._outputs = frozenset(declared.outputs)
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
    ) -> "Arrival | None":
        """Tries what the planner chooses; None when the device should compute (`trip.fallback` says why if it failed).

        Raises:
            PlacementUnavailable: a forced placement that cannot be had, with `fallback=False`.
        """
        names = output_names or self._declared.outputs
        while way := self._plan(route, trip):
            sent: Outgoing | None = None
            future: Future[InferResponse] | None = None
            try:
                sent = self._depart(route, way, names, feeds, trip)
                timeout_s = self._timeout_s(route, trip)
                future = way.holding.client.infer(sent.request, stall_s=stall_s(way), timeout_s=timeout_s)
                return self._arrive(route, way, sent, future.result(timeout=timeout_s + 1.0), trip)
            except Exception as exc:  # noqa: BLE001  (whatever it is, here or there: the device answers)
                self._fail(route, way, sent, exc, trip)
            finally:
                if future is not None:
                    future.cancel()
        return None

    async def run_awaitable(
        self, route: Route, output_names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], trip: Trip
    ) -> "Arrival | None":
        """The same on asyncio: heads run in a thread, and cancelling cancels the gateway's work too."""
        names = output_names or self._declared.outputs
        while way := await self._plan_awaitable(route, trip):
            sent: Outgoing | None = None
            try:
                sent = await asyncio.to_thread(self._depart, route, way, names, feeds, trip)
                timeout_s = self._timeout_s(route, trip)
                future = way.holding.client.infer(sent.request, stall_s=stall_s(way), timeout_s=timeout_s)
                async with asyncio.timeout(timeout_s + 1.0):
                    response = await asyncio.wrap_future(future)
                return self._arrive(route, way, sent, response, trip)
            except Exception as exc:  # noqa: BLE001
                self._fail(route, way, sent, exc, trip)
        return None

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
            route = self._routes[shapes] = Route(shapes)
        if dropped is not None:
            self._preparation.drop(dropped)
        return route

    # -- the steps of an attempt

    def _plan(self, route: Route, trip: Trip) -> Way | None:
        if trip.attempts >= MAX_ATTEMPTS:
            return None
        self._preparation.ensure_running()
        if self._must_wait(route):
            self._wait(route, self._options.deadline_s or FORCED_WAIT_S)
        before_s = perf_counter()
        way = self._forced(route, trip) if self._options.is_forced else self._chosen(route, trip)
        trip.plan_s += perf_counter() - before_s
        return way

    async def _plan_awaitable(self, route: Route, trip: Trip) -> Way | None:
        return await asyncio.to_thread(self._plan, route, trip) if self._must_wait(route) else self._plan(route, trip)

    def _must_wait(self, route: Route) -> bool:
        return self._options.is_forced and not self._options.fallback and not route.has_way()

    def _chosen(self, route: Route, trip: Trip) -> Way | None:
        way, decision = route.decide(self._options, self._allowance.constraints(), monotonic())
        trip.predicted_s = decision.predicted_s
        if way is None and not route.has_way():
            trip.fallback = trip.fallback or f"not_available: {route.why_none}"
        if way is not None and (decision.predicted_s or 0.0) >= self._time_left_s(route, trip):
            return None
        return way

    def _forced(self, route: Route, trip: Trip) -> Way | None:
        way, why = route.forced(self._options, self._allowance.constraints(), monotonic())
        if way is not None and self._time_left_s(route, trip) <= 0:
            way, why = None, f"deadline_s={self._options.deadline_s} leaves no time for it"
        if way is None:
            trip.fallback = trip.fallback or f"not_available: {why}"
            if not self._options.fallback:
                raise unavailable(self._options, trip.fallback)
        return way

    def _depart(
        self, route: Route, way: Way, names: Sequence[str], feeds: Mapping[str, np.ndarray], trip: Trip
    ) -> Outgoing:
        sent = outgoing(
            way,
            feeds,
            names,
            model_digest=self._preparation.model_digest,
            shape_key=route.shape_key.text,
            deadline_s=self._time_left_s(route, trip) if self._options.deadline_s else None,
            traceparent=current_traceparent(),
        )
        self._allowance.spend(sent.bytes_up)
        return sent

    def _arrive(self, route: Route, way: Way, sent: Outgoing, response: InferResponse, trip: Trip) -> "Arrival":
        total_s = perf_counter() - sent.sent_s
        outputs = assembled(sent, response)
        now_s = monotonic()
        way.holding.succeeded(response.compute_s, way.prospect.tail_s, response.queue_s, now_s)
        route.observe_head(sent.head_s, way.prospect.head_s, now_s)
        report = RunReport(
            placement=way.prospect.placement,
            cut=way.prospect.cut,
            codec=way.prospect.codec,
            gateway=way.prospect.gateway,
            bytes_up=trip.bytes_up + sent.bytes_up,
            bytes_down=sum(len(tensor.payload) for tensor in response.outputs),
            head_s=sent.head_s,
            encode_s=sent.encode_s,
            network_s=max(0.0, total_s - response.queue_s - response.compute_s),
            queue_s=response.queue_s,
            tail_s=response.compute_s,
            total_s=perf_counter() - trip.started_s,
            predicted_s=trip.predicted_s,
            plan_s=trip.plan_s,
            wasted_s=trip.wasted_s,
            wasted_bytes=trip.wasted_bytes,
            attempts=trip.attempts + 1,
            fallback=trip.fallback,
            model_digest=self._preparation.model_digest,
        )
        return Arrival(outputs, report)

    def _fail(self, route: Route, way: Way, sent: Outgoing | None, exc: Exception, trip: Trip) -> None:
        """Counts a failed attempt, against whom it concerns, so that the next requests do not make the same one."""
        trip.attempts += 1
        code = _code_of(exc)
        trip.fallback = f"{code}: {exc}"
        if sent is not None:
            trip.bytes_up += sent.bytes_up
            trip.wasted_bytes += sent.bytes_up
            trip.wasted_s += sent.head_s + sent.encode_s
        if isinstance(exc, DigestMismatch | UnknownCut | NotFound):
            route.drop(way.holding)
            self._preparation.wake()
        elif is_gateways_fault(exc):
            retry_after_s = exc.fields.get("retry_after_s") if isinstance(exc, HybridError) else None
            way.holding.failed(monotonic(), retry_after_s)
        else:
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
            reserve_s = LEAST_RESERVE_S + 1.5 * local_s * (1 + 2 * route.device_spread_ratio)
        return self._options.deadline_s - (perf_counter() - trip.started_s) - reserve_s

    def _timeout_s(self, route: Route, trip: Trip) -> float:
        patience_s = FORCED_TIMEOUT_S
        if not self._options.is_forced and trip.predicted_s is not None:
            patience_s = max(3 * trip.predicted_s, trip.predicted_s + LEAST_STALL_S)
        return min(patience_s, self._time_left_s(route, trip))


@dataclass(frozen=True, slots=True)
class Arrival:
    """A remote answer and its report."""

    outputs: list[np.ndarray]
    report: RunReport


def _code_of(exc: Exception) -> str:
    if isinstance(exc, HybridError):
        return exc.code
    return GatewayStalled.code if isinstance(exc, TimeoutError) else EngineFailed.code


def stall_s(way: Way) -> float:
    """Silence after which a connection counts as stalled: a few round trips and two chunks of 16 KiB at its rate."""
    link = way.holding.client.link.view
    chunks_s = 2 * 8 * 16384 / link.uplink_bps if link.uplink_bps else 0.0
    return min(MOST_STALL_S, max(LEAST_STALL_S, 4 * (link.rtt_s or 0.0) + chunks_s))


def current_traceparent() -> str:
    """W3C trace context of the caller's OpenTelemetry span, or an empty string; the library itself never imports it."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None:
        return ""
    context = api.get_current_span().get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
