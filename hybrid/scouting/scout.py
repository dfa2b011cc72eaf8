"""Finding out, away from any request, which ways of a route are worth taking: heads timed, ways tried and verified."""

import logging
from dataclasses import replace
from time import monotonic, perf_counter

import numpy as np

from hybrid.artifact.splits import PREFIX
from hybrid.errors import RefusedError, UnknownCut, Warming
from hybrid.partition.prepared import Prepared
from hybrid.profile.record import Timing
from hybrid.route.allowance import Allowance
from hybrid.route.departure import assembled, encoded, headed, outgoing
from hybrid.route.holding import is_gateways_fault
from hybrid.route.levels import Crossed, as_levels
from hybrid.route.route import Route
from hybrid.route.way import MOST_REFUSALS, Crossing, Way
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import refusal
from hybrid.scouting.background import N_RUNS, BackgroundEngine
from hybrid.scouting.heads import OpenHeads, close
from hybrid.scouting.knowledge import Knowledge
from hybrid.scouting.outlook import UNKNOWN_S, best_s, exact_way, forbid
from hybrid.scouting.sameness import TOLERANCE_RATIO, distance, is_alike
from hybrid.scouting.splits import Splits
from hybrid.scouting.way_making import WayMaker
from hybrid.wire.message import InferResponse
from hybrid.wire.split_coding import SplitCoder

log = logging.getLogger("hybrid.session")

SHADOW = Decision(index=0)
"""A trial is nobody's request: no decision led to it."""

TRIAL_TIMEOUT_S = 30.0
TRIAL_STALL_S = 3.0
TRY_RATIO = 1.5
"""A crossing is tried only if it is expected to take at most this many times what is to be had already."""

HOPE_RATIO = 0.7
"""A cut is timed only if this share of its estimate would still beat the best way known."""


class Scout:
    """Builds, times and verifies the ways of routes; runs on the preparation thread only.

    Args:
        options: the session's.
        allowance: what may leave this machine.
        device: this device's engine.
        model_digest: digest of the model.
        outputs: names of all outputs of the whole model.
        knowledge: what is known of the model before anything is measured.
        splits: those of the model's artifact.
        heads: what stays open beside the whole model.
    """

    def __init__(
        self,
        options: Options,
        allowance: Allowance,
        device: BackgroundEngine,
        *,
        model_digest: str,
        outputs: tuple[str, ...],
        knowledge: Knowledge,
        splits: Splits,
        heads: OpenHeads,
    ) -> None:
        self._options = options
        self._knowledge = knowledge
        self._maker = WayMaker(options, allowance, knowledge, splits)
        self._allowance = allowance
        self._model_digest = model_digest
        self._outputs = outputs
        self._device = device
        self._heads = heads
        self._n_unanswered = 0

    def scout(self, route: Route, prepared: Prepared | None) -> bool:
        """Brings a route's ways up to date with what its gateways hold and its link carries now.

        Returns:
            Whether every way that was tried had an answer, right or wrong; if not, scout again soon.
        """
        self._n_unanswered = 0
        if not self._refer(route):
            return False
        self._ask(route)
        try:
            crossings = self._maker.crossings(route, prepared)
        except UnknownCut as exc:
            route.note = str(exc)
            return True
        measured = [crossing for crossing in crossings if self._measure(route, crossing, crossings, prepared)]
        constraints = self._allowance.constraints()
        measured.sort(key=lambda crossing: best_s(route, crossing, constraints))
        kept = self._heads.fitting(prepared, measured) if prepared is not None else []
        for crossing in measured:
            if crossing.cut is not None and crossing not in kept:
                close(crossing)
            elif not crossing.verified and self._is_worth_trying(route, crossing, crossings):
                self._try(route, crossing)
        if prepared is not None and self._options.kind == "auto":  # a forced placement is never hedged
            verified = [crossing for crossing in kept if crossing.verified]
            self._heads.go_on(prepared, route, self._outputs, verified)
        self._heads.settle()
        route.put_crossings(tuple(crossings))
        route.note = "" if route.has_way() else self._why_none(crossings, prepared)
        log.info("route.scouted shape=%s crossings=%d usable=%s", route.shape_key.id, len(crossings), route.has_way())
        for holding in route.holdings:
            self._knowledge.share(holding.client, route.shape_key)
        return self._n_unanswered == 0

    def has_news(self, route: Route) -> bool:
        """Asks, now and then, whether a gateway has newer calibrations; whether more codecs may be used now."""
        return self._ask(route)

    def _ask(self, route: Route) -> bool:
        asked = [self._knowledge.ask(holding.client, route.shape_key) for holding in route.holdings]
        return any(asked)

    def probe_if_due(self, route: Route) -> None:
        """Sends the sample along a light verified crossing where its gateway was not heard of for too long."""
        constraints, down = self._allowance.constraints(), route.down()
        probe = route.scheduler.probe_due(monotonic(), constraints=constraints, down=down)
        if probe is None:
            return
        prospect = route.scheduler.table.prospects[probe.index]
        for crossing in route.crossings:
            if crossing.verified and crossing.can_run and prospect.key in {way.prospect.key for way in crossing.ways}:
                self._try(route, crossing)
                route.put_crossings(route.crossings)
                return

    def remeasure(self, route: Route) -> None:
        """Runs the whole model once on the device, which nobody asked to compute for a while."""
        if route.sample is not None:
            _, seconds = self._device.timed_whole(self._outputs, route.sample, n_runs=1)
            route.scheduler.observe_local(seconds[0], monotonic())

    def _why_none(self, crossings: list[Crossing], prepared: Prepared | None) -> str:
        ways = [way for crossing in crossings for way in crossing.ways]
        constraints = self._allowance.constraints()
        said = next((why for way in ways if (why := refusal(way.prospect, constraints))), "")
        if not crossings and self._options.codec != "auto":
            said = f"no gateway that holds the model decodes the codec {self._options.codec!r}, or has this cut"
            if self._options.codec.startswith(PREFIX):
                said = f"{self._options.codec} is not in the model's artifact for this cut, or at no gateway"
        if not said and self._options.kind == "split" and prepared is not None:
            said = prepared.table.note or ""
        return said or "no remote way could be verified yet"

    def _refer(self, route: Route) -> bool:
        """The whole model's answer to the sample, with which every way is compared; False where it has none."""
        if route.sample is None:
            return False
        if route.reference is None:
            try:
                known_s = self._knowledge.local_s(route.shape_key)
                n_runs = 1 if known_s is not None else N_RUNS
                route.reference, seconds = self._device.timed_whole(self._outputs, route.sample, n_runs=n_runs)
            except Exception as exc:  # noqa: BLE001  (whatever the engine raises for these inputs)
                log.info("sample.refused shape=%s error=%s", route.shape_key.id, type(exc).__name__)
                route.note = "the model refused the request's inputs; another request of these shapes is waited for"
                route.sample = None
                return False
            timing = Timing.of(seconds)
            if known_s is None:
                self._knowledge.note_local(route.shape_key, timing)
            # The whole model and the heads are profiled alike: what the machine does now is the running ratio's matter.
            route.scheduler.profile_local(known_s or timing.low_s, is_settled=True)
            for taken_s in seconds[1:] or seconds:  # the first of several warms up
                route.scheduler.observe_local(taken_s, monotonic())
        return True

    # -- what each costs

    def _measure(self, route: Route, crossing: Crossing, crossings: list[Crossing], prepared: Prepared | None) -> bool:
        """Times the head and each encoding, once; False for a crossing that cannot win now, or cannot run here."""
        if crossing.refusals >= MOST_REFUSALS:
            return False
        if crossing.split is not None and refusal(crossing.ways[0].prospect, self._allowance.permitting()):
            return False
        if crossing.cut is not None and crossing.head is None:
            obstacle = self._heads.obstacle(prepared, crossing.cut, crossing.split) if prepared is not None else ""
            if obstacle and self._options.kind == "auto":
                forbid(crossing, obstacle)
                return False
            known_s, hoped_s = self._best_known_s(route, crossings), self._maker.hope_s(route, crossing)
            if HOPE_RATIO * hoped_s > known_s:
                reason = f"cannot win: about {1e3 * hoped_s:.0f} ms expected where {1e3 * known_s:.0f} are to be had"
                forbid(crossing, reason)
                return False
        try:
            self._time(route, crossing, crossings, prepared)
        except Exception as exc:  # noqa: BLE001  (whatever the engine raises: this cut cannot run here)
            forbid(crossing, f"the head cannot run here: {exc}")
            return False
        forbid(crossing, "")
        if crossing.cut is None and not crossing.verified:
            link = crossing.holding.client.link.view
            if link.transfer_s(crossing.ways[0].prospect.bytes_up, 0) is None:
                self._try(route, crossing)  # nothing is known of the link before something went over it
        return not crossing.ways[0].prospect.obstacle

    def _best_known_s(self, route: Route, crossings: list[Crossing]) -> float:
        """The fewest seconds that are to be had without what is being considered."""
        constraints = self._allowance.constraints()
        verified = (best_s(route, crossing, constraints) for crossing in crossings if crossing.verified)
        known_s = min(verified, default=UNKNOWN_S)
        if self._options.kind != "auto":
            return known_s
        return min(known_s, (route.local_s or UNKNOWN_S) * route.device_speed_ratio)

    def _is_worth_trying(self, route: Route, crossing: Crossing, crossings: list[Crossing]) -> bool:
        """Whether it could be chosen soon; a trial that could not only fills the link."""
        if self._options.kind != "auto":
            return True
        expected_s = best_s(route, crossing, self._allowance.constraints())
        return expected_s == UNKNOWN_S or expected_s < TRY_RATIO * self._best_known_s(route, crossings)

    def _time(self, route: Route, crossing: Crossing, crossings: list[Crossing], prepared: Prepared | None) -> None:
        if crossing.cut is not None and prepared is not None:
            constraints = self._allowance.constraints()
            worst_first = sorted(crossings, key=lambda other: -best_s(route, other, constraints))
            if self._heads.open(prepared, crossing, worst_first):
                route.put_crossings(route.crossings)
        if crossing.is_timed:
            return
        arrays, head_s = route.sample or {}, 0.0
        coder = None
        if crossing.head is not None:
            arrays, head_s = self._head(route, crossing)
            coder = crossing.head.coder
        for way in crossing.ways:
            # The first encoding of a process loads the codec's library: the second one tells what a request pays.
            going = as_levels(crossing.head, arrays, way.prospect.codec)
            with self._device.in_engine:  # an encoder may run in it
                encode_s, bytes_up = min(_encoding(going, way.prospect.codec, coder) for _ in range(2))
            way.prospect = replace(way.prospect, head_s=head_s, encode_s=encode_s, bytes_up=bytes_up)
        crossing.is_timed = True

    def _head(self, route: Route, crossing: Crossing) -> tuple[dict[str, np.ndarray], float]:
        """What crosses, and the head's seconds: as this machine measured them before, else as they are now."""
        assert crossing.head is not None
        assert crossing.cut is not None
        cut_id, is_own = crossing.cut.id, crossing.has_own_head  # profiles are of cuts' own heads
        known = self._knowledge.own_head(route.shape_key, cut_id) if is_own else None
        n_runs = 0 if known is not None else N_RUNS
        arrays, seconds = self._device.timed_head(crossing.head, route.sample or {}, n_runs=n_runs)
        if known is None:
            # Profiled as if the device had its usual speed.
            known = Timing.of([taken_s / route.device_speed_ratio for taken_s in seconds])
            if is_own:
                self._knowledge.note_head(route.shape_key, cut_id, known)
        return arrays, known.low_s

    # -- whether it is right

    def _try(self, route: Route, crossing: Crossing) -> None:
        """Composes one inference over this crossing, by its lightest lossless codec, and compares it with the whole."""
        way = exact_way(crossing)
        if refusal(way.prospect, self._allowance.constraints()):
            return
        if crossing.holding.view(monotonic()) is None:
            self._n_unanswered += 1
            return
        is_learned = crossing.split is not None and crossing.split.is_learned
        try:
            response, outputs = self._composed(route, way)
            if is_learned and not crossing.verified:  # a decoder's first run says little of the next ones
                response = min(response, self._composed(route, way)[0], key=lambda reply: reply.compute_s)
        except Exception as exc:  # noqa: BLE001  (the gateway's errors, or the head's engine's own)
            self._failed(route, crossing, exc)
            return
        if is_learned and not crossing.verified:  # the gateway's seconds of this tail are without the decoder's
            way.prospect = replace(way.prospect, tail_s=response.compute_s)
        route.scheduler.observe_remote(
            SHADOW, way.prospect, 0.0, queue_s=response.queue_s, tail_s=response.compute_s, now_s=monotonic()
        )
        for sibling in crossing.ways:
            tail_s = response.compute_s if sibling.prospect.tail_s is None else sibling.prospect.tail_s
            sibling.prospect = replace(sibling.prospect, tail_s=tail_s)
        bytes_down = sum(len(tensor.payload) for tensor in response.outputs)
        way.prospect = replace(way.prospect, bytes_down=bytes_down)
        self._compare(crossing, outputs, route.reference or [])

    def _compare(self, crossing: Crossing, outputs: list[np.ndarray], wanted: list[np.ndarray]) -> None:
        """Takes a crossing whose outputs are the whole model's, or where they are meant to differ have its form."""
        difference, cut_id = distance(outputs, wanted), crossing.cut.id if crossing.cut is not None else "input"
        if crossing.split is not None:
            crossing.verified = is_alike(outputs, wanted)
            log.info("split.tried id=%s cut=%s difference=%.1e", crossing.split.id, cut_id, difference)
            if not crossing.verified:
                crossing.refusals = MOST_REFUSALS
                forbid(crossing, "its outputs have not the form of the whole model's, or hold no numbers")
            return
        crossing.verified = difference <= TOLERANCE_RATIO
        if not crossing.verified:
            limit = f"of its largest value (limit {TOLERANCE_RATIO:.0e})"
            crossing.refusals = MOST_REFUSALS
            forbid(crossing, f"differs from the whole model by {difference:.1e} {limit}")
            log.warning("crossing.rejected cut=%s difference=%.1e", cut_id, difference)

    def _composed(self, route: Route, way: Way) -> tuple[InferResponse, list[np.ndarray]]:
        """The gateway's reply to the sample, and what head and tail gave together."""
        with self._device.in_engine:
            sent = outgoing(
                way,
                headed(way, route.sample or {}, self._outputs),
                self._outputs,
                model_digest=self._model_digest,
                shape_key=route.shape_key.text,
                deadline_s=None,
                traceparent="",
            )
        self._allowance.spend(sent.bytes_up)
        way.holding.client.standing.breaker.sent(monotonic())
        future = way.holding.client.infer(sent.request, stall_s=TRIAL_STALL_S, timeout_s=TRIAL_TIMEOUT_S)
        response = future.result(timeout=TRIAL_TIMEOUT_S + 1)
        return response, assembled(sent, response)

    def _failed(self, route: Route, crossing: Crossing, exc: Exception) -> None:
        """Counts against the gateway what is the gateway's, and against the crossing what is its own."""
        code = getattr(exc, "code", type(exc).__name__)
        log.info("crossing.failed cut=%s error=%s", crossing.cut.id if crossing.cut else "input", code)
        if isinstance(exc, Warming):
            self._n_unanswered += 1  # the gateway is well, it only builds this tail: the next scouting asks again
        elif is_gateways_fault(exc):
            self._n_unanswered += 1
            retry_after_s = exc.fields.get("retry_after_s") if isinstance(exc, RefusedError) else None
            route.scheduler.observe_failure(exact_way(crossing).prospect, monotonic(), retry_after_s)
        else:
            crossing.refusals += 1
            forbid(crossing, f"refused: {code}: {exc}")


def _encoding(arrays: Crossed, codec: str, coder: SplitCoder | None) -> tuple[float, int]:
    """Seconds and bytes of encoding what crosses."""
    before_s = perf_counter()
    tensors = encoded(arrays, codec, coder)
    return perf_counter() - before_s, sum(len(tensor.payload) for tensor in tensors)
