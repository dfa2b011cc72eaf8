"""Finding out, away from any request, which ways of a route are worth taking: heads timed, ways tried and verified."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, perf_counter

import numpy as np

from compression.errors import CompressionError
from hybrid.errors import HybridError, RefusedError, UnknownCut, Warming
from hybrid.partition.cut import Cut
from hybrid.partition.prepared import Prepared
from hybrid.schedule.options import Options
from hybrid.schedule.planner import GatewayView, Prospect, predicted_s
from hybrid.session.engine import Engine
from hybrid.session.route import Route
from hybrid.session.way import EngineRun, Head, Holding, Outgoing, Way, assembled, outgoing
from hybrid.wire.message import InferResponse

log = logging.getLogger("hybrid.session")

TOLERANCE_RATIO = 1e-4
"""Largest |a - b| over largest |b| at which two results are the same."""

TRIAL_TIMEOUT_S = 30.0
TRIAL_STALL_S = 3.0
N_HEAD_RUNS = 3
HEAD_BUDGET_S = 1.0
N_KEPT_HEADS = 3
UNKNOWN_S = float("inf")
HOPE_RATIO = 0.7
"""A cut is timed only if this share of its estimate would still beat the best way known."""


class Scout:
    """Builds, times and verifies the ways of routes; runs on the preparation thread only.

    Args:
        options: the session's.
        model_digest: digest of the model.
        outputs: names of all outputs of the whole model.
        run_whole: the local session's run.
        open_head: opens a head model.
    """

    def __init__(
        self,
        options: Options,
        model_digest: str,
        outputs: tuple[str, ...],
        run_whole: EngineRun,
        open_head: Callable[[Path], Engine],
    ) -> None:
        self._options = options
        self._model_digest = model_digest
        self._outputs = outputs
        self._run_whole = run_whole
        self._open_head = open_head
        self._n_unanswered = 0

    def scout(self, route: Route, prepared: Prepared | None) -> bool:
        """Brings a route's ways up to date with what its gateways hold and its link carries now.

        Returns:
            Whether every way that was tried had an answer, right or wrong; if not, scout again soon.
        """
        if route.sample is None or not route.holdings:
            return False
        self._n_unanswered = 0
        self._refer(route)
        try:
            cuts = self._cuts(prepared)
        except UnknownCut as exc:
            route.note = str(exc)
            return True
        ways = self._known_or_new(route, cuts)
        kind = self._options.kind
        if kind in ("auto", "offload"):
            for way in [way for way in ways if way.prospect.placement == "offload"]:
                self._measure_and_try(route, way)
        route.put_ways(tuple(ways))
        if kind in ("auto", "split") and prepared is not None:
            self._scout_cuts(route, prepared, ways)
        route.put_ways(tuple(ways))
        usable = [way for way in ways if way.verified]
        route.note = "" if usable else self._why_none(ways, prepared)
        log.info("route.scouted shape=%s ways=%d usable=%d", route.shape_key.id, len(ways), len(usable))
        return self._n_unanswered == 0

    def _why_none(self, ways: list[Way], prepared: Prepared | None) -> str:
        said = next((way.prospect.obstacle for way in ways if way.prospect.obstacle), "")
        if not said and self._options.kind == "split" and prepared is not None:
            said = prepared.table.note or ""
        return said or "no remote way could be verified yet"

    def probe(self, route: Route) -> None:
        """Sends the sample along the best verified way, beside no request, to learn what the link carries now."""
        for way in route.ways:
            if way.verified and way.holding.view(monotonic()) is not None:
                self._try(route, way)
                return

    def _refer(self, route: Route) -> None:
        """The whole model's answer to the sample: what every way is compared with."""
        if route.reference is not None or route.sample is None:
            return
        started_s = perf_counter()
        route.reference = self._run_whole(self._outputs, route.sample)
        if route.local_s is None:
            route.profile_local(perf_counter() - started_s)

    def _known_or_new(self, route: Route, cuts: list[Cut | None]) -> list[Way]:
        """One way for each (gateway, cut, codec), keeping those that are there."""
        known = {(way.prospect.key, way.holding): way for way in route.ways}
        codecs = ("none", "lossless") if self._options.codec == "auto" else (self._options.codec,)
        ways = []
        for holding in route.holdings:
            for cut in cuts:
                if cut is not None and cut.id not in holding.tails:
                    continue
                for codec in codecs:
                    prospect = self._prospect(route, holding, cut, codec)
                    ways.append(known.get((prospect.key, holding)) or Way(prospect, holding))
        return ways

    def _cuts(self, prepared: Prepared | None) -> list[Cut | None]:
        """The cuts to consider, None standing for the input cut, which needs no head."""
        if prepared is None:
            return [None]
        if self._options.forced_cut:
            return [prepared.table.get(self._options.forced_cut)]
        pareto = [cut for cut in prepared.table.interior if cut.id in prepared.table.pareto]
        if self._options.kind == "split" and not pareto:
            # No cut is worth it, but one is wanted: those with the fewest bytes.
            pareto = sorted((cut for cut in prepared.table.interior if cut.sized), key=lambda cut: cut.n_bytes)[:3]
        return [None, *pareto]

    def _prospect(self, route: Route, holding: Holding, cut: Cut | None, codec: str) -> Prospect:
        sample = route.sample or {}
        return Prospect(
            placement="split" if cut else "offload",
            cut=cut.id if cut else "",
            codec=codec,
            gateway=holding.client.url,
            head_s=None if cut else 0.0,
            bytes_up=cut.n_bytes if cut else sum(array.nbytes for array in sample.values()),
            bytes_down=sum(output.nbytes for output in route.reference or ()),
            tail_s=holding.tails.get(cut.id) if cut else holding.whole_s,
            accuracy_drop=0.0 if codec in ("none", "lossless") else None,
            raw_input=cut is None or any(tensor.name in sample for tensor in cut.tensors),
        )

    def _scout_cuts(self, route: Route, prepared: Prepared, ways: list[Way]) -> None:
        """Times the cuts that could still win, the most promising first, and verifies the best of them."""
        interior = [way for way in ways if way.prospect.placement == "split"]
        forced = self._options.kind == "split"
        by_hope = sorted(interior, key=lambda way: _hope_s(route, prepared, way))
        for way in by_hope:
            best_s = min(
                (s for s in (_predicted(route, known) for known in ways) if s is not None), default=float("inf")
            )
            best_s = best_s if forced else min(best_s, route.local_s or float("inf"))
            hope_s = _hope_s(route, prepared, way)
            if way.head is None and HOPE_RATIO * hope_s > best_s:
                reason = f"cannot win: about {1e3 * hope_s:.0f} ms expected where {1e3 * best_s:.0f} are to be had"
                way.prospect = replace(way.prospect, obstacle=reason)
                continue
            way.prospect = replace(way.prospect, obstacle="")
            self._measure(route, way, prepared)
        timed = [way for way in interior if way.head is not None and not way.prospect.obstacle]
        timed.sort(key=lambda way: _predicted(route, way))
        for way in timed[:N_KEPT_HEADS]:
            if not way.verified:
                self._try(route, way)
        for way in timed[N_KEPT_HEADS:]:
            way.head, way.verified = None, False

    def _measure_and_try(self, route: Route, way: Way) -> None:
        if way.verified:
            return
        self._measure(route, way, None)
        if not way.prospect.obstacle:
            self._try(route, way)

    def _measure(self, route: Route, way: Way, prepared: Prepared | None) -> None:
        """Opens and times the head and encodes the sample once: real seconds and bytes of this way."""
        sample = route.sample
        if sample is None:
            return
        try:
            if prepared is not None and way.head is None:
                way.head = self._opened(prepared, way.prospect.cut)
            head_s = _timed_s(way.head, sample) if way.head is not None else 0.0
            # The first encoding of a process loads the codec's library: the second one tells what a request pays.
            sent = min((self._outgoing(route, way) for _ in range(2)), key=lambda sent: sent.encode_s)
        except (HybridError, CompressionError, RuntimeError, ValueError) as exc:
            way.prospect = replace(way.prospect, obstacle=f"the head cannot run here: {exc}")
            return
        way.prospect = replace(way.prospect, head_s=head_s, encode_s=sent.encode_s, bytes_up=sent.bytes_up)

    def _opened(self, prepared: Prepared, cut_id: str) -> Head:
        cut = prepared.table.get(cut_id)
        inputs = {name for name, _ in prepared.shape_key.shapes}
        crossing = tuple(tensor.name for tensor in cut.tensors)
        computed = (*(name for name in crossing if name not in inputs), *cut.head_outputs)
        engine = self._open_head(prepared.head_path(cut_id))
        return Head(
            run=engine.run,
            inputs=engine.inputs,
            crossing=crossing,
            computed=tuple(dict.fromkeys(computed)),
        )

    def _outgoing(self, route: Route, way: Way) -> Outgoing:
        return outgoing(
            way,
            route.sample or {},
            self._outputs,
            model_digest=self._model_digest,
            shape_key=route.shape_key.text,
            deadline_s=None,
            traceparent="",
        )

    def _try(self, route: Route, way: Way) -> None:
        """Composes one inference over this way and compares it with the whole model."""
        try:
            sent = self._outgoing(route, way)
            future = way.holding.client.infer(sent.request, stall_s=TRIAL_STALL_S, timeout_s=TRIAL_TIMEOUT_S)
            response = future.result(timeout=TRIAL_TIMEOUT_S + 1)
            difference = self._difference(route, way, sent, response)
        except (HybridError, CompressionError, TimeoutError, RuntimeError, ValueError) as exc:
            self._failed(way, exc)
            return
        now_s = monotonic()
        way.holding.succeeded(response.compute_s, way.prospect.tail_s, response.queue_s, now_s)
        if way.prospect.tail_s is None:
            way.prospect = replace(way.prospect, tail_s=response.compute_s)
        if difference is not None and difference > TOLERANCE_RATIO:
            way.verified = False
            reason = (
                f"differs from the whole model by {difference:.1e} of its largest value (limit {TOLERANCE_RATIO:.0e})"
            )
            way.prospect = replace(way.prospect, obstacle=reason)
            log.warning("way.rejected cut=%s difference=%.1e", way.prospect.cut or "input", difference)
            return
        way.verified = True
        way.prospect = replace(way.prospect, obstacle="")

    def _difference(self, route: Route, way: Way, sent: Outgoing, response: InferResponse) -> float | None:
        """Distance from the whole model's answer; None for a lossy codec, which is meant to differ."""
        outputs = assembled(sent, response)
        if way.prospect.accuracy_drop is None:
            return None
        return max((distance_ratio(a, b) for a, b in zip(outputs, route.reference or (), strict=True)), default=0.0)

    def _failed(self, way: Way, exc: Exception) -> None:
        self._n_unanswered += 1
        if isinstance(exc, Warming):
            return  # the gateway is well, it only builds this tail: the next scouting asks again
        retry_after_s = exc.fields.get("retry_after_s") if isinstance(exc, RefusedError) else None
        way.holding.failed(monotonic(), retry_after_s)
        log.info("way.failed cut=%s error=%s", way.prospect.cut or "input", getattr(exc, "code", type(exc).__name__))


def distance_ratio(found: np.ndarray, wanted: np.ndarray) -> float:
    """max|a - b| / max|b|; infinite where shapes, dtypes, NaNs or any whole number or string differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    if not wanted.size:
        return 0.0
    apart, size = found.astype(np.float64), wanted.astype(np.float64)
    if not np.array_equal(np.isfinite(apart), np.isfinite(size)):
        return float("inf")
    finite = np.isfinite(size)
    if not np.array_equal(apart[~finite], size[~finite], equal_nan=True):
        return float("inf")
    largest = np.abs(size[finite]).max(initial=0.0)
    worst = np.abs(apart[finite] - size[finite]).max(initial=0.0)
    return float(worst / largest) if largest else float(worst)


def _timed_s(head: Head, sample: dict[str, np.ndarray]) -> float:
    """Shortest of a few runs: service time without whatever else the machine did."""
    feeds = {name: sample[name] for name in head.inputs}
    started_s = perf_counter()
    head.run(head.computed, feeds)
    shortest_s = float("inf")
    for _ in range(N_HEAD_RUNS):
        before_s = perf_counter()
        head.run(head.computed, feeds)
        now_s = perf_counter()
        shortest_s = min(shortest_s, now_s - before_s)
        if now_s - started_s > HEAD_BUDGET_S:
            break
    return shortest_s


def _view(way: Way) -> GatewayView | None:
    return way.holding.view(monotonic())


def _predicted(route: Route, way: Way) -> float:
    """Expected seconds of a way that was measured and has no obstacle."""
    if way.prospect.obstacle or (way.prospect.cut and way.head is None):
        return UNKNOWN_S
    total_s = predicted_s(way.prospect, route.device_speed_ratio, _view(way))
    return UNKNOWN_S if total_s is None else total_s


def _hope_s(route: Route, prepared: Prepared, way: Way) -> float:
    """An estimate before anything is timed: the head's share of the work, raw bytes, the gateway's profile."""
    head_s = way.prospect.head_s
    if head_s is None:
        head_s = prepared.table.get(way.prospect.cut).head_work_ratio * (route.local_s or 0.0)
    view = _view(way)
    network_s = view.link.transfer_s(way.prospect.bytes_up, way.prospect.bytes_down) if view else None
    return head_s * route.device_speed_ratio + (network_s or 0.0) + (way.prospect.tail_s or 0.0)
