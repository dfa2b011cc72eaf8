"""What is known of candidates, and who is ahead of whom: no clock, no file, no chance."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from hybrid.compress.grading import Grade
from hybrid.compress.job import Objective
from hybrid.compress.making.recipe import Engine, Recipe

GAIN_RATIO: Final = 0.98
"""What takes more than this share of another one's cost is not worth trying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a candidate takes, as shares of what the original takes."""

    seconds: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What there is to choose from.

    Attributes:
        objective: what is made small.
        max_drop: the floor.
        n_judge: samples of the last judgement: what a grade must promise to hold there.
        pairs: int8 recipes, one for each type pair that is worth measuring.
        has_products: whether large matrix products are there, which weights-only and smoothing are for.
        prunings: by which ways channels can be taken away, the cheap ones first.
        multiple, float_multiple: to which channel counts are rounded, in the precision of whole models (int8 where that
            gains) and in float32; None until the staircases are measured.
        rungs: epochs of fine-tuning, the short one first; empty without training.
        trained_int8: ways of training the rounding.
        has_student: whether the script gives one.
        engines: beside onnxruntime.
    """

    objective: Objective
    max_drop: float
    n_judge: int
    pairs: Sequence[Recipe] = ()
    has_products: bool = False
    prunings: Sequence[Recipe] = ()
    multiple: int | None = 8
    float_multiple: int | None = 8
    rungs: Sequence[int] = ()
    trained_int8: Sequence[Literal["qat", "adaround"]] = ()
    has_student: bool = False
    engines: Sequence[Engine] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What is known; None for what failed.

    Attributes:
        costs: by `Recipe.timed_as`.
        grades: by recipe.
        widths: what a pruned model's layers are as wide as, by its recipe in float; empty where nothing is gone.
        unprunable: what no channel can be taken from at any ratio: `graph`, `module`.
    """

    costs: Mapping[Recipe, Cost | None] = field(default_factory=dict)
    grades: Mapping[Recipe, Grade | None] = field(default_factory=dict)
    widths: Mapping[Recipe, str | None] = field(default_factory=dict)
    unprunable: Collection[str] = ()

    def cost(self, recipe: Recipe) -> Cost | None:
        """Of a recipe that was timed and did not fail."""
        return self.costs.get(recipe.timed_as)


def value(space: Space, cost: Cost) -> float:
    """What is made small; joules go with the seconds of one device."""
    return cost.bytes if space.objective == "bytes" else cost.seconds


def holds(space: Space, grade: Grade | None) -> bool:
    """Whether a grade of the choosing part promises the floor on the judging part."""
    return grade is not None and grade.promised(space.n_judge) <= space.max_drop


def finalists(space: Space, done: Done, most: int) -> list[Recipe]:
    """The recipes that hold the floor, are worth it, and are beaten by none of their engine; the best value first."""
    found = [(recipe, cost, grade) for recipe, cost, grade in measured(done) if holds(space, grade)]
    found = [entry for entry in found if value(space, entry[1]) <= GAIN_RATIO]
    kept = [
        entry
        for entry in found
        if not any(_beats(space, other, entry) for other in found if other[0].engine == entry[0].engine)
    ]
    kept.sort(key=lambda entry: (value(space, entry[1]), entry[2].drop, entry[0].n_steps, entry[0].digest))
    return [recipe for recipe, _, _ in kept[:most]]


def runners_up(space: Space, done: Done, front: Sequence[Recipe], most: int) -> list[Recipe]:
    """The next best that hold the floor, where the last judgement turns an engine's front down; models that differ.

    Args:
        space, done: of the search.
        front: what is judged in any case.
        most: recipes that may be judged for one engine, its part of the front among them.
    """
    known = {cost for recipe in front if (cost := done.cost(recipe)) is not None}
    found = []
    for recipe, cost, grade in measured(done):
        if holds(space, grade) and value(space, cost) <= GAIN_RATIO and cost not in known and recipe not in front:
            found.append((value(space, cost), grade.drop, recipe.n_steps, recipe.digest, recipe))
    n_left = {recipe.engine: most for *_, recipe in found}
    for recipe in front:
        n_left[recipe.engine] = n_left.get(recipe.engine, most) - 1
    kept = []
    for *_, recipe in sorted(found, key=lambda entry: entry[:4]):
        if n_left[recipe.engine] > 0:
            n_left[recipe.engine] -= 1
            kept.append(recipe)
    return kept


def better_than(space: Space, done: Done, recipe: Recipe, shipped: Collection[Recipe] = ()) -> Recipe | None:
    """The best of those that beat a recipe which holds the floor, one that is shipped before all others; or None."""
    entry = next((each for each in measured(done) if each[0] == recipe), None)
    if entry is None:
        return None
    return _first([each for each in _rivals(space, done, recipe) if _beats(space, each, entry)], space, shipped)


def cheaper_than(space: Space, done: Done, recipe: Recipe, shipped: Collection[Recipe] = ()) -> Recipe | None:
    """The best that holds the floor and on which a recipe that was only timed gains nothing; as `better_than`."""
    cost = done.cost(recipe)
    if cost is None:
        return None
    found = _rivals(space, done, recipe)
    found = [each for each in found if GAIN_RATIO * value(space, each[1]) < value(space, cost)]
    return _first(found, space, shipped)


def _rivals(space: Space, done: Done, recipe: Recipe) -> list[tuple[Recipe, Cost, Grade]]:
    """Those of the same engine that hold the floor."""
    return [each for each in measured(done) if holds(space, each[2]) and each[0].engine == recipe.engine]


def _first(rivals: Sequence[tuple[Recipe, Cost, Grade]], space: Space, shipped: Collection[Recipe]) -> Recipe | None:
    ranked = sorted(rivals, key=lambda each: (each[0] not in shipped, value(space, each[1]), each[0].digest))
    return ranked[0][0] if ranked else None


def measured(done: Done) -> list[tuple[Recipe, Cost, Grade]]:
    """What was graded and timed, and did not fail."""
    return [
        (recipe, cost, grade)
        for recipe, grade in done.grades.items()
        if grade is not None and (cost := done.cost(recipe)) is not None
    ]


def _beats(space: Space, one: tuple[Recipe, Cost, Grade], other: tuple[Recipe, Cost, Grade]) -> bool:
    """Whether one is as good in value and drop and better in one of them; of equals one stays."""
    mine = (value(space, one[1]), one[2].drop, one[0].n_steps, one[0].digest)
    theirs = (value(space, other[1]), other[2].drop, other[0].n_steps, other[0].digest)
    return mine[0] <= theirs[0] and mine[1] <= theirs[1] and mine < theirs
