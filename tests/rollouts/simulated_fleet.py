"""A fleet of boxes in virtual time, as unlike one another as real ones, in which a new version may be worse.

Design: boxes speak to the real ledger and engine, in steps of three minutes, so that a day of five hundred boxes takes
a second. Boxes differ in speed, traffic and errors by factors; some have a broken camera, some are off, some die by
themselves: a rollout must not be halted by what was there before it.
"""

import random
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace

from cloud_gateway.fleet.assignments import Assignment, Terms
from cloud_gateway.fleet.rollouts.rollout import ENDED, Plan
from cloud_gateway.fleet.steering.desired import Rollout
from cloud_gateway.fleet.steering.ledger import Ledger
from cloud_gateway.fleet.steering.reports import BoxState
from cloud_gateway.fleet.steering.store import Kept
from hybrid.fleet.messages import Installed, StateCall

STEP_S = 180.0
BEFORE_S = 1800.0
OLD, NEW = "1" * 64, "2" * 64


@dataclass(frozen=True, kw_only=True)
class Regression:
    """How a new version is worse; the default is not.

    Attributes:
        crash_boxes_ratio: boxes on which it crashes in its trial.
        crashes_per_hour: on every box, of the service.
        errors_factor, latency_factor: times those of the old version.
        dead_ratio: boxes that never speak again once they took it.
        stuck_ratio: boxes that take it and tell of no end.
        late_s: reports come so much later than they were made.
    """

    crash_boxes_ratio: float = 0.0
    crashes_per_hour: float = 0.0
    errors_factor: float = 1.0
    latency_factor: float = 1.0
    dead_ratio: float = 0.0
    stuck_ratio: float = 0.0
    late_s: float = 0.0


@dataclass
class SimulatedBox:
    """One box."""

    id: str
    rng: random.Random
    tags: dict[str, str] = field(default_factory=dict)
    admission: str = "admitted"
    name: str = ""

    def __post_init__(self) -> None:
        rng = self.rng
        self.p50_s = 0.02 * rng.lognormvariate(0, 0.6)
        self.runs_per_s = 0.5 * rng.lognormvariate(0, 0.8)
        self.error_ratio = min(0.3, 0.003 * rng.lognormvariate(0, 1.0))
        self.offline_until_s = 40 * 3600.0 if rng.random() < 0.02 else 0.0
        self.broken_from_s = rng.uniform(0, 12 * 3600) if rng.random() < 0.02 else float("inf")
        self.is_dead = False
        self.digest, self.n_good, self.n_errors, self.n_crashes = OLD, 0, 0, 0
        self.wanted, self.ready_s, self.rollout = "", 0.0, ""
        self.phase, self.code, self.verdict = "committed", "", ""

    def live(self, now_s: float, wanted: tuple[str, str] | None, worse: Regression) -> Installed | None:
        """Lives three minutes and tells how it is; None while nobody hears of it.

        Args:
            now_s: virtual time.
            wanted: digest and rollout of the desired state, None for what it has.
            worse: how the new version is.
        """
        rng = self.rng
        if rng.random() < STEP_S / 3600 * 0.01:
            self.offline_until_s = max(self.offline_until_s, now_s + rng.expovariate(1 / 2400))
        self._work(now_s, worse)
        if self.is_dead or now_s < self.offline_until_s:
            return None
        if wanted is not None:
            self._follow(now_s, wanted, worse)
        return self._told(rng, worse)

    def _work(self, now_s: float, worse: Regression) -> None:
        rng, is_new = self.rng, self.digest == NEW
        mean = self.runs_per_s * STEP_S
        n = max(0, round(rng.gauss(mean, mean**0.5)))
        ratio = 0.3 if now_s >= self.broken_from_s else self.error_ratio * (worse.errors_factor if is_new else 1.0)
        expected = n * ratio
        bad = min(n, max(0, round(rng.gauss(expected, expected**0.5))) if expected > 20 else _poisson(rng, expected))
        self.n_good, self.n_errors = self.n_good + n - bad, self.n_errors + bad
        hazard = 0.002 + (worse.crashes_per_hour if is_new else 0.0)
        self.n_crashes += rng.random() < hazard * STEP_S / 3600

    def _follow(self, now_s: float, wanted: tuple[str, str], worse: Regression) -> None:
        digest, rollout = wanted
        if digest == self.digest and self.phase != "trial":
            self.wanted, self.phase, self.code = "", "committed", ""
        elif digest not in {self.digest, self.wanted}:
            self.wanted, self.rollout, self.phase, self.code = digest, rollout, "downloading", ""
            self.ready_s = now_s + self.rng.lognormvariate(5.3, 0.7)
            draw = self.rng.random()
            self.verdict = "good"
            if digest == NEW:
                self.verdict = _drawn(draw, worse)
                self.is_dead = self.verdict == "dead"
        elif self.wanted and self.phase in ("downloading", "trial") and now_s >= self.ready_s + worse.late_s:
            self._finish(now_s)

    def _finish(self, now_s: float) -> None:
        if self.verdict == "stuck":
            return
        if self.verdict == "bad":
            self.phase, self.code = "failed", "golden_differs"
        elif self.verdict == "crash":
            self.phase, self.code = "rolled_back", "engine_crashed"
        elif self.phase == "downloading":
            self.phase, self.digest = "trial", self.wanted
            self.n_good = self.n_errors = self.n_crashes = 0
            self.ready_s = now_s + 300
        else:
            self.phase, self.wanted = "committed", ""

    def _told(self, rng: random.Random, worse: Regression) -> Installed:
        slow = worse.latency_factor if self.digest == NEW else 1.0
        return Installed(
            name="detector",
            version="2" if self.digest == NEW else "1",
            artifact_digest=self.digest,
            wanted_digest=self.wanted,
            rollout=self.rollout,
            phase=self.phase,
            code=self.code,
            n_good=self.n_good,
            n_errors=self.n_errors,
            n_crashes=self.n_crashes,
            p50_s=self.p50_s * slow * rng.lognormvariate(0, 0.15),
        )


def _drawn(draw: float, worse: Regression) -> str:
    for ratio, verdict in (
        (0.001, "bad"),
        (worse.crash_boxes_ratio, "crash"),
        (worse.dead_ratio, "dead"),
        (worse.stuck_ratio, "stuck"),
    ):
        if draw < ratio:
            return verdict
        draw -= ratio
    return "good"


def _poisson(rng: random.Random, mean: float) -> int:
    from math import exp

    limit, product, n = exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        n += 1
    return n


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a rollout ended: its state, the stage that ran then (from 1), hours, boxes that had it, and why."""

    state: str
    stage: int
    hours: float
    n_exposed: int
    reason: str


class Directory:
    """The registry of simulated boxes."""

    def __init__(self, boxes: list[SimulatedBox]) -> None:
        self._boxes = {box.id: box for box in boxes}

    def all(self) -> tuple[SimulatedBox, ...]:
        return tuple(self._boxes.values())

    def find(self, box_id: str) -> SimulatedBox | None:
        return self._boxes.get(box_id)


def simulate(seed: int, worse: Regression, *, n_boxes: int = 500, most_hours: float = 36.0, **plan: object) -> Ended:
    """One rollout in one fleet, from half an hour before it until it ended."""
    rng = random.Random(f"fleet {seed}")
    boxes = [SimulatedBox(f"{rng.getrandbits(128):032x}", random.Random(rng.getrandbits(64))) for _ in range(n_boxes)]
    clock = SimpleNamespace(s=0.0)
    kept = Kept(assignments=(), rollouts=(), boxes={})
    ledger = Ledger(kept, Directory(boxes), now_s=lambda: clock.s, rng=random.Random(seed))
    ledger.assign(Assignment(id=0, model="detector", version="1", artifact_digest=OLD))
    rollout, memory = None, SimpleNamespace(stage=-1, wanted={})
    for at in count():
        clock.s = at * STEP_S
        if clock.s >= BEFORE_S and rollout is None:
            made = Plan(id=ledger.fresh_id(), model="detector", version="2", artifact_digest=NEW, **plan)
            rollout = ledger.start(made, queue=False)
        wanted = _wanted(ledger, boxes, rollout, memory)
        _step(ledger, boxes, clock.s, worse, wanted)
        ledger.advance(STEP_S)
        if at % 30 == 0:
            ledger.take_changes()
        if rollout is not None and (rollout.course.state in ENDED or clock.s > BEFORE_S + most_hours * 3600):
            course = rollout.course
            exposed = sum(member.taken_s >= 0 for member in rollout.members.values())
            hours = (clock.s - BEFORE_S) / 3600
            reason = course.reason or course.waiting
            return Ended(state=course.state, stage=course.stage + 1, hours=hours, n_exposed=exposed, reason=reason)
    raise AssertionError("unreachable")


_Wanted = dict[str, tuple[str, str]]


def _wanted(ledger: Ledger, boxes: list[SimulatedBox], rollout: Rollout | None, memory: SimpleNamespace) -> _Wanted:
    """What each box should run; asked anew only when a stage began, since nothing else changes it here."""
    if rollout is None or rollout.course.state in ENDED:
        return {}
    if memory.stage != rollout.course.stage:
        models = ((box.id, ledger.desired(box)[0]) for box in boxes)
        memory.wanted = {box_id: (model.artifact_digest, model.rollout) for box_id, model in models}
        memory.stage = rollout.course.stage
    return memory.wanted


def _step(ledger: Ledger, boxes: list[SimulatedBox], now_s: float, worse: Regression, wanted: _Wanted) -> None:
    for box in boxes:
        told = box.live(now_s, wanted.get(box.id), worse)
        if told is not None:
            state = ledger.states.setdefault(box.id, BoxState())
            call = StateCall(known="", epoch="", run="", installed=(told,))
            heard = state.note_call(call, now_s)
            ledger.note_seen(box.id)
            ledger.note_told(box.id, heard)


def terms(report_within_s: float) -> Terms:
    """Terms with a time to report."""
    return Terms(report_within_s=report_within_s)
