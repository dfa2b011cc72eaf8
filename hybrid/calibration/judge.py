"""When an answer counts as right, or as the same: by label, by most likely class, or by distance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from compression.tensor import TensorSpec
from hybrid.calibration.intervals import paired_drop, wilson
from hybrid.calibration.record import Metric
from hybrid.errors import TensorMismatch

TOLERANCE: Final = 0.02
"""Relative distance (2 %, 34 dB) up to which outputs that are no classification count as the same."""

Answers = Mapping[str, np.ndarray]


@dataclass(slots=True, kw_only=True)
class Judge:
    """Compares answers with those of the uncompressed model, sample by sample.

    Attributes:
        metric: see `record.Metric`.
        outputs: names of the outputs that are compared; one for `accuracy` and `agreement`.
        tolerance: for `fidelity`.
        labels: for `accuracy`: the right class of each sample.
    """

    metric: Metric
    outputs: tuple[str, ...]
    tolerance: float = TOLERANCE
    labels: Sequence[int] = ()
    _references: dict[int, Answers] = field(default_factory=dict)
    _classes: dict[int, int] = field(default_factory=dict)

    def learn(self, sample: int, answers: Answers) -> None:
        """Takes the uncompressed model's answer to a sample as what others are compared with."""
        if self.metric == "fidelity":
            self._references[sample] = {name: answers[name] for name in self.outputs}
        else:
            self._classes[sample] = top_1(answers[self.outputs[0]])

    def before(self, sample: int) -> bool:
        """Whether the uncompressed model is right about a sample; without labels it is right by definition."""
        return self.metric != "accuracy" or self._classes[sample] == self.labels[sample]

    def after(self, sample: int, answers: Answers) -> bool:
        """Whether this answer to the sample is right, or the same."""
        if self.metric == "accuracy":
            return top_1(answers[self.outputs[0]]) == self.labels[sample]
        if self.metric == "agreement":
            return top_1(answers[self.outputs[0]]) == self._classes[sample]
        wanted = self._references[sample]
        return max((distance(answers[name], wanted[name]) for name in self.outputs), default=0.0) <= self.tolerance


@dataclass(slots=True)
class Tally:
    """How often an answer was lost or won by encoding."""

    metric: Metric
    n: int = 0
    n_lost: int = 0
    n_won: int = 0

    def count(self, *, before: bool, after: bool) -> None:
        """One sample."""
        self.n += 1
        self.n_lost += before and not after
        self.n_won += after and not before

    @property
    def drop(self) -> float:
        """The share lost, less that won."""
        return (self.n_lost - self.n_won) / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The drop's 95 % interval: Tango's where answers can be won too, else Wilson's."""
        if self.metric == "accuracy":
            return paired_drop(self.n_lost, self.n_won, self.n)
        return wilson(self.n_lost, self.n)


def top_1(scores: np.ndarray) -> int:
    """The most likely class; -1 where a score is no number, so that it agrees with nothing."""
    flat = np.asarray(scores).reshape(-1)
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        return -1
    return int(flat.argmax())


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """‖a − b‖₂ / ‖b‖₂; infinite where shapes, NaNs, or any whole number or string differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    apart, size = float(np.linalg.norm(a - b)), float(np.linalg.norm(b))
    if not np.isfinite(apart):
        return float("inf")
    return apart / size if size else float("inf")


def judge_for(
    outputs: Sequence[TensorSpec],
    first: Answers,
    *,
    labels: Sequence[int] | None = None,
    metric: Metric | None = None,
    output: str | None = None,
    tolerance: float = TOLERANCE,
) -> Judge:
    """The judge of a model.

    Without a wish: `accuracy` where labels are given; `agreement` where the model has one output (or one is named) of
    class scores, a float tensor whose sizes but one are 1; else `fidelity` of all outputs.

    Args:
        outputs: the model's outputs.
        first: its answer to the first sample, which has the sizes.
        labels: right classes, where known.
        metric: what the user wants.
        output: the output that is compared.
        tolerance: for `fidelity`.

    Raises:
        TensorMismatch: no such output, or one that holds no class scores where such are needed.
    """
    names = tuple(spec.name for spec in outputs)
    if output is not None and output not in names:
        raise TensorMismatch(f"the model has no output {output!r}; it has {', '.join(names)}")
    if metric is None:
        is_single = output is not None or len(names) == 1
        scores = is_single and is_class_scores(first[output or names[0]])
        metric = "accuracy" if labels is not None else "agreement" if scores else "fidelity"
    if metric == "fidelity":
        return Judge(metric=metric, outputs=(output,) if output else names, tolerance=tolerance)
    if metric == "accuracy" and labels is None:
        raise TensorMismatch("accuracy needs labels; give --labels, or another metric")
    named = output or next((name for name in names if is_class_scores(first[name])), names[0])
    if not is_class_scores(first[named]):
        raise TensorMismatch(
            f"output {named!r} has shape {list(first[named].shape)}: class scores are one float tensor whose sizes but "
            "one are 1; name another one with --output, or use --metric fidelity"
        )
    return Judge(metric=metric, outputs=(named,), labels=labels or ())


def is_class_scores(array: np.ndarray) -> bool:
    """Whether this can be one score a class: a float tensor whose sizes but one are 1."""
    return array.dtype.kind == "f" and array.size >= 2 and max(array.shape) == array.size
