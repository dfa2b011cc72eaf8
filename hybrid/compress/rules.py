"""The rules of shipping, which nothing switches off: what becomes of a candidate, and the reason in one sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from compression.measuring import Timing
from hybrid.compress.grading import Grade
from hybrid.compress.job import Objective

FASTER_RATIO: Final = 0.9
"""At most this share of the original's time: sessions open a variant for no less (`hybrid/scouting/variants.py`)."""

SMALLER_RATIO: Final = 0.98
"""At most this share of the original's bytes."""

Status = Literal["shipped", "kept off", "reverted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the rules ask of a candidate, all of it measured.

    Attributes:
        objective: of the job.
        max_drop: the floor.
        device: where it was timed.
        timing, original: of the candidate and the original, side by side; None where they were not timed.
        n_bytes, original_bytes: of the files that travel.
        judged: the grade on the judging part; None where it was not reached.
        n_calibrated: samples that ranges were taken from.
        faults: what differs between runtimes; None where they were not compared.
    """

    objective: Objective
    max_drop: float
    device: str
    timing: Timing | None
    original: Timing | None
    n_bytes: int
    original_bytes: int
    judged: Grade | None
    n_calibrated: int
    faults: Sequence[str] | None


def verdict(facts: Facts) -> tuple[Status, str]:
    """What becomes of a candidate; `shipped` only where every rule was tested and holds."""
    for rule in (_won, _calibrated, _within, _alike):
        found = rule(facts)
        if found is not None:
            return found
    return "shipped", "within the floor and worth it"


def _won(facts: Facts) -> tuple[Status, str] | None:
    if facts.objective == "bytes":
        ratio = facts.n_bytes / facts.original_bytes
        if ratio <= SMALLER_RATIO:
            return None
        return "reverted", f"not smaller: {facts.n_bytes} bytes, {ratio:.0%} of the original's"
    if facts.timing is None or facts.original is None:
        return "failed", f"not timed on {facts.device}"
    p50, low = facts.timing.p50_s / facts.original.p50_s, facts.timing.low_s / facts.original.low_s
    if max(p50, low) <= FASTER_RATIO:
        return None
    return "reverted", (
        f"not faster on {facts.device}: beside the original {p50:.0%} of its median and {low:.0%} of its fastest run, "
        f"where {FASTER_RATIO:.0%} is wanted of both"
    )


def _calibrated(facts: Facts) -> tuple[Status, str] | None:
    return None if facts.n_calibrated >= 1 else ("kept off", "lossy, and made without calibration data")


def _within(facts: Facts) -> tuple[Status, str] | None:
    if facts.judged is None:
        return "kept off", "not judged"
    high = facts.judged.interval[1]
    if high <= facts.max_drop:
        return None
    return "kept off", (
        f"beyond the floor: a drop of {facts.judged.drop:.2%}, at most {high:.2%} with 95 % confidence, where "
        f"{facts.max_drop:.2%} is allowed ({facts.judged.n} samples)"
    )


def _alike(facts: Facts) -> tuple[Status, str] | None:
    if facts.faults is None:
        return "kept off", "its outputs were not compared across runtimes"
    return ("kept off", f"runtimes differ: {facts.faults[0]}") if facts.faults else None
