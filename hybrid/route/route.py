"""All that is known of one shape key: how long the device takes, which gateways hold the model, which ways exist."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from devices.power_supply import is_on_battery
from hybrid.cost.device_power import this_power
from hybrid.graph.shape_key import ShapeKey
from hybrid.route.feeds import Shapes
from hybrid.route.holding import Holding
from hybrid.route.lasting import Lasting
from hybrid.route.this_machine import ThisMachine
from hybrid.route.variants import LocalVariant
from hybrid.route.way import Crossing, Way
from hybrid.schedule.beliefs import Decision
from hybrid.schedule.deciding import decide
from hybrid.schedule.explaining import alternatives, candidates
from hybrid.schedule.options import Objective, Options
from hybrid.schedule.prices import prices_for
from hybrid.schedule.prospect import Candidate, Constraints, Key, Prospect, refusal
from hybrid.schedule.scheduler import Scheduler
from hybrid.schedule.weighing import Weighing


class Route:
    """One shape key's ways, and the choice among them.

    Written by the preparation thread and by finished runs, read by every run: what a run reads are tuples and tables
    that are replaced as a whole, so that it needs no lock.

    Args:
        shapes: the input shapes.
        objective: the session's, which says what joules and bytes are worth.
        machine: what is known of this machine.

    Attributes:
        shape_key: the input shapes.
        shape_id: its id.
        shape_text: as it stands in messages.
        scheduler: decides, and is told what happened.
        sample: a request's inputs, to measure and verify with; None until a request gave some (again).
        reference: the whole model's answer to the sample.
        note: why nothing remote is usable yet.
        obstacle: why the model cannot be cut for these shapes.
        is_hopeless: whether waiting for a remote way makes no sense now.
        n_uses: requests so far.
        last_used_s: monotonic time of the last request.
        crossings: all crossings, usable or not.
        variants: local variants that may answer; None until they were looked for.
    """

    def __init__(self, shapes: Shapes, objective: Objective, machine: ThisMachine) -> None:
        self.shape_key = ShapeKey(tuple(sorted(shapes)))
        self.shape_id, self.shape_text = self.shape_key.id, self.shape_key.text  # hashed once, not for every request
        self.scheduler = Scheduler(prices_for(objective), attempt_s=machine.attempt_s, n_cores=machine.n_cores)
        self._lasting = Lasting()
        self.sample: dict[str, np.ndarray] | None = None
        self.reference: list[np.ndarray] | None = None
        self.note = "not prepared yet"
        self.obstacle = ""
        self.is_hopeless = False
        self.n_uses = 0
        self.last_used_s = 0.0
        self.crossings: tuple[Crossing, ...] = ()
        self.variants: tuple[LocalVariant, ...] | None = None
        self._objective = objective
        self._holdings: tuple[Holding, ...] = ()
        self._ways: dict[Key, Way] = {}

    def look_at_machine(self) -> None:
        """Takes note of this machine's powers, and of whether it runs on its battery; reads a few files."""
        self.scheduler.power = this_power()
        self.scheduler.prices = prices_for(self._objective, on_battery=is_on_battery())

    def take_sample(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copies a request's inputs, unless there are some."""
        if self.sample is None:
            self.sample = {name: np.array(array) for name, array in feeds.items()}

    @property
    def local_s(self) -> float | None:
        """Profiled seconds of the whole model on this device."""
        return self.scheduler.local_s

    @property
    def device_speed_ratio(self) -> float:
        """Running ratio of measured to profiled seconds on this device."""
        return self.scheduler.device_speed_ratio

    # -- the ways

    @property
    def holdings(self) -> tuple[Holding, ...]:
        """Gateways that hold the model."""
        return self._holdings

    @holdings.setter
    def holdings(self, holdings: tuple[Holding, ...]) -> None:
        self._holdings = holdings
        self.scheduler.put_gateways({holding.client.url: holding.client.standing for holding in holdings})

    def put_crossings(self, crossings: tuple[Crossing, ...]) -> None:
        """Replaces all at once; only verified ones that can run now are offered to requests."""
        self.crossings = crossings
        ways = {
            way.prospect.key: way
            for crossing in crossings
            if crossing.verified and crossing.can_run
            for way in crossing.ways
            if not way.prospect.obstacle
        }
        self._ways = self._ways | ways  # a decision that is being made may still name a way of before
        self._put_prospects(ways)
        self._ways = ways

    def put_variants(self, variants: tuple[LocalVariant, ...]) -> None:
        """Replaces the local variants; the first one is what the device answers with from now on."""
        self.variants = variants
        self._put_prospects(self._ways)

    def _put_prospects(self, ways: Mapping[Key, Way]) -> None:
        variants = [variant.prospect for variant in self.variants or ()]
        self.scheduler.put_prospects([way.prospect for way in ways.values()], variants)

    @property
    def variant(self) -> LocalVariant | None:
        """What the device answers with in place of the model, None for the model itself."""
        return self.variants[0] if self.variants else None

    def in_whole_s(self, seconds: float, variant: LocalVariant | None) -> float:
        """Seconds of the device's own answer as the whole model would have taken, which is what is profiled."""
        if variant is None or not variant.prospect.head_s or self.local_s is None:
            return seconds
        return seconds * self.local_s / variant.prospect.head_s

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
        return bool(self._ways)

    def down(self) -> set[str]:
        """The gateways that hold the model and have no connection now."""
        away = [holding.client for holding in self._holdings if holding.client.state != "ready"]
        for client in away:
            client.want()
        return {client.url for client in away}

    # -- choosing

    def decide(
        self,
        constraints: Constraints,
        now_s: float,
        *,
        left_s: float | None = None,
        n_device_runs: int = 0,
        n_in_flight: int = 0,
    ) -> tuple[Way | None, Decision]:
        """The way to take now (None for local) and the scheduler's decision; see `Scheduler.decide`."""
        decision = self._lasting.decide(
            self.scheduler,
            constraints,
            now_s,
            left_s=left_s,
            n_device_runs=n_device_runs,
            n_in_flight=n_in_flight,
            down=self.down(),
        )
        prospect = self._chosen(decision)
        return (self._ways.get(prospect.key) if prospect is not None else None), decision

    def _chosen(self, decision: Decision) -> Prospect | None:
        """The remote prospect that was chosen; None for a local one, or where all were replaced meanwhile."""
        table = self.scheduler.table
        if not decision.index or decision.inputs is None or decision.inputs.table != table.id:
            return None
        return table.prospects[decision.index]

    def forced(self, options: Options, constraints: Constraints, now_s: float) -> tuple[Way | None, Decision, str]:
        """The best usable way of a forced placement and what is expected of it, or None and why there is none."""
        return self._forced(self._weighing(constraints, now_s), options)

    def _weighing(self, constraints: Constraints, now_s: float) -> Weighing:
        inputs = self.scheduler.inputs(now_s, constraints=constraints, down=self.down())
        return Weighing(inputs, self.scheduler.table)

    def _forced(self, weighing: Weighing, options: Options) -> tuple[Way | None, Decision, str]:
        usable = {belief.url for belief in weighing.inputs.gateways if belief.is_usable}
        best, best_s, decision, why = None, float("inf"), Decision(index=0), ""
        for index in weighing.table.remote:
            prospect = weighing.table.prospects[index]
            way = self._ways.get(prospect.key)
            if way is None or prospect.placement != options.kind or options.forced_cut not in ("", prospect.cut):
                continue
            refused = refusal(prospect, weighing.inputs.constraints)
            why = refused or why
            if prospect.gateway not in usable or refused:
                continue
            plan = weighing.plan_of(index)
            here_s = (prospect.head_s or 0.0) * self.device_speed_ratio + prospect.encode_s
            total_s = here_s + (plan.remote_s if plan is not None else prospect.bytes_up)  # unknown ones last
            if best is None or total_s < best_s:
                best, best_s = way, total_s
                decision = Decision(index=index)
                if plan is not None:
                    decision = Decision(
                        index=index, predicted_s=total_s, remote_s=plan.remote_s, patience_s=plan.patience_s
                    )
        if best is not None:
            return best, decision, ""
        if self.holdings and not usable:
            return None, decision, "no gateway that holds the model can be reached now"
        return None, decision, why or self.why_none or "no such way is verified"

    def explain(self, options: Options, constraints: Constraints, now_s: float) -> list[Candidate]:
        """Every prospect, usable or not, with the planner's reasons."""
        weighing = self._weighing(constraints, now_s)
        offered = {prospect.key for prospect in weighing.table.prospects}
        others = [
            way.prospect for crossing in self.crossings for way in crossing.ways if way.prospect.key not in offered
        ]
        if not options.is_forced:
            rows = candidates(
                alternatives(weighing, decide(weighing.inputs, weighing.table).index), others, constraints
            )
            if not self._ways:
                rows[0] = replace(rows[0], reason=f"nothing else is usable yet: {self.why_none}")
            return rows
        way, decision, why = self._forced(weighing, options)
        rows = candidates(alternatives(weighing, decision.index), others, constraints)
        if way is None:
            rows[0] = replace(rows[0], reason=f"{options.placement} was asked for, but: {why}")
        at = next(at for at, row in enumerate(rows) if row.chosen)
        if way is not None:  # what is forced is never hedged
            rows[at] = replace(
                rows[at], reason="forced by options.placement", predicted_s=decision.predicted_s, hedge_s=None
            )
        return rows
