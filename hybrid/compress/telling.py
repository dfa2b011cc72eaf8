"""Puts the report together from what the bench and the judgement know."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compression.errors import CompressionError
from compression.measuring import Timing
from hybrid.calibration.trial import opened
from hybrid.compress.bench import Bench, Timed
from hybrid.compress.job import Job
from hybrid.compress.judging import Judged, Judgement
from hybrid.compress.making import Made, Sensitive
from hybrid.compress.recipe import Recipe
from hybrid.compress.report import (
    MOST_SHOWN,
    N_SHOWN,
    Baseline,
    Candidate,
    Data,
    Point,
    Refused,
    Report,
    Shown,
    SplitTold,
    Wanted,
    distinct_ids,
    drop_of,
    environment,
    seconds_of,
    with_front,
)
from hybrid.compress.rules import FASTER_RATIO, SMALLER_RATIO, Status
from hybrid.compress.search import Space, better_than
from hybrid.compress.shipping import variant_ids
from hybrid.compress.uncompressed import Base
from hybrid.cost.energy import Power


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A search that has ended: in which space, with which seconds by width, and whether its budget ended it."""

    space: Space
    staircase: Mapping[int, float] | None
    is_cut_short: bool


def told(
    job: Job,
    base: Base,
    bench: Bench,
    judgement: Judgement,
    searched: Searched,
    *,
    refused: Sequence[Refused] = (),
    splits: Sequence[SplitTold] = (),
    remarks: Sequence[str] = (),
) -> Report:
    """The report of a search that has ended."""
    material, timer = bench.material, bench.timer
    shipped = variant_ids(judgement.shipped)
    candidates = with_front(_candidates(job, bench, judgement, shipped, searched.space), _points(bench))
    said = [*timer.told.remarks, *([base.head_text] if base.head else []), *remarks]
    if searched.is_cut_short:
        said.append("the budget ended before the search; the same command goes on with it")
    if len(judgement.finalists) > 1:
        said.append(f"{len(judgement.finalists)} finalists were judged on the same samples, each at 95 %")
    return Report(
        model_digest=base.digest,
        model=base.name,
        wanted=Wanted(
            objective=job.objective,
            max_drop=job.max_drop,
            budget_s=job.budget_s,
            seed=job.seed,
            link=job.link,
            train_script=job.train_script,
        ),
        data=Data(
            digest=material.digest,
            metric=material.metric,
            n_calibrate=len(material.parts.calibrate),
            n_choose=len(material.parts.choose),
            n_judge=len(material.parts.judge),
        ),
        device=timer.told,
        baseline=Baseline(
            n_bytes=base.n_bytes,
            seconds=seconds_of(judgement.original),
            memory_bytes=judgement.original_memory_bytes,
            energy_j=_energy_j(timer.power, judgement.original),
            accuracy=material.share_right(material.parts.judge) if material.metric == "accuracy" else None,
        ),
        candidates=candidates,
        environment=environment(),
        made_s=time.time(),
        front=tuple(each.id for each in candidates if each.on_front),
        shipped=tuple(shipped),
        sensitivities=_sensitivities(bench),
        staircase={str(width): each for width, each in (searched.staircase or {}).items()} or None,
        refused=tuple(refused),
        splits=tuple(splits),
        shown=_shown(base.path, bench, {name: each.path for name, each in shipped.items()}),
        remarks=tuple(said),
        power=timer.power.source,
    )


def _points(bench: Bench) -> dict[Recipe, Point]:
    """Drop, time and bytes of all that were graded, each found in the same way: on the choosing part, when tried."""
    done = bench.done
    return {
        recipe: (grade.drop, cost.seconds, cost.bytes)
        for recipe, grade in done.grades.items()
        if grade is not None and (cost := done.cost(recipe)) is not None
    }


def _candidates(
    job: Job, bench: Bench, judgement: Judgement, shipped: Mapping[str, Judged], space: Space
) -> list[Candidate]:
    """Every recipe that was graded or timed: the shipped ones under their variant's id, then in the order tried."""
    names = {each.recipe: name for name, each in shipped.items()}
    final = {each.recipe: each for each in judgement.finalists}
    tried = dict.fromkeys([*names, *final, *bench.grades, *_only_timed(bench)])
    ids = distinct_ids(list(tried))
    found = []
    for recipe in tried:
        judged, timed, graded = final.get(recipe), bench.timed.get(recipe.timed_as), bench.grades.get(recipe)
        grade = graded.grade if graded is not None else None
        status, reason = _outcome(job, bench, recipe, judged, space)
        timing, original = _timing(timed, judged)
        made = bench.maker.kept(recipe) or Made()
        n_bytes = judged.n_bytes if judged is not None else (timed.n_bytes or None) if timed is not None else None
        found.append(
            Candidate(
                id=ids[recipe],
                text=recipe.text,
                recipe=recipe,
                status=status,
                reason=reason,
                notes=(*made.notes, *(judged.remarks if judged is not None else ())),
                n_bytes=n_bytes,
                bytes_ratio=n_bytes / bench.original_bytes if n_bytes else None,
                seconds=seconds_of(timing),
                seconds_ratio=timing.p50_s / original.p50_s if timing is not None and original is not None else None,
                memory_bytes=judged.memory_bytes if judged is not None else None,
                energy_j=_energy_j(bench.timer.power, timing),
                chosen_by=drop_of(grade),
                judged=drop_of(judged.grade) if judged is not None else None,
                runtimes=tuple(judged.faults) if judged is not None else None,
            )
        )
    return found


def _only_timed(bench: Bench) -> list[Recipe]:
    """What was timed and never graded under any recipe that takes the same time."""
    graded = {recipe.timed_as for recipe in bench.grades}
    return [recipe for recipe in bench.timed if recipe not in graded]


def _outcome(job: Job, bench: Bench, recipe: Recipe, judged: Judged | None, space: Space) -> tuple[Status, str]:
    """What became of a candidate, and why."""
    if judged is not None:
        return judged.status, judged.reason
    failed = bench.why_failed(recipe)
    if failed:
        return "failed", failed
    found = bench.grades.get(recipe)
    ratio = _ratio(job, bench, bench.timed.get(recipe.timed_as))
    if ratio is not None and ratio > (SMALLER_RATIO if job.objective == "bytes" else FASTER_RATIO):
        worse = "smaller" if job.objective == "bytes" else f"faster on {bench.timer.told.name}"
        return "reverted", f"not {worse}: {ratio:.0%} of the original"
    if found is None or found.grade is None:
        return "kept off", "timed only: a better one was known, or the search ended before it was made in full"
    promised = found.grade.promised(len(bench.material.parts.judge))
    if promised > job.max_drop:
        return "kept off", (
            f"beyond the floor on the choosing part: a drop of {found.grade.drop:.2%} promises at most {promised:.2%} "
            f"where {job.max_drop:.2%} is allowed"
        )
    better = better_than(space, bench.done, recipe)
    if better is None:
        return "kept off", "enough others were judged before it"
    return "kept off", f"{better.text} is as good, and better in {job.objective}, in drop or by being plainer"


def _ratio(job: Job, bench: Bench, timed: Timed | None) -> float | None:
    if timed is None or timed.seconds is None or timed.original is None:
        return None
    if job.objective == "bytes":
        return timed.n_bytes / bench.original_bytes
    return timed.seconds.p50_s / timed.original.p50_s


def _timing(timed: Timed | None, judged: Judged | None) -> tuple[Timing | None, Timing | None]:
    """Side by side with the original: in the last judgement, else when it was tried."""
    if judged is not None:
        return judged.timing, judged.original
    return (timed.seconds, timed.original) if timed is not None else (None, None)


def _energy_j(power: Power, timing: Timing | None) -> float | None:
    return None if timing is None else power.energy_j(total_s=timing.p50_s, compute_s=timing.p50_s)


def _sensitivities(bench: Bench) -> tuple[Sensitive, ...]:
    """Of the int8 that was tried first, layer by layer; none where there is none."""
    recipe = next((each for each in bench.grades if each.precision == "int8" and each.float_part == Recipe()), None)
    if recipe is None:
        return ()
    try:
        return tuple(bench.maker.sensitivities(recipe))
    except CompressionError:  # a report without them is still one
        return ()


def _shown(path: Path, bench: Bench, variants: Mapping[str, Path]) -> tuple[Shown, ...]:
    """The same samples through the original and what is shipped."""
    material = bench.material
    output = material.judge.outputs[0]
    sessions = {name: opened(file) for name, file in {"original": path, **variants}.items()}
    found = []
    for index in material.parts.judge[:N_SHOWN]:
        outputs = {}
        for name, session in sessions.items():
            values = np.ravel(session.run([output], material.feeds[index])[0])[:MOST_SHOWN]
            outputs[name] = [float(value) for value in values] if values.dtype.kind in "fiub" else []
        label = material.labels[index] if material.labels is not None else None
        found.append(Shown(sample=index, label=label, outputs=outputs))
    return tuple(found)
