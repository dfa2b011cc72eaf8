"""What became of a candidate that was tried, and why, in one sentence that names the one that is better."""

from collections.abc import Mapping, Sequence

from hybrid.compress.grading import Grade
from hybrid.compress.job import Job
from hybrid.compress.judging import Judged, Judgement
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.rules import FASTER_RATIO, SMALLER_RATIO, Status
from hybrid.compress.search.bench import Bench, Timed
from hybrid.compress.search.standing import GAIN_RATIO, Space, better_than, cheaper_than, holds, value


class Reasons:
    """Says of each candidate what became of it.

    Args:
        job: what was asked for.
        bench: what was tried.
        judgement: of the finalists.
        space: of the search.
        ids: what candidates are called in the report.
    """

    def __init__(self, job: Job, bench: Bench, judgement: Judgement, space: Space, ids: Mapping[Recipe, str]) -> None:
        self._job, self._bench, self._space, self._ids = job, bench, space, ids
        self._done = bench.done
        self._finalists = judgement.finalists
        self._shipped = [each.recipe for each in judgement.shipped.values()]

    def of(self, recipe: Recipe, judged: Judged | None) -> tuple[Status, str]:
        """What became of a candidate, and why."""
        if judged is not None:
            better = f"{self._name(judged.better)} " if judged.better is not None else ""
            return judged.status, f"{better}{judged.reason}"
        failed = self._bench.why_failed(recipe)
        if failed:
            return "failed", failed
        ratio = _ratio(self._job, self._bench, self._bench.timed.get(recipe.timed_as))
        if ratio is not None and ratio > (SMALLER_RATIO if self._job.objective == "bytes" else FASTER_RATIO):
            worse = "smaller" if self._job.objective == "bytes" else f"faster on {self._bench.timer.told.words}"
            return "reverted", f"not {worse}: {ratio:.0%} of the original"
        found = self._bench.grades.get(recipe)
        if found is None or found.grade is None:
            return "kept off", self._only_timed(recipe)
        return "kept off", self._graded(recipe, found.grade)

    def _only_timed(self, recipe: Recipe) -> str:
        better = cheaper_than(self._space, self._done, recipe, self._shipped)
        if better is not None:
            return (
                f"timed only: {self._name(better)} holds the floor, and this gains too little on it: "
                f"{self._against(better, recipe)}"
            )
        if (wider := self._wider_beyond(recipe)) is not None:
            return f"timed only: {self._name(wider)} is beyond the floor, and has more channels left"
        if (twin := self._twin(recipe)) is not None:
            return f"timed only: {self._name(twin)} is as good or better: {self._against(twin, recipe)}"
        return "timed only: the search ended before it was made in full"

    def _wider_beyond(self, recipe: Recipe) -> Recipe | None:
        """The same with more channels left, by which the floor is broken already."""
        for other, grade in self._done.grades.items():
            is_wider = _way(other) == _way(recipe) and other.ratio < recipe.ratio and other.pruned
            if is_wider and other.precision == recipe.precision and not holds(self._space, grade):
                return other
        return None

    def _twin(self, recipe: Recipe) -> Recipe | None:
        """The same channels in other numbers, which take no longer (or no more bytes) to speak of."""
        for other in dict.fromkeys([*self._done.grades, *self._done.costs]):
            is_twin = (_way(other), other.ratio) == (_way(recipe), recipe.ratio) and other.timed_as != recipe.timed_as
            if is_twin and self._done.cost(other) and GAIN_RATIO * self._value(other) <= self._value(recipe):
                return other
        return None

    def _graded(self, recipe: Recipe, grade: Grade) -> str:
        promised = grade.promised(len(self._bench.material.parts.judge))
        if promised > self._job.max_drop:
            return (
                f"beyond the floor on the choosing part: a drop of {grade.drop:.2%} promises at most {promised:.2%} "
                f"where {self._job.max_drop:.2%} is allowed"
            )
        better = better_than(self._space, self._done, recipe, self._shipped)
        if better is not None:
            other = self._done.grades[better]
            lost = f"a drop of {other.drop:.2%} against {grade.drop:.2%}" if other is not None else ""
            same = other is not None and other.drop == grade.drop
            plainer = ", and is plainer" if same and self._value(better) == self._value(recipe) else ""
            return (
                f"{self._name(better)} beats it on the choosing part: {self._against(better, recipe)}, {lost}{plainer}"
            )
        if not self._finalists:
            return "not judged"
        first = self._finalists[0].recipe
        return f"not judged: {len(self._finalists)} others were before it, {self._name(first)} first"

    def _against(self, better: Recipe, recipe: Recipe) -> str:
        what = "bytes" if self._job.objective == "bytes" else "time"
        return f"{self._value(better):.1%} of the original's {what} against {self._value(recipe):.1%}"

    def _value(self, recipe: Recipe) -> float:
        cost = self._done.cost(recipe)
        return value(self._space, cost) if cost is not None else float("nan")

    def _name(self, recipe: Recipe) -> str:
        """Its id in the report, and what else its text says."""
        return f"{self._ids.get(recipe, recipe.id)}{recipe.text.removeprefix(recipe.id)}"


def _way(recipe: Recipe) -> tuple[object, ...]:
    """What a model is made of, whatever its widths and numbers."""
    return recipe.source, recipe.pruned, recipe.local, recipe.engine


def together(judged: Sequence[Judged], names: Mapping[Recipe, str], max_drop: float) -> str:
    """What Holm's correction says of several that were judged on the same samples; empty where it changes nothing."""
    from hybrid.compress.grading import held_together

    if len(judged) < 2:
        return ""
    held = held_together([each.grade for each in judged], max_drop)
    shipped = [
        (names[each.recipe], is_held) for each, is_held in zip(judged, held, strict=True) if each.status == "shipped"
    ]
    said = f"{len(judged)} candidates were judged on the same samples, each at 95 %"
    without = [name for name, is_held in shipped if not is_held]
    if not shipped:
        return said
    if not without:
        return f"{said}; what is shipped holds the floor with Holm's correction for all of them too"
    return f"{said}; with Holm's correction for all of them together {', '.join(without)} would not hold the floor"


def _ratio(job: Job, bench: Bench, timed: Timed | None) -> float | None:
    if timed is None or timed.seconds is None or timed.original is None:
        return None
    if job.objective == "bytes":
        return timed.n_bytes / bench.original_bytes
    return timed.seconds.p50_s / timed.original.p50_s
