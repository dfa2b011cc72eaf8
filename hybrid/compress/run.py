"""From a job to an artifact and a report: samples first, then the search within its budget, then the judgement."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnxruntime

from devices.catalog.load import link_class
from devices.machine import processor
from hybrid.artifact.folder import Artifact
from hybrid.compress.bench import Bench
from hybrid.compress.job import Job, Watch
from hybrid.compress.journal import SPLITS, Journal
from hybrid.compress.judging import MOST_JUDGED, judged
from hybrid.compress.learned_splits import WHAT, Learned, SplitWork
from hybrid.compress.making import Maker
from hybrid.compress.material import Material, gathered, refuse_overlap
from hybrid.compress.report import Refused, Report
from hybrid.compress.search import Space, finalists, next_step, runners_up
from hybrid.compress.shipping import Shipment, check_place, variant_ids, write_artifact, write_report
from hybrid.compress.space import Steps, multiple_of, space_of, staircase_of
from hybrid.compress.telling import Searched, told
from hybrid.compress.timer_choice import timer_for
from hybrid.compress.timing import Timer
from hybrid.compress.trained import Trainer, digest, matched
from hybrid.compress.uncompressed import Base, base_of

if TYPE_CHECKING:
    from compression.training.training_set import TrainingSet

SPLIT_RATIO: Final = 0.4
"""Share of the budget that is kept for learned bottlenecks, where a link was named."""

_SCHEMA: Final = 1
"""Of what the journal keeps; another one begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a job gave.

    Attributes:
        artifact: that was written; None where nothing was won.
        report: of everything.
        report_paths: its JSON and its page.
        is_cut_short: whether the budget ended the search.
        n_known: pieces of work that an earlier call had done.
    """

    artifact: Artifact | None
    report: Report
    report_paths: tuple[Path, Path]
    is_cut_short: bool
    n_known: int


def compress(
    job: Job,
    watch: Watch | None = None,
    *,
    timer: Callable[[Job], Timer] = timer_for,
    now_s: Callable[[], float] = time.monotonic,
) -> Result:
    """Search, judge, ship.

    Args:
        job: what is asked for.
        watch: who is told how far it is.
        timer: makes what times; closed here.
        now_s: the clock to which the budget is held.

    Raises:
        DataUnfit, TensorMismatch, BadMessage, NotFound: samples or labels that do not allow a judgement.
        ModelError, DeviceError: the model cannot be used.
        CompressionError: the device cannot time the original.
        Conflict: something is at the place of the artifact, or another process works on it.
        DiskFull, StorageError: no room; nothing is half-written.
    """
    watch, begun_s = watch or Watch(), [now_s()]

    def left_s() -> float:
        return begun_s[0] + job.budget_s - now_s()

    check_place(job)
    if job.link:
        link_class(job.link)  # an unknown one is said before any work
    work = job.out.with_name(f"{job.out.name}.work")
    with ExitStack() as held:
        measure = held.enter_context(closing(timer(job)))
        training = _training(job, watch)
        base = base_of(job, work, training)
        if base.head:
            watch.said(base.head_text)
        classes = base.artifact.manifest.classes if base.artifact is not None else None
        material = gathered(job, base.path, classes=classes or (), watch=watch)
        if training is not None:
            training = matched(training, base.path, [*material.feeds[0]], [spec.name for spec in material.outputs])
            refuse_overlap(material, training.inputs)
        journal = held.enter_context(Journal(work, _facts(job, base, material, training), again=job.again))
        trainer = _trainer(job, training, journal, left_s, watch)
        bench = Bench(
            maker=Maker(
                path=base.path,
                material=material,
                journal=journal,
                trainer=trainer,
                saving="weights" if job.objective == "bytes" else "macs",
                head=base.head,
                stage=watch.stage,
            ),
            material=material,
            journal=journal,
            timer=measure,
            original_bytes=base.n_bytes,
            stage=watch.stage,
        )
        begun_s[0] = now_s()
        return _result(job, base, bench, watch, left_s)


def _result(job: Job, base: Base, bench: Bench, watch: Watch, left_s: Callable[[], float]) -> Result:
    """Searches, judges, tells and ships."""
    space = space_of(job, base, bench)
    spared_s = SPLIT_RATIO * job.budget_s if _wants_splits(job, bench) else 0.0
    steps, is_cut_short = _searched(space, bench, watch, lambda: left_s() <= spared_s)
    front = finalists(space, bench.done, MOST_JUDGED)
    judgement = judged(job, bench, front, runners_up(space, bench.done, front, MOST_JUDGED))
    learned = _splits(job, base, bench, left_s)
    report = told(
        job,
        base,
        bench,
        judgement,
        Searched(space=space, staircase=steps.seconds if steps is not None else None, is_cut_short=is_cut_short),
        refused=[*_refused(job, bench), *learned.refused],
        splits=learned.splits,
    )
    shipped = variant_ids(judgement.shipped)
    artifact = None
    if shipped or learned.splits:
        shipment, work = Shipment(shipped, learned.splits), bench.journal.folder
        artifact = write_artifact(job, base, bench.material, shipment, report, work=work)
    paths = write_report(report, job.out)  # last: what it says is shipped is there
    return Result(
        artifact=artifact,
        report=report,
        report_paths=paths,
        is_cut_short=is_cut_short,
        n_known=bench.journal.n_known,
    )


def _wants_splits(job: Job, bench: Bench) -> bool:
    return bool(job.link) and bench.maker.trainer is not None


def _splits(job: Job, base: Base, bench: Bench, left_s: Callable[[], float]) -> Learned:
    """Learned bottlenecks, where a link was named and a training set is there."""
    trainer = bench.maker.trainer
    if not _wants_splits(job, bench) or trainer is None:
        return Learned(splits=(), refused=())
    work = SplitWork(
        base=base,
        material=bench.material,
        training_set=trainer.training_set,
        max_drop=job.max_drop,
        folder=bench.journal.folder / SPLITS,
        seed=job.seed,
        left_s=left_s,
        stage=bench.stage,
    )
    return work.learned()


def _training(job: Job, watch: Watch) -> "TrainingSet | None":
    if not job.train_script:
        return None
    from compression.training.script import load_script

    watch.stage("the training script")
    return load_script(job.train_script)


def _trainer(
    job: Job, training: "TrainingSet | None", journal: Journal, left_s: Callable[[], float], watch: Watch
) -> Trainer | None:
    if training is None:
        return None
    return Trainer(training_set=training, journal=journal, seed=job.seed, left_s=left_s, stage=watch.stage)


def _facts(job: Job, base: Base, material: Material, training: "TrainingSet | None") -> list[object]:
    """All that every piece of work depends on."""
    trained = digest(training) if training is not None else ""
    facts = [_SCHEMA, onnxruntime.__version__, processor(), base.digest, material.digest, job.seed, trained]
    return [*facts, base.head] if base.head else facts


def _refused(job: Job, bench: Bench) -> list[Refused]:
    """Kinds of candidates that cannot be had, and why."""
    if bench.maker.trainer is not None:
        return [] if job.link else [Refused(what=WHAT, why="no link was named: give --link")]
    why = "no training set: give --train-script"
    kinds = ("fine-tuning after pruning", "distillation", "trained rounding (QAT, AdaRound)", "TensorFlow Lite")
    return [Refused(what=what, why=why) for what in (*kinds, WHAT)]


def _searched(space: Space, bench: Bench, watch: Watch, is_over: Callable[[], bool]) -> tuple[Steps | None, bool]:
    """Does steps until none is left; the staircase where it was measured, and whether the budget ended before."""
    n_done, steps = 0, None
    while (step := next_step(space, bench.done)) is not None:
        if is_over():
            return steps, True
        watch.total(n_done + 1)
        if step.kind == "staircase":
            steps = staircase_of(bench)
            space = replace(space, multiple=multiple_of(steps))
        else:
            bench.do(step)
        n_done += 1
        watch.stepped()
    return steps, False
