"""What a rollout is: its plan, where it stands, and what is known of each box in it.

Design: time is the rollout's own clock, which runs only while the gateway does and the rollout is not paused. So
neither a jump of the machine's clock nor a night without a gateway makes boxes late that could not tell anything.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, Literal

import msgspec

from cloud_gateway.fleet.assignments import Terms

State = Literal["queued", "running", "paused", "halted", "aborted", "completed"]
RUNNING: Final[frozenset[State]] = frozenset({"running", "paused"})
ENDED: Final[frozenset[State]] = frozenset({"halted", "aborted", "completed"})
NEVER: Final = -1.0
"""A moment that has not come."""


class Tolerance(msgspec.Struct, frozen=True, kw_only=True):
    """How much worse is still good enough, whatever chance says.

    Attributes:
        errors_ratio: of runs, added to the share of the boxes without the version.
        crashes_ratio: of boxes, likewise.
        latency_ratio: how much longer the median run may take: 0.1 is a tenth.
    """

    errors_ratio: float = 0.002
    crashes_ratio: float = 0.01
    latency_ratio: float = 0.1


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for; never changes.

    Attributes:
        id: 8 characters.
        selector: which boxes.
        stages: shares of the boxes that should have the version, rising, the last is 1.
        soak_s: how long each stage is watched at least before the next begins.
        enough_ratio: share of a stage's reachable boxes that must have told `committed`.
        offline_ratio: the share of a stage that may be out of reach when it ends.
        max_failed_ratio: share of failed boxes beyond which it halts.
        min_runs: fewer runs on either side are not compared.
        previous: what the boxes had, for people.
    """

    id: str
    model: str
    version: str
    artifact_digest: str
    selector: dict[str, str] = {}
    stages: tuple[float, ...] = (0.05, 0.3, 1.0)
    soak_s: float = 3600.0
    enough_ratio: float = 0.9
    offline_ratio: float = 0.5
    max_failed_ratio: float = 0.02
    tolerance: Tolerance = Tolerance()
    min_runs: int = 100
    terms: Terms = Terms()
    previous: str = ""
    made_s: float = 0.0
    made_by: str = ""

    @property
    def label(self) -> str:
        """`NAME:VERSION`."""
        return f"{self.model}:{self.version}"

    @property
    def last_stage(self) -> int:
        """Number of the stage that takes every box, counted from 0."""
        return len(self.stages) - 1


class Course(msgspec.Struct, kw_only=True):
    """Where a rollout stands.

    Attributes:
        stage: the one that runs, counted from 0.
        stage_s: when it began, by the rollout's clock.
        clock_s: the rollout's clock.
        n_looks: comparisons made in this stage; each costs a share of the 1 %.
        next_look_s: when the next is due.
        usual_silent_ratio, usual_crashed_ratio: of boxes without the version; kept when there are none any more.
        waiting: why it does not go on now, for people.
        reason: why it ended.
    """

    state: State = "queued"
    stage: int = 0
    stage_s: float = 0.0
    clock_s: float = 0.0
    n_looks: int = 0
    next_look_s: float = 0.0
    usual_silent_ratio: float = 0.0
    usual_crashed_ratio: float = 0.0
    waiting: str = ""
    reason: str = ""


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Runs of one version on one box since it was installed there, as last told."""

    digest: str = ""
    n_good: int = 0
    n_errors: int = 0
    n_crashes: int = 0

    @property
    def n_runs(self) -> int:
        """All runs, good or not."""
        return self.n_good + self.n_errors

    def since(self, mark: "Tally") -> "Tally":
        """What came after a mark. Counts that fell, or another version, began anew: all of them came after."""
        anew = (
            mark.digest != self.digest
            or self.n_good < mark.n_good
            or self.n_errors < mark.n_errors
            or self.n_crashes < mark.n_crashes
        )
        if anew:
            return self
        return Tally(
            digest=self.digest,
            n_good=self.n_good - mark.n_good,
            n_errors=self.n_errors - mark.n_errors,
            n_crashes=self.n_crashes - mark.n_crashes,
        )


class Member(msgspec.Struct, kw_only=True):
    """One box in one rollout. Moments are by the rollout's clock.

    Attributes:
        stage: in which it gets the version; fixed when it became a member.
        is_control: held back until the last stage.
        is_gone: its tags, a narrower assignment or its admission took it out.
        seen_s: last heard of.
        taken_s: when it was first told to take the version, or was heard of while it should have been.
        committed_s: when it told that it runs it for good.
        failed: code of the error that ended its installation.
        is_deferred: it put the installation off (no room, a metered link).
        mark: its runs when the stage began; `now` as last told.
        before: its runs of the former version when the rollout began; `before_p50_s` their median time.
        p50_log_sum, n_p50: logarithms of the medians that it told during this stage.
    """

    box_id: str
    stage: int
    is_control: bool = False
    is_gone: bool = False
    seen_s: float = NEVER
    taken_s: float = NEVER
    committed_s: float = NEVER
    failed: str = ""
    is_deferred: bool = False
    mark: Tally = Tally()
    now: Tally = Tally()
    before: Tally = Tally()
    before_p50_s: float = 0.0
    p50_log_sum: float = 0.0
    n_p50: int = 0

    @property
    def is_done(self) -> bool:
        """It runs the version for good."""
        return self.committed_s >= 0 and not self.failed

    @property
    def p50_s(self) -> float:
        """Geometric mean of the medians that it told during this stage; 0 for none."""
        return math.exp(self.p50_log_sum / self.n_p50) if self.n_p50 else 0.0


def place(rollout: str, box_id: str) -> float:
    """Where a box stands in a rollout, 0 to 1: the same at every asking, and unrelated between rollouts."""
    digest = hashlib.sha256(f"hybrid rollout v1\n{rollout}\n{box_id}".encode()).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def seats(plan: Plan, box_ids: Iterable[str]) -> list[Member]:
    """The boxes of a rollout that begins, each with its stage: exact shares, at least one box in the first.

    The control group is as large as the first stage, at least one where there are two boxes, and is held back until the
    last stage; a rollout of one stage has none.
    """
    order = sorted(set(box_ids), key=lambda box_id: (place(plan.id, box_id), box_id))
    n, last = len(order), plan.last_stage
    n_first = min(n, max(1, math.ceil(plan.stages[0] * n - 1e-9))) if n else 0
    n_control = min(n_first, n // 2) if last > 0 else 0
    ends = [min(n - n_control, max(1, math.ceil(share * n - 1e-9))) for share in plan.stages[:-1]]
    members = []
    for at, box_id in enumerate(order):
        stage = next((number for number, end in enumerate(ends) if at < end), last)
        members.append(Member(box_id=box_id, stage=stage, is_control=at >= n - n_control))
    return members


def late_seat(plan: Plan, box_id: str) -> Member:
    """A box that comes into a rollout that runs: its stage by its place alone, so that nobody else's changes."""
    at, last = place(plan.id, box_id), plan.last_stage
    is_control = last > 0 and at >= 1.0 - plan.stages[0]
    stage = last if is_control else next(number for number, share in enumerate(plan.stages) if at < share)
    return Member(box_id=box_id, stage=stage, is_control=is_control)


def is_offered(course: Course, member: Member) -> bool:
    """Whether the desired state of a box holds the rollout's version.

    While it is paused those keep it that were told to take it, and nobody else is told.
    """
    if member.is_gone or member.stage > course.stage:
        return False
    return course.state == "running" or (course.state == "paused" and member.taken_s >= 0)


def check_stages(stages: Sequence[float]) -> tuple[float, ...]:
    """The shares themselves, ended by 1 where they are not.

    Raises:
        ValueError: not rising between 0 and 1.
    """
    shares = tuple(stages) if stages and stages[-1] >= 1.0 else (*stages, 1.0)
    if any(not 0 < share <= 1 for share in shares) or any(later <= earlier for earlier, later in pairwise(shares)):
        raise ValueError(f"stages {list(stages)} must rise from above 0 to 100 %")
    return shares
