"""From a job to an artifact and a report: samples first, then the search within its budget, then the judgement."""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import onnxruntime

from compression.tflite.export import EXTRA as LITE_EXTRA
from devices.catalog.load import link_class
from devices.machine import processor
from hybrid.artifact.folder import Artifact
from hybrid.compress.job import THIS, Job, Watch
from hybrid.compress.journal import Journal
from hybrid.compress.judging import MOST_JUDGED, Judgement, judged
from hybrid.compress.making.counterpart import counterpart
from hybrid.compress.making.maker import Maker
from hybrid.compress.making.trained import Trainer, digest, matched
from hybrid.compress.material import Material, gathered, refuse_overlap
from hybrid.compress.report.files import untold, write_report
from hybrid.compress.report.report import Refused, Report
from hybrid.compress.report.telling import CUT_SHORT, Searched, told
from hybrid.compress.search.bench import Bench
from hybrid.compress.search.next_step import best_int8, best_pair, next_step
from hybrid.compress.search.space import space_of
from hybrid.compress.search.staircase import Stairs, multiple_of, staircase_of
from hybrid.compress.search.standing import Space, finalists, runners_up
from hybrid.compress.shipping import Shipment, check_place, write_artifact
from hybrid.compress.splits.bottlenecks import WHAT
from hybrid.compress.splits.work import SPLITTING, Found, SplitWork
from hybrid.compress.timing.choice import timer_for
from hybrid.compress.timing.timer import Timer
from hybrid.compress.uncompressed import Base, base_of

if TYPE_CHECKING:
    from compression.training.training_set import TrainingSet

SPLIT_RATIO: Final = 0.2
"""Share of the budget that is kept for dividing requests, where a link was named."""

LEARNED_RATIO: Final = 0.4
"""The same with a training set, where bottlenecks are learned too."""

LITE: Final = "TensorFlow Lite"

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

    if (late := _told_late(job)) is not None:
        return late
    _check(job)
    work = job.out.with_name(f"{job.out.name}.work")
    with ExitStack() as held:
        measure = held.enter_context(closing(timer(job)))
        training = _training(job, watch)
        base = base_of(job, work, training, said=watch.said)
        material = gathered(job, base.path, classes=base.classes, watch=watch)
        if training is not None:
            training = _matched(job, training, base, material)
        journal = held.enter_context(Journal(work, _facts(job, base, material, training), again=job.again))
        trainer = _trainer(job, training, journal, left_s, watch)
        bench = Bench(
            maker=_maker(job, base, material, journal, trainer=trainer, watch=watch),
            material=material,
            journal=journal,
            timer=measure,
            original_bytes=base.n_bytes,
            stage=watch.stage,
        )
        begun_s[0] = now_s()
        return _result(job, base, bench, watch, left_s, timer=timer)


def _told_late(job: Job) -> Result | None:
    """What an earlier call has made whole but for the report beside it."""
    found = untold(job)
    if found is None:
        return None
    artifact, report = found
    paths, is_cut_short = write_report(report, job.out), CUT_SHORT in report.remarks
    return Result(artifact=artifact, report=report, report_paths=paths, is_cut_short=is_cut_short, n_known=0)


def _check(job: Job) -> None:
    """What can be refused before any work."""
    check_place(job)
    if job.link:
        link_class(job.link)


def _result(
    job: Job, base: Base, bench: Bench, watch: Watch, left_s: Callable[[], float], *, timer: Callable[[Job], Timer]
) -> Result:
    """Searches, judges, tells and ships."""
    space = space_of(job, base, bench)
    spared_s = _spared_ratio(job, bench) * job.budget_s
    stairs, is_cut_short = _searched(space, bench, watch, lambda: left_s() <= spared_s)
    front = finalists(space, bench.done, MOST_JUDGED)
    judgement = judged(job, bench, front, runners_up(space, bench.done, front, MOST_JUDGED))
    divided = _splits(job, base, bench, space=space, judgement=judgement, left_s=left_s, timer=timer)
    report = told(
        job,
        base,
        bench,
        judgement,
        Searched(space=space, staircase=stairs.seconds if stairs is not None else None, is_cut_short=is_cut_short),
        refused=[*_refused(job, bench, space), *divided.refused],
        splits=divided.told,
        remarks=divided.remarks,
    )
    shipped = judgement.shipped
    artifact = None
    if shipped or divided.shipped:
        shipment, work = Shipment(shipped, divided.shipped), bench.journal.folder
        artifact = write_artifact(job, base, bench.material, shipment, report, work=work)
    paths = write_report(report, job.out)  # last: what it says is shipped is there
    return Result(
        artifact=artifact,
        report=report,
        report_paths=paths,
        is_cut_short=is_cut_short,
        n_known=bench.journal.n_known,
    )


def _spared_ratio(job: Job, bench: Bench) -> float:
    """Of the budget, for dividing requests."""
    if not job.link:
        return 0.0
    return LEARNED_RATIO if bench.maker.trainer is not None else SPLIT_RATIO


def _splits(
    job: Job,
    base: Base,
    bench: Bench,
    *,
    space: Space,
    judgement: Judgement,
    left_s: Callable[[], float],
    timer: Callable[[Job], Timer],
) -> Found:
    """Ways of dividing requests over the link, where one was named; for the gateway stands this machine."""
    if not job.link or judgement.original is None:
        return Found()
    trainer = bench.maker.trainer
    with closing(timer(replace(job, device=THIS, threads=0))) as gateway:
        work = SplitWork(
            job=job,
            base=base,
            bench=bench,
            link=link_class(job.link),
            gateway=gateway,
            original=judgement.original,
            variants=judgement.shipped,
            int8=best_int8(space, bench.done) or best_pair(space, bench.done),
            training_set=trainer.training_set if trainer is not None else None,
            left_s=left_s,
        )
        return work.found()


def _training(job: Job, watch: Watch) -> "TrainingSet | None":
    if not job.train_script:
        return None
    from compression.training.script import load_script

    watch.stage("the training script")
    return load_script(job.train_script)


def _matched(job: Job, training: "TrainingSet", base: Base, material: Material) -> "TrainingSet":
    """The training set, which is of this model and has not seen what chooses and judges."""
    outputs, is_its_own = [spec.name for spec in material.outputs], job.model is None
    found = matched(training, base.path, [*material.feeds[0]], outputs, is_its_own=is_its_own)
    refuse_overlap(material, found.inputs)
    return found


def _maker(
    job: Job, base: Base, material: Material, journal: Journal, *, trainer: Trainer | None, watch: Watch
) -> Maker:
    return Maker(
        path=base.path,
        material=material,
        journal=journal,
        trainer=trainer,
        saving="weights" if job.objective == "bytes" else "macs",
        head=base.head,
        module_head=_module_head(base, material, trainer),
        stage=watch.stage,
    )


def _module_head(base: Base, material: Material, trainer: Trainer | None) -> str:
    """Where the head begins in exports of the script's module."""
    if not base.head or trainer is None:
        return ""
    return counterpart(base.path, base.head, trainer.whole(), material.feeds[0])


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


def _refused(job: Job, bench: Bench, space: Space) -> list[Refused]:
    """Kinds of candidates that cannot be had, and why."""
    found = [Refused(what=f"pruning of the {what}", why=why) for what, why in bench.unprunable.items()]
    if bench.maker.trainer is None:
        why = "no training set: give --train-script"
        kinds = ("fine-tuning after pruning", "distillation", "trained rounding (QAT, AdaRound)", LITE, WHAT)
        found += [Refused(what=what, why=why) for what in kinds]
    elif not space.engines:
        found.append(Refused(what=LITE, why=f"litert-torch and litert-quantizer are not both here: {LITE_EXTRA}"))
    if not job.link:
        found.append(Refused(what=SPLITTING, why="no link was named: give --link"))
    return found


def _searched(space: Space, bench: Bench, watch: Watch, is_over: Callable[[], bool]) -> tuple[Stairs | None, bool]:
    """Does steps until none is left; the staircase where it was measured, and whether the budget ended before."""
    n_done, stairs = 0, None
    while (step := next_step(space, bench.done)) is not None:
        if is_over():
            return stairs, True
        watch.total(n_done + 1)
        if step.kind == "staircase":
            int8 = best_int8(space, bench.done)
            stairs = staircase_of(bench, int8)
            in_float = stairs if int8 is None else staircase_of(bench)
            space = replace(space, multiple=multiple_of(stairs), float_multiple=multiple_of(in_float))
        else:
            bench.do(step)
        if n_done == 0 and bench.journal.is_gone_on_with:
            watch.said(f"goes on with what an earlier call has finished ({bench.journal.folder})")
        n_done += 1
        watch.stepped()
    return stairs, False
