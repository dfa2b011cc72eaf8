"""What people ask of assignments and rollouts, and what they are told; JSON between commands and gateway."""

import msgspec

from cloud_gateway.fleet.assignments import Assignment, Terms
from cloud_gateway.fleet.rollouts.figures import StageFigures
from cloud_gateway.fleet.rollouts.rollout import Course, Plan, Tolerance
from cloud_gateway.fleet.steering.store import HistoryEntry
from hybrid.fleet.messages import Health, Installed


class AssignWish(msgspec.Struct, frozen=True, kw_only=True):
    """Let boxes with these tags run a version; version "" is the newest."""

    model: str
    version: str = ""
    selector: dict[str, str] = {}
    terms: Terms = Terms()
    anew: bool = False


class UnassignWish(msgspec.Struct, frozen=True, kw_only=True):
    """End the assignment of a model to exactly these tags."""

    model: str
    selector: dict[str, str] = {}


class RolloutWish(msgspec.Struct, frozen=True, kw_only=True):
    """Begin a rollout; what is not said is as `Plan` has it."""

    model: str
    version: str = ""
    selector: dict[str, str] = {}
    stages: tuple[float, ...] = (0.05, 0.3, 1.0)
    soak_s: float = 3600.0
    enough_ratio: float = 0.9
    offline_ratio: float = 0.5
    max_failed_ratio: float = 0.02
    tolerance: Tolerance = Tolerance()
    min_runs: int = 100
    terms: Terms = Terms()
    queue: bool = False


class TagsWish(msgspec.Struct, frozen=True, kw_only=True):
    """Tags to give a box, and keys of tags to take from it."""

    put: dict[str, str] = {}
    drop: tuple[str, ...] = ()


class AssignmentList(msgspec.Struct, frozen=True, kw_only=True):
    """Assignments and how many boxes each decides for."""

    assignments: tuple[Assignment, ...]
    n_boxes: tuple[int, ...] = ()
    lost: str = ""


class StageView(StageFigures, frozen=True, kw_only=True):
    """One stage of a rollout: its boxes by how they stand."""

    share: float


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """One box of a rollout."""

    box_id: str
    name: str
    stage: int
    is_control: bool
    standing: str
    code: str = ""


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout as people see it. `members` only where one rollout was asked for."""

    plan: Plan
    course: Course
    stages: tuple[StageView, ...]
    n_control: int
    members: tuple[MemberView, ...] = ()
    history: tuple[HistoryEntry, ...] = ()


class RolloutList(msgspec.Struct, frozen=True, kw_only=True):
    """Rollouts, oldest first."""

    rollouts: tuple[RolloutView, ...]


class BoxRow(msgspec.Struct, frozen=True, kw_only=True):
    """One box as `hybrid fleet status` shows it.

    Attributes:
        state: `ready`, `not_ready`, `offline`, `never_seen`, or its admission where that is not `admitted`.
        seen_s: seconds since it was heard of; -1 for never.
        missing: models that it should have and has not for good.
    """

    id: str
    name: str
    tags: dict[str, str]
    state: str
    seen_s: float
    problems: tuple[str, ...] = ()
    models: tuple[Installed, ...] = ()
    missing: tuple[str, ...] = ()
    health: Health | None = None


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """How many boxes are in which phase of one version of a model."""

    model: str
    version: str
    artifact_digest: str
    phases: dict[str, int]


class FleetStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet at one moment.

    Attributes:
        states: boxes by state.
        problems: boxes by problem's code.
        boxes: those that were asked for, at most `limit`; `n_more` others are like them.
        n_waiting: state calls that wait.
    """

    n_boxes: int
    states: dict[str, int]
    problems: dict[str, int]
    versions: tuple[VersionRow, ...]
    rollouts: tuple[RolloutView, ...]
    boxes: tuple[BoxRow, ...] = ()
    n_more: int = 0
    n_waiting: int = 0
    lost: str = ""
