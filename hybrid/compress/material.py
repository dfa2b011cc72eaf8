"""The samples of a job: read, checked and divided before any work, and what the uncompressed model answers to them."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from compression.tensor import TensorSpec
from hybrid.calibration.calibrate import MOST_BYTES, signature
from hybrid.calibration.intervals import samples_for, wilson
from hybrid.calibration.judge import Judge, judge_for
from hybrid.calibration.labels import read_labels
from hybrid.calibration.record import Metric
from hybrid.calibration.samples import Feeds, Samples, chosen, feed_digest, open_samples
from hybrid.calibration.trial import opened
from hybrid.compress.answering import answered
from hybrid.compress.job import Job, Watch
from hybrid.errors import DataUnfit, TensorMismatch
from hybrid.graph.shape_key import ShapeKey

CALIBRATE_RATIO: Final = 0.2
CHOOSE_RATIO: Final = 0.3
"""Of what is left after the part to calibrate with; the rest judges."""

MOST_CALIBRATE: Final = 300
"""More samples do not make ranges better."""

_FEW: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Numbers of samples, each in one part: to calibrate with, to choose by, to judge by."""

    calibrate: tuple[int, ...]
    choose: tuple[int, ...]
    judge: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Samples in memory, and what the uncompressed model makes of them.

    Attributes:
        feeds: of each sample.
        parts: which sample is for what.
        judge: has learned the uncompressed model's answer to each sample.
        before: whether that answer is right.
        shape_key: of the samples.
        digest: SHA-256 of samples and labels.
        outputs: the model's.
        labels: right classes, where known.
        remarks: what a reader of the report must know of them.
    """

    feeds: Sequence[Feeds]
    parts: Parts
    judge: Judge
    before: Sequence[bool]
    shape_key: ShapeKey
    digest: str
    outputs: Sequence[TensorSpec]
    labels: Sequence[int] | None
    remarks: tuple[str, ...] = ()

    @property
    def calibrate(self) -> list[Feeds]:
        """The samples to calibrate with."""
        return [self.feeds[index] for index in self.parts.calibrate]

    @property
    def metric(self) -> Metric:
        """How drops are counted."""
        return self.judge.metric

    def share_right(self, part: Sequence[int]) -> float:
        """How often the uncompressed model is right."""
        return sum(self.before[index] for index in part) / len(part)


def divided(n: int, seed: int) -> Parts:
    """A seeded division of so many samples; each is in one part."""
    order = [int(index) for index in np.random.default_rng(seed).permutation(n)]
    n_calibrate = min(MOST_CALIBRATE, max(1, round(CALIBRATE_RATIO * n)))
    n_choose = max(1, round(CHOOSE_RATIO * (n - n_calibrate)))
    return Parts(
        calibrate=tuple(sorted(order[:n_calibrate])),
        choose=tuple(sorted(order[n_calibrate : n_calibrate + n_choose])),
        judge=tuple(sorted(order[n_calibrate + n_choose :])),
    )


def samples_wanted(max_drop: float) -> int:
    """How many samples it takes, all parts together, before the judging part can show a drop of at most this."""
    wanted = max(samples_for(max_drop), 1)
    n = wanted
    while len(divided(n, 0).judge) < wanted:
        n += max(1, wanted - len(divided(n, 0).judge))
    return max(n, _FEW)


def gathered(job: Job, path: Path, *, classes: Sequence[str] = (), watch: Watch | None = None) -> Material:
    """Read, check and divide the samples, and ask the uncompressed model about them.

    Args:
        job: what is wanted.
        path: the uncompressed model.
        classes: names that labels may have.
        watch: who is told how far it is.

    Raises:
        DataUnfit: the floor cannot be judged by these samples and labels.
        TensorMismatch, BadMessage, NotFound: samples that are not the model's inputs, or cannot be read.
        EngineFailed: a sample that the model does not take.
    """
    watch = watch or Watch()
    session = opened(path)
    inputs, outputs = signature(path, session)
    samples = open_samples(job.data, inputs, pixels=job.pixels, wanted=job.shape)
    labels = read_labels(job.labels, samples.names, classes) if job.labels is not None else None
    picked = chosen(len(samples.names), job.n_samples, job.seed)
    _check_number(len(picked), len(samples.names), job)
    watch.stage("reading samples")
    feeds, key = _read(samples, picked)
    _check_shapes(feeds[0], inputs)
    known = [labels[index] for index in picked] if labels is not None else None
    watch.stage("answers of the uncompressed model")
    answers = answered(session, feeds, [samples.names[index] for index in picked])
    judge = judge_for(outputs, answers[0], labels=known, metric=job.metric, output=job.output, tolerance=job.tolerance)
    for index, answer in enumerate(answers):
        judge.learn(index, answer)
    before = [judge.before(index) for index in range(len(feeds))]
    _check_answers(answers, judge.outputs)
    is_accuracy = known is not None and judge.metric == "accuracy"
    remark = _check_labels(known or (), answers, judge.outputs[0], before) if is_accuracy else ""
    return Material(
        feeds=feeds,
        parts=divided(len(feeds), job.seed),
        judge=judge,
        before=before,
        shape_key=key,
        digest=_digest(feeds, known),
        outputs=outputs,
        labels=known,
        remarks=(remark,) if remark else (),
    )


def _check_number(n_picked: int, n_there: int, job: Job) -> None:
    wanted = samples_wanted(job.max_drop)
    if n_picked >= wanted:
        return
    if n_there >= wanted:
        raise DataUnfit(
            f"--samples {job.n_samples} are too few to show a drop of at most {job.max_drop:.2%}: use {wanted} at least"
        )
    raise DataUnfit(
        f"{n_there} {'sample' if n_there == 1 else 'samples'} cannot show a drop of at most {job.max_drop:.2%} with "
        f"95 % confidence, not even where no answer changes: give {wanted} at least, or allow more with --max-drop",
        wanted=wanted,
        found=n_there,
    )


def _read(samples: Samples, picked: Sequence[int]) -> tuple[list[Feeds], ShapeKey]:
    feeds: list[Feeds] = []
    key: ShapeKey | None = None
    room_bytes = MOST_BYTES
    for number in picked:
        name, found = samples.names[number], samples.feeds(number)
        strange = next((port for port, array in found.items() if not _is_finite(array)), None)
        if strange is not None:
            raise DataUnfit(f"sample {name}: {strange!r} holds NaN or infinity; mend or remove it", sample=name)
        shapes = ShapeKey.of(found)
        key = key or shapes
        if shapes != key:
            raise TensorMismatch(
                f"sample {name} has shapes {shapes.text}, the first one {key.text}: give samples of one shape"
            )
        room_bytes -= sum(array.nbytes for array in found.values())
        if room_bytes < 0:
            raise DataUnfit(
                f"the samples take more than {MOST_BYTES >> 20} MiB; {len(feeds)} of {len(picked)} fit: use fewer with "
                f"--samples {len(feeds)}"
            )
        feeds.append(found)
    assert key is not None
    return feeds, key


def _check_shapes(feeds: Feeds, inputs: Sequence[TensorSpec]) -> None:
    for spec in inputs:
        found = feeds[spec.name].shape
        if not spec.accepts(spec.dtype, found):
            wanted = "x".join("?" if size is None else str(size) for size in spec.shape)
            raise TensorMismatch(
                f"a sample's {spec.name!r} is {'x'.join(map(str, found))}, the model wants {wanted}; give samples "
                "as it takes them"
            )


def refuse_overlap(material: Material, inputs: Mapping[str, np.ndarray]) -> None:
    """Samples that a training has seen can judge nothing.

    Raises:
        DataUnfit: one of the choosing or judging part is among the training inputs.
    """
    rows = zip(*(inputs[name] for name in sorted(inputs)), strict=True)
    seen = {hash(b"".join(np.ascontiguousarray(array).tobytes() for array in row)) for row in rows}
    parts = (*material.parts.choose, *material.parts.judge)
    n_seen = sum(
        hash(b"".join(np.ascontiguousarray(feeds[name]).tobytes() for name in sorted(feeds))) in seen
        for feeds in (material.feeds[index] for index in parts)
    )
    if n_seen:
        raise DataUnfit(
            f"{n_seen} of the {len(parts)} samples to choose and judge by are among the training script's inputs: what "
            "was trained on cannot judge; give others with --data"
        )


def _is_finite(array: np.ndarray) -> bool:
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _check_answers(answers: Sequence[Mapping[str, np.ndarray]], outputs: Sequence[str]) -> None:
    """Answers that hold no numbers, or that never change, tell nothing of what compression does to them."""
    for name in outputs:
        first = answers[0][name]
        if not all(_is_finite(answer[name]) for answer in answers):
            raise DataUnfit(f"the model's output {name!r} holds NaN or infinity for these samples; mend model or data")
        if all(np.array_equal(answer[name], first) for answer in answers):
            others = [other for other in answers[0] if other != name]
            aside = f", or judge by another output with --output ({', '.join(others)})" if others else ""
            raise DataUnfit(
                f"the model's output {name!r} is the same for all {len(answers)} samples: nothing can be judged by it; "
                f"check the samples (their range, their preprocessing) and the model{aside}"
            )


def _check_labels(
    labels: Sequence[int], answers: Sequence[Mapping[str, Any]], output: str, before: Sequence[bool]
) -> str:
    """Refuses labels that cannot be the model's; a remark where it does no better with them than its largest class."""
    n_classes = answers[0][output].size
    beyond = next((label for label in labels if label >= n_classes), None)
    if beyond is not None:
        from_one = min(labels) == 1 and max(labels) == n_classes
        hint = "; they seem to be counted from 1: take 1 off each" if from_one else ""
        others = _other_outputs(answers[0], output)
        raise DataUnfit(
            f"label {beyond} is none of the model's {n_classes} classes (0 to {n_classes - 1}){hint or others}"
        )
    n, n_usual = len(labels), Counter(labels).most_common(1)[0][1]
    n_right = sum(before)
    if n_usual < n and wilson(n_right, n)[1] < n_usual / n:
        raise DataUnfit(
            f"the model is right about {n_right / n:.1%} of the samples, while one class alone is the label of "
            f"{n_usual / n:.1%}: the labels do not fit (their order, their numbering), or the inputs' preprocessing"
            f"{_other_outputs(answers[0], output)}"
        )
    if n_usual < n and wilson(n_right, n)[0] <= n_usual / n:
        return (
            f"the model is right about {n_right / n:.1%} of the samples and one class alone is the label of "
            f"{n_usual / n:.1%}: so labelled it does no better than always saying that class; see whether they fit"
            f"{_other_outputs(answers[0], output)}"
        )
    return ""


def _other_outputs(answer: Mapping[str, Any], output: str) -> str:
    """What else labels may be about: the first output that can be scores is taken where none was named."""
    others = ", ".join(name for name in answer if name != output)
    return f", or are about another output than {output!r}: name it with --output ({others})" if others else ""


def _digest(feeds: Sequence[Feeds], labels: Sequence[int] | None) -> str:
    digest = hashlib.sha256()
    for index, found in enumerate(feeds):
        digest.update(feed_digest(found))
        if labels is not None:
            digest.update(f"{labels[index]}\n".encode())
    return digest.hexdigest()
