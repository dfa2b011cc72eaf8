"""How much a candidate loses on one part of the samples, and how sure that is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from hybrid.calibration.intervals import CONFIDENCE, beyond, mcnemar, paired_drop, wilson
from hybrid.calibration.record import Metric
from hybrid.calibration.trial import opened
from hybrid.compress.answering import answered
from hybrid.compress.material import Material


class Grade(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that were lost and won against the uncompressed model, of so many samples."""

    metric: Metric
    n: int
    n_lost: int
    n_won: int

    @property
    def drop(self) -> float:
        """The share lost, less that won."""
        return (self.n_lost - self.n_won) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the drop's 95 % interval: Tango's where answers can be won too, else Wilson's."""
        return _interval(self.metric, self.n_lost, self.n_won, self.n)

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely so uneven a change is where nothing was lost."""
        return mcnemar(self.n_lost, self.n_won)

    def promised(self, n: int) -> float:
        """The interval's upper end on so many other samples, if they show the same shares."""
        scale = n / self.n
        return _interval(self.metric, round(self.n_lost * scale), round(self.n_won * scale), n)[1]


def held_together(grades: Sequence[Grade], max_drop: float) -> list[bool]:
    """Which of several grades on the same samples hold a floor where all of them together shall be wrong in 2.5 %.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Stat. 6 (1979) 65-70.
    """
    p_values = [beyond(grade.n_lost, grade.n_won, grade.n, max_drop) for grade in grades]
    held = [False] * len(grades)
    for n_before, at in enumerate(sorted(range(len(grades)), key=lambda at: p_values[at])):
        if p_values[at] > (1 - CONFIDENCE) / 2 / (len(grades) - n_before):
            break
        held[at] = True
    return held


def _interval(metric: Metric, n_lost: int, n_won: int, n: int) -> tuple[float, float]:
    return paired_drop(n_lost, n_won, n) if metric == "accuracy" else wilson(n_lost, n)


def graded(path: Path, material: Material, part: Sequence[int]) -> Grade:
    """The grade of a model file on these samples.

    Raises:
        DeviceError: the engine refuses the model.
        EngineFailed: it does not take a sample.
    """
    return grade_of(opened(path), material, part)


def grade_of(session: Any, material: Material, part: Sequence[int]) -> Grade:
    """The grade of an open model on these samples; raises `EngineFailed`."""
    answers = answered(session, [material.feeds[index] for index in part], [str(index) for index in part])
    n_lost = n_won = 0
    for index, answer in zip(part, answers, strict=True):
        before, after = material.before[index], material.judge.after(index, answer)
        n_lost += before and not after
        n_won += after and not before
    return Grade(metric=material.metric, n=len(part), n_lost=n_lost, n_won=n_won)
