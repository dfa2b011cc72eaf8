"""Puts the report together from what the bench and the judgement know."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from compression.errors import CompressionError
from compression.measuring import Timing
from hybrid.calibration.trial import opened
from hybrid.compress.job import Job
from hybrid.compress.judging import Judged, Judgement
from hybrid.compress.making.maker import Made, Sensitive
from hybrid.compress.making.recipe import Recipe, distinct_ids
from hybrid.compress.report.reasons import Reasons, together
from hybrid.compress.report.report import (
    MOST_SHOWN,
    N_SHOWN,
    Baseline,
    Candidate,
    Data,
    Refused,
    Report,
    Shown,
    SplitTold,
    drop_of,
    environment,
    seconds_of,
    wanted_of,
    with_front,
)
from hybrid.compress.search.bench import Bench, Timed
from hybrid.compress.search.standing import Space
from hybrid.compress.uncompressed import Base
from hybrid.cost.energy import Power

CUT_SHORT: Final = "the budget ended before the search; the same command goes on with it"


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
    shipped = judgement.shipped
    ids = _ids(bench, judgement, shipped)
    candidates = with_front(_candidates(bench, judgement, Reasons(job, bench, judgement, searched.space, ids), ids))
    said = [*timer.told.remarks, *([base.head_text] if base.head else []), *bench.material.remarks, *remarks]
    if searched.is_cut_short:
        said.append(CUT_SHORT)
    said += filter(None, [together(judgement.finalists, ids, job.max_drop), headless(base.head, shipped)])
    return Report(
        model_digest=base.digest,
        model=base.name,
        wanted=wanted_of(job),
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


def headless(head: str, shipped: Mapping[str, Judged]) -> str:
    """What is said where a head that learns was asked for, and something shipped has none; else empty."""
    without = [name for name, each in shipped.items() if not each.feature_tensor]
    if not head or not without:
        return ""
    return (
        f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} no head in a file that can learn, and learning "
        "does not reach them: TensorFlow Lite has none, a trained form where the script's module names its tensors "
        "otherwise (its notes say so); without --train-script every variant has one"
    )


def _ids(bench: Bench, judgement: Judgement, shipped: Mapping[str, Judged]) -> Mapping[Recipe, str]:
    """Every recipe that was graded or timed: the shipped ones under their variant's id, then in the order tried."""
    first = [each.recipe for each in (*shipped.values(), *judgement.finalists)]
    return distinct_ids(list(dict.fromkeys([*first, *bench.grades, *_only_timed(bench)])))


def _candidates(bench: Bench, judgement: Judgement, reasons: Reasons, ids: Mapping[Recipe, str]) -> list[Candidate]:
    final, done = {each.recipe: each for each in judgement.finalists}, bench.done
    found = []
    for recipe in ids:
        judged, timed, graded = final.get(recipe), bench.timed.get(recipe.timed_as), bench.grades.get(recipe)
        grade = graded.grade if graded is not None else None
        status, reason = reasons.of(recipe, judged)
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
                tried_ratio=cost.seconds if (cost := done.cost(recipe)) is not None else None,
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
