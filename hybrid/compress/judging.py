"""The last judgement: finalists timed side by side, graded on unseen samples, compared across runtimes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from compression.measuring import Timing
from hybrid.compress.across import FLOAT_TOLERANCE, N_COMPARED, TOLERANCE, Runtimes, faults, refusals
from hybrid.compress.grading import Grade, graded
from hybrid.compress.job import Job
from hybrid.compress.making.recipe import Recipe, distinct_ids
from hybrid.compress.rules import Facts, Status, verdict
from hybrid.compress.search.bench import Bench, bytes_of

MOST_JUDGED: Final = 6
"""Finalists of an engine; each one more is one more chance to pass by luck."""

MOST_SHIPPED: Final = 3
"""Variants of an artifact beside the original: boxes fetch them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A finalist and all that was found of it."""

    recipe: Recipe
    path: Path
    n_bytes: int
    timing: Timing
    original: Timing
    grade: Grade
    faults: Sequence[str]
    remarks: Sequence[str]
    memory_bytes: int
    status: Status
    reason: str
    feature_tensor: str = ""
    better: Recipe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Of all finalists, in the order of the search; and the original's own figures beside them."""

    finalists: Sequence[Judged]
    original: Timing | None
    original_memory_bytes: int

    @property
    def shipped(self) -> dict[str, Judged]:
        """Those that every rule lets pass, by the id that each has as a variant of the artifact."""
        passed = [each for each in self.finalists if each.status == "shipped"]
        ids = distinct_ids([each.recipe for each in passed])
        return {ids[each.recipe]: each for each in passed}


def judged(
    job: Job,
    bench: Bench,
    recipes: Sequence[Recipe],
    runners_up: Sequence[Recipe] = (),
    *,
    runtimes: Runtimes | None = None,
) -> Judgement:
    """The judgement of finalists.

    Args:
        job: what was asked for.
        bench: has tried them.
        recipes: the best first.
        runners_up: judged one after the other where none of these passes for their engine, until one does.
        runtimes: to compare in; None for all that are here.

    Raises:
        CompressionError: the device times nothing any more.
    """
    feeds = bench.material.feeds[0]
    every = [*recipes, *runners_up]
    paths = [bench.maker.model(recipe)[0] for recipe in every]
    bench.stage("timing finalists side by side")
    original, *timings = bench.timer([bench.maker.path, *paths], feeds)
    found: list[Judged] = []
    for recipe, path, timing in zip(every, paths, timings, strict=True):
        if recipe in runners_up and any(
            each.status == "shipped" and each.recipe.engine == recipe.engine for each in found
        ):
            continue
        bench.stage(f"judging {recipe.text}")
        differing = _differing(bench, recipe, path, runtimes)
        entry = _one(job, bench, recipe, (timing, original), differing)
        ahead = [each for each in found if each.status == "shipped" and each.recipe.engine == recipe.engine]
        found.append(_dominated(entry, found) if len(ahead) < MOST_SHIPPED else _surplus(entry, ahead[0]))
    return Judgement(
        finalists=found,
        original=original,
        original_memory_bytes=bench.timer.memory_bytes(bench.maker.path, feeds),
    )


def _differing(bench: Bench, recipe: Recipe, path: Path, runtimes: Runtimes | None) -> list[str]:
    material = bench.material
    some = [material.feeds[index] for index in material.parts.judge[:N_COMPARED]]
    tolerance = FLOAT_TOLERANCE if recipe.precision == "float32" else TOLERANCE
    return faults(path, some, tolerance=tolerance, runtimes=runtimes)


def _one(job: Job, bench: Bench, recipe: Recipe, timings: tuple[Timing, Timing], differing: Sequence[str]) -> Judged:
    material, (timing, original) = bench.material, timings
    path, made = bench.maker.model(recipe)
    grade = graded(path, material, material.parts.judge)
    n_bytes = bytes_of(path)
    status, reason = verdict(
        Facts(
            objective=job.objective,
            max_drop=job.max_drop,
            device=bench.timer.told.words,
            timing=timing,
            original=original,
            n_bytes=n_bytes,
            original_bytes=bench.original_bytes,
            judged=grade,
            n_calibrated=len(material.parts.calibrate),
            faults=differing,
        )
    )
    return Judged(
        recipe=recipe,
        path=path,
        n_bytes=n_bytes,
        timing=timing,
        original=original,
        grade=grade,
        faults=differing,
        remarks=refusals(path),
        memory_bytes=bench.timer.memory_bytes(path, material.feeds[0]),
        feature_tensor=made.feature_tensor,
        status=status,
        reason=reason,
    )


def _dominated(entry: Judged, before: Sequence[Judged]) -> Judged:
    """A finalist that loses no less than a better one that is shipped adds nothing to an artifact."""
    better = next((each for each in before if _is_better(each, entry)), None)
    if entry.status != "shipped" or better is None:
        return entry
    return replace(
        entry, status="kept off", better=better.recipe, reason="is shipped, comes before it and loses no more"
    )


def _is_better(one: Judged, entry: Judged) -> bool:
    """Whether one that is shipped for the same engine loses no more; it came first because it costs less."""
    is_rival = one.status == "shipped" and one.recipe.engine == entry.recipe.engine
    return is_rival and one.grade.drop <= entry.grade.drop


def _surplus(entry: Judged, first: Judged) -> Judged:
    if entry.status != "shipped":
        return entry
    reason = f"is shipped, and {MOST_SHIPPED - 1} more that come before it"
    return replace(entry, status="kept off", better=first.recipe, reason=reason)
