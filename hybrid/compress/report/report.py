"""The report of a search as data: what was asked, measured, tried, shipped, kept off and why; see docs/compress.md."""

import platform
from collections.abc import Sequence
from typing import Final, Literal

import msgspec
import onnxruntime

from compression.measuring import Timing
from hybrid.calibration.record import Metric
from hybrid.compress.grading import Grade
from hybrid.compress.job import Job
from hybrid.compress.making.maker import Sensitive
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.rules import Status
from hybrid.compress.timing.timer import DeviceTold

SCHEMA: Final = 1
N_SHOWN: Final = 8
"""Samples whose outputs stand side by side."""

MOST_SHOWN: Final = 32
"""Values of an output that are shown."""

SplitStatus = Literal["shipped", "kept off", "failed", "always there"]

Point = tuple[float, float, float]
"""Drop, share of the time, share of the bytes."""


class Seconds(msgspec.Struct, frozen=True, kw_only=True):
    """A timing: of one run, on the device."""

    p50_s: float
    p95_s: float
    low_s: float
    n: int


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """A grade with what follows from it."""

    n: int
    n_lost: int
    n_won: int
    drop: float
    low: float
    high: float
    p_value: float


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate that was tried.

    Attributes:
        id: short, unique in the report; that of the variant where it was shipped.
        text: the recipe for people.
        recipe: all of it.
        status, reason: what became of it, and why.
        notes: remarks of those who made it.
        n_bytes, bytes_ratio: of its file, and as a share of the original's.
        seconds, seconds_ratio: beside the original in one process, and its p50 as a share of the original's.
        tried_ratio: the same when it was tried, or of the fastest runs where that is more: what it was chosen by.
        memory_bytes: peak above an empty process; None where nobody looked.
        energy_j: of one run, modelled.
        chosen_by: its grade on the choosing part.
        judged: its grade on the judging part.
        runtimes: what differs between runtimes; None where that was not looked at.
        on_front: whether no other candidate is as good in drop, time and bytes and better in one: `chosen_by`,
            `tried_ratio` and `bytes_ratio` of both.
    """

    id: str
    text: str
    recipe: Recipe
    status: Status
    reason: str
    notes: tuple[str, ...] = ()
    n_bytes: int | None = None
    bytes_ratio: float | None = None
    seconds: Seconds | None = None
    seconds_ratio: float | None = None
    tried_ratio: float | None = None
    memory_bytes: int | None = None
    energy_j: float | None = None
    chosen_by: Drop | None = None
    judged: Drop | None = None
    runtimes: tuple[str, ...] | None = None
    on_front: bool = False


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """The uncompressed model; `accuracy` on the judging part, None where there are no labels."""

    n_bytes: int
    seconds: Seconds | None
    memory_bytes: int | None
    energy_j: float | None
    accuracy: float | None


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The samples: their digest, and how many were for what."""

    digest: str
    metric: Metric
    n_calibrate: int
    n_choose: int
    n_judge: int


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    objective: str
    max_drop: float
    budget_s: float
    seed: int
    link: str
    train_script: str


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of candidate that could not be tried at all, and why."""

    what: str
    why: str


class SplitTold(msgspec.Struct, frozen=True, kw_only=True):
    """One way of dividing a request that was tried, or the device alone, beside which it stands.

    Attributes:
        id: short, unique; that of the split, where it has files of its own.
        cut: id of the cut; empty for the inputs.
        at: names of what crosses.
        head: what the device computes: `float` or `int8` head, `all`, or nothing.
        codec: of the catalog, or `learned`.
        status, reason: what became of it, and why; `always there` needs no permission.
        notes: remarks of who made it.
        n, drop, low, high: samples, and the drop with its interval.
        is_judged: whether on the judging part; else on the choosing one.
        raw_bytes, n_bytes: of what crosses, raw and as sent (mean).
        head_s: of the head on the device.
        encode_s: of encoding there.
        network_s: round trip and bytes.
        gateway_s: of decoding and the tail.
        total_s: of the request, predicted from these.
        energy_j: of the device, modelled.
    """

    id: str
    cut: str = ""
    at: str = ""
    head: str = ""
    codec: str = ""
    status: SplitStatus
    reason: str
    notes: tuple[str, ...] = ()
    n: int = 0
    drop: float = 0.0
    low: float = 0.0
    high: float = 0.0
    is_judged: bool = False
    raw_bytes: float | None = None
    n_bytes: float | None = None
    head_s: float | None = None
    encode_s: float | None = None
    network_s: float | None = None
    gateway_s: float | None = None
    total_s: float | None = None
    energy_j: float | None = None


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Outputs for one sample of the judging part, side by side; the first values of the output that is judged."""

    sample: int
    label: int | None
    outputs: dict[str, list[float]]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; an attachment of kind `report`. Energy is modelled, everything else is measured."""

    model_digest: str
    model: str
    wanted: Wanted
    data: Data
    device: DeviceTold
    baseline: Baseline
    candidates: tuple[Candidate, ...]
    environment: dict[str, str]
    made_s: float
    kind: Literal["report"] = "report"
    schema: int = SCHEMA
    variant: str = "original"
    front: tuple[str, ...] = ()
    shipped: tuple[str, ...] = ()
    sensitivities: tuple[Sensitive, ...] = ()
    staircase: dict[str, float] | None = None
    refused: tuple[Refused, ...] = ()
    shown: tuple[Shown, ...] = ()
    remarks: tuple[str, ...] = ()
    power: str = ""
    splits: tuple[SplitTold, ...] = ()

    @property
    def content(self) -> bytes:
        """Its exact JSON."""
        return msgspec.json.encode(self, order="sorted")


def wanted_of(job: Job) -> Wanted:
    """What a job asks for, as its report says it."""
    return Wanted(
        objective=job.objective,
        max_drop=job.max_drop,
        budget_s=job.budget_s,
        seed=job.seed,
        link=job.link,
        train_script=job.train_script,
    )


def environment() -> dict[str, str]:
    """The machine and versions that searched."""
    from devices.machine import processor

    return {
        "machine": processor(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
    }


def seconds_of(timing: Timing | None) -> Seconds | None:
    """A timing as it is told."""
    if timing is None:
        return None
    return Seconds(p50_s=timing.p50_s, p95_s=timing.p95_s, low_s=timing.low_s, n=timing.n)


def drop_of(grade: Grade | None) -> Drop | None:
    """A grade as it is told."""
    if grade is None:
        return None
    low, high = grade.interval
    return Drop(
        n=grade.n,
        n_lost=grade.n_lost,
        n_won=grade.n_won,
        drop=grade.drop,
        low=low,
        high=high,
        p_value=grade.p_value,
    )


def with_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """The candidates, those on the Pareto front of drop, time and bytes marked, by what each showed when it was tried.

    The judging part has no say: few are judged, and what they show there compares with no other's choosing part.
    """
    known = {each.id: point for each in candidates if (point := _point(each)) is not None}
    front = {name for name, point in known.items() if not any(_dominates(other, point) for other in known.values())}
    return tuple(msgspec.structs.replace(each, on_front=each.id in front) for each in candidates)


def _point(candidate: Candidate) -> Point | None:
    grade, seconds, n_bytes = candidate.chosen_by, candidate.tried_ratio, candidate.bytes_ratio
    return None if grade is None or seconds is None or n_bytes is None else (grade.drop, seconds, n_bytes)


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
