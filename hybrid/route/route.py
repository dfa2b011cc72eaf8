"""All that is known of one shape key: how long the device takes, which gateways hold the model, which ways exist."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hybrid.cost.running import RunningEstimate
from hybrid.graph.shape_key import ShapeKey
from hybrid.route.feeds import Shapes
from hybrid.route.holding import Holding
from hybrid.route.way import Crossing, Way
from hybrid.schedule.options import Options
from hybrid.schedule.planner import (
    Beliefs,
    Candidate,
    Constraints,
    Decision,
    GatewayView,
    Prospect,
    choose,
    explained,
    predicted_s,
    refusal,
)

PROFILE_RUNS = 5
"""The shortest of the first runs (the very first one, which warms up, left out) is the profile of the device."""

Choices = tuple[tuple[Prospect, ...], tuple[Way, ...]]
"""Remote prospects as they were when they were offered, and the ways that they stand for."""


class Route:
    """One shape key's ways, and the choice among them.

    Written by the preparation thread and by finished runs, read by every run: what a run reads are tuples that are
    replaced as a whole, so that it needs no lock.

    Attributes:
        shape_key: the input shapes.
        sample: a request's inputs, to measure and verify with; None until a request gave some (again).
        reference: the whole model's answer to the sample.
        note: why nothing remote is usable yet.
        obstacle: why the model cannot be cut for these shapes.
        is_hopeless: whether waiting for a remote way makes no sense now.
        n_uses: requests so far.
        last_used_s: monotonic time of the last request.
        holdings: gateways that hold the model.
        crossings: all crossings, usable or not.
        local_s: profiled seconds of the whole model on this device.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shape_key = ShapeKey(tuple(sorted(shapes)))
        self.sample: dict[str, np.ndarray] | None = None
        self.reference: list[np.ndarray] | None = None
        self.note = "not prepared yet"
        self.obstacle = ""
        self.is_hopeless = False
        self.n_uses = 0
        self.last_used_s = 0.0
        self.holdings: tuple[Holding, ...] = ()
        self.crossings: tuple[Crossing, ...] = ()
        self.local_s: float | None = None
        self._current: tuple[str, str, str, str, str] | None = None
        self._local = Prospect(placement="local", head_s=None)
        self._choices: Choices = ((), ())
        self._n_local_runs = 0
        self._device = RunningEstimate()

    def take_sample(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copies a request's inputs, unless there are some."""
        if self.sample is None:
            self.sample = {name: np.array(array) for name, array in feeds.items()}

    # -- what was measured

    def observe_local(self, seconds: float, now_s: float) -> None:
        """One local run of the whole model; the second one replaces the first, which warmed up."""
        self._n_local_runs += 1
        n_runs = self._n_local_runs
        if self.local_s is None or n_runs == 2 or (n_runs <= PROFILE_RUNS + 1 and seconds < self.local_s):
            self.profile_local(seconds)
        if self.local_s:
            self._device.observe(seconds / self.local_s, now_s)

    def profile_local(self, seconds: float) -> None:
        """Sets the profiled seconds of the whole model on this device."""
        self.local_s = seconds
        self._local = Prospect(placement="local", head_s=seconds)

    def observe_head(self, seconds: float, profiled_s: float | None, now_s: float) -> None:
        """One run of a head beside its profile: the device's running speed."""
        if profiled_s:
            self._device.observe(seconds / profiled_s, now_s)

    @property
    def device_speed_ratio(self) -> float:
        """Running ratio of measured to profiled seconds on this device."""
        return self._device.value or 1.0

    @property
    def device_spread_ratio(self) -> float:
        """Relative deviation of this device's seconds."""
        return self._device.spread_ratio

    @property
    def device_heard_s(self) -> float:
        """When this device's speed was measured last, on the clock of the observations."""
        return self._device.updated_s

    # -- the ways

    def put_crossings(self, crossings: tuple[Crossing, ...]) -> None:
        """Replaces all at once; only verified ones that can run now are offered to requests."""
        self.crossings = crossings
        ways = tuple(
            way
            for crossing in crossings
            if crossing.verified and crossing.can_run
            for way in crossing.ways
            if not way.prospect.obstacle
        )
        self._choices = (tuple(way.prospect for way in ways), ways)

    def drop(self, holding: Holding) -> None:
        """A gateway that does not hold the model any more, or not as it said: it must be asked again."""
        self.holdings = tuple(kept for kept in self.holdings if kept is not holding)
        self.put_crossings(tuple(crossing for crossing in self.crossings if crossing.holding is not holding))

    @property
    def why_none(self) -> str:
        """Why no remote way is usable yet."""
        return self.obstacle or self.note

    def has_way(self) -> bool:
        """Whether some remote way is verified."""
        return bool(self._choices[0])

    def gateways(self, now_s: float) -> dict[str, GatewayView]:
        """What the planner may believe of the gateways now; those that are down are missing."""
        views = {}
        for holding in self.holdings:
            view = holding.view(now_s)
            if view is not None:
                views[holding.client.url] = view
        return views

    def decide(self, options: Options, constraints: Constraints, now_s: float) -> tuple[Way | None, Decision]:
        """The way to take now (None for local) and the planner's decision."""
        prospects, ways = self._choices
        decision = choose((self._local, *prospects), self._beliefs(options, constraints, now_s), self._current)
        self._current = decision.chosen.key
        return (ways[decision.index - 1] if decision.index else None), decision

    def forced(self, options: Options, constraints: Constraints, now_s: float) -> tuple[Way | None, str]:
        """The best usable way of a forced placement, or None and why there is none."""
        views = self.gateways(now_s)
        best, best_s, why = None, float("inf"), ""
        for prospect, way in zip(*self._choices, strict=True):
            if prospect.placement != options.kind or options.forced_cut not in ("", prospect.cut):
                continue
            why = refusal(prospect, constraints) or why
            if prospect.gateway not in views or refusal(prospect, constraints):
                continue
            total_s = _total_s(prospect, views[prospect.gateway], self.device_speed_ratio)
            if best is None or total_s < best_s:
                best, best_s = way, total_s
        if best is not None:
            return best, ""
        if self.holdings and not views:
            return None, "no gateway that holds the model can be reached now"
        return None, why or self.why_none or "no such way is verified"

    def explain(self, options: Options, constraints: Constraints, now_s: float) -> list[Candidate]:
        """Every prospect, usable or not, with the planner's reasons."""
        prospects = (self._local, *(way.prospect for crossing in self.crossings for way in crossing.ways))
        usable = {prospect.key for prospect in self._choices[0]}
        beliefs = self._beliefs(options, constraints, now_s)
        if not options.is_forced:
            offered = [p for p in prospects if p.placement == "local" or p.key in usable]
            rows = explained(prospects, choose(offered, beliefs, self._current), beliefs)
            if not usable:
                rows[0] = replace(rows[0], reason=f"nothing else is usable yet: {self.why_none}")
            return rows
        way, why = self.forced(options, constraints, now_s)
        chosen = way.prospect if way is not None else self._local
        total_s = predicted_s(chosen, beliefs.device_speed_ratio, beliefs.gateways.get(chosen.gateway))
        rows = explained(prospects, Decision(chosen=chosen, predicted_s=total_s, costs=()), beliefs)
        if way is None:
            reason = f"{options.placement} was asked for, but: {why}"
            rows[0] = replace(rows[0], reason=reason)
        return rows

    def _beliefs(self, options: Options, constraints: Constraints, now_s: float) -> Beliefs:
        return Beliefs(
            device_speed_ratio=self.device_speed_ratio,
            gateways=self.gateways(now_s),
            constraints=constraints,
            objective=options.objective,
        )


def _total_s(prospect: Prospect, view: GatewayView, device_speed_ratio: float) -> float:
    """Expected seconds with unknown parts counted as nothing: enough to rank ways that are forced anyway."""
    network_s = view.link.transfer_s(prospect.bytes_up, prospect.bytes_down) or 0.0
    here_s = (prospect.head_s or 0.0) * device_speed_ratio + prospect.encode_s
    return here_s + network_s + (prospect.tail_s or 0.0) * view.speed_ratio
