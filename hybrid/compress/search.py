"""Which candidate to try next, given what the ones before have shown: no clock, no file, no chance.

Design: a list of stages, each of which reads all that is known and names its next step, or none when it is done. So a
search that was interrupted goes on by itself: the journal gives the results back, and the same stages name the rest.
Time comes first: what a candidate takes does not depend on what its weights are trained to, so a pruned model is timed
before it is trained, and only one that would win is trained. A ratio of pruning is found by bisection under the floor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from hybrid.compress.grading import Grade
from hybrid.compress.job import Objective
from hybrid.compress.recipe import Engine, Precision, Ranges, Recipe

GAIN_RATIO: Final = 0.98
"""What takes more than this share of another one's cost is not worth trying."""

N_RATIOS: Final = 16
"""Ratios of pruning are multiples of 1 / 16."""

HOPELESS: Final = 10.0
"""A short training that leaves more than so many floors, and more than a tenth, is not gone on with."""

FEWEST_FLOAT: Final = 1
MOST_FLOAT: Final = 16
RANGES: Final[tuple[Ranges, ...]] = ("minmax", "percentile", "entropy")
SMOOTHING: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a candidate takes, as shares of what the original takes."""

    seconds: float
    bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Time a candidate (whatever its weights), make it in full and grade it, or measure the device's staircase."""

    kind: Literal["time", "grade", "staircase"]
    recipe: Recipe = Recipe()


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
        multiple: to which channel counts are rounded; None until the staircase is measured.
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
    rungs: Sequence[int] = ()
    trained_int8: Sequence[Literal["qat", "adaround"]] = ()
    has_student: bool = False
    engines: Sequence[Engine] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What is known: costs by `Recipe.timed_as`, grades by recipe; None for what failed."""

    costs: Mapping[Recipe, Cost | None] = field(default_factory=dict)
    grades: Mapping[Recipe, Grade | None] = field(default_factory=dict)

    def cost(self, recipe: Recipe) -> Cost | None:
        """Of a recipe that was timed and did not fail."""
        return self.costs.get(recipe.timed_as)


def next_step(space: Space, done: Done) -> Step | None:
    """The next thing to do; None when nothing that could win is left."""
    stages: tuple[Callable[[Space, Done], Step | None], ...] = (
        _pairs, _ranges, _repairs, _fallback, _weights_only, _smoothing, _trained, _ratios, _student, _lite,
    )  # fmt: skip
    return next((step for stage in stages if (step := stage(space, done)) is not None), None)


def value(space: Space, cost: Cost) -> float:
    """What is made small; joules go with the seconds of one device."""
    return cost.bytes if space.objective == "bytes" else cost.seconds


def holds(space: Space, grade: Grade | None) -> bool:
    """Whether a grade of the choosing part promises the floor on the judging part."""
    return grade is not None and grade.promised(space.n_judge) <= space.max_drop


def finalists(space: Space, done: Done, most: int) -> list[Recipe]:
    """The recipes that hold the floor, are worth it, and are beaten by none of their engine; the best value first."""
    found = [(recipe, cost, grade) for recipe, cost, grade in _graded(done) if holds(space, grade)]
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
    for recipe, cost, grade in _graded(done):
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


def better_than(space: Space, done: Done, recipe: Recipe) -> Recipe | None:
    """The best of those that beat a recipe which holds the floor; None where none does, or it was not graded."""
    entry = next((each for each in _graded(done) if each[0] == recipe), None)
    if entry is None:
        return None
    rivals = [
        each
        for each in _graded(done)
        if holds(space, each[2]) and each[0].engine == recipe.engine and _beats(space, each, entry)
    ]
    return min(rivals, key=lambda each: (value(space, each[1]), each[0].digest))[0] if rivals else None


def _graded(done: Done) -> list[tuple[Recipe, Cost, Grade]]:
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


def _wanted(done: Done, *recipes: Recipe) -> Step | None:
    """The first that is still to be timed, then the first that is still to be graded, of those that did not fail."""
    for recipe in recipes:
        if recipe.timed_as not in done.costs:
            return Step(kind="time", recipe=recipe)
    for recipe in recipes:
        if done.cost(recipe) is not None and recipe not in done.grades:
            return Step(kind="grade", recipe=recipe)
    return None


def _pairs(_space: Space, done: Done) -> Step | None:
    return next((Step(kind="time", recipe=pair) for pair in _space.pairs if pair.timed_as not in done.costs), None)


def best_pair(space: Space, done: Done) -> Recipe | None:
    """The type pair that is fastest on the device (the likelier one of equals), where int8 gains anything there."""
    timed = [(cost, pair) for pair in space.pairs if (cost := done.cost(pair)) is not None]
    timed = [(cost, pair) for cost, pair in timed if value(space, cost) <= GAIN_RATIO]
    least = min((cost.seconds for cost, _ in timed), default=0.0)
    return next((pair for cost, pair in timed if cost.seconds * GAIN_RATIO <= least), None)


def best_ranges(space: Space, done: Done) -> Recipe | None:
    """The best pair with the ranges that lose least."""
    pair = best_pair(space, done)
    if pair is None:
        return None
    tried = [msgspec.structs.replace(pair, ranges=ranges) for ranges in RANGES]
    return _least(done, tried)


def best_int8(space: Space, done: Done) -> Recipe | None:
    """The untrained int8 of the whole model that loses least, with its repairs."""
    base = best_ranges(space, done)
    return _least(done, [base, *_repaired(base)]) if base is not None else None


def _least(done: Done, recipes: Sequence[Recipe]) -> Recipe | None:
    known = [(grade.drop, at, recipe) for at, recipe in enumerate(recipes) if (grade := done.grades.get(recipe))]
    return min(known)[2] if known else None


def _ranges(space: Space, done: Done) -> Step | None:
    pair = best_pair(space, done)
    if pair is None:
        return None
    return _wanted(done, *(msgspec.structs.replace(pair, ranges=ranges) for ranges in RANGES))


def _repaired(base: Recipe) -> list[Recipe]:
    change = msgspec.structs.replace
    return [
        change(base, bias_corrected=True),
        change(base, equalized=True),
        change(base, equalized=True, bias_corrected=True),
    ]


def _repairs(space: Space, done: Done) -> Step | None:
    base = best_ranges(space, done)
    return _wanted(done, *_repaired(base)) if base is not None else None


def _fallback(space: Space, done: Done) -> Step | None:
    """The most sensitive operators back to float32, twice as many each time, until the floor holds."""
    base = best_int8(space, done)
    if base is None or holds(space, done.grades.get(base)):
        return None
    n_float = FEWEST_FLOAT
    while n_float <= MOST_FLOAT:
        recipe = msgspec.structs.replace(base, n_float=n_float)
        if (step := _wanted(done, recipe)) is not None:
            cost = done.cost(recipe)
            return None if cost is not None and value(space, cost) > GAIN_RATIO else step
        if done.cost(recipe) is None or holds(space, done.grades.get(recipe)):
            return None
        n_float *= 2
    return None


def _weights_only(space: Space, done: Done) -> Step | None:
    if not space.has_products and space.objective != "bytes":
        return None
    precisions: tuple[Precision, ...] = ("weights-16", "weights-8", "weights-4")
    return _worthwhile(space, done, [Recipe(precision=precision) for precision in precisions])


def _smoothing(space: Space, done: Done) -> Step | None:
    base = best_int8(space, done)
    if base is None or not space.has_products:
        return None
    return _worthwhile(space, done, [msgspec.structs.replace(base, smoothed=SMOOTHING)])


def _worthwhile(space: Space, done: Done, recipes: Sequence[Recipe]) -> Step | None:
    """Times each, and grades those that gain."""
    for recipe in recipes:
        if recipe.timed_as not in done.costs:
            return Step(kind="time", recipe=recipe)
        cost = done.cost(recipe)
        if cost is not None and value(space, cost) <= GAIN_RATIO and recipe not in done.grades:
            return Step(kind="grade", recipe=recipe)
    return None


def _trained(space: Space, done: Done) -> Step | None:
    """The rounding of the whole model is trained where int8 alone does not hold the floor."""
    base = best_int8(space, done)
    if base is None or holds(space, done.grades.get(base)) or not space.rungs:
        return None
    for way in space.trained_int8:
        recipe = msgspec.structs.replace(
            base, trained_int8=way, epochs=space.rungs[-1], equalized=False, bias_corrected=False
        )
        if (step := _wanted(done, recipe)) is not None:
            return step
        if holds(space, done.grades.get(recipe)):
            return None
    return None


def _ratios(space: Space, done: Done) -> Step | None:
    """Bisection, once a way of pruning: the largest ratio whose model holds the floor."""
    if space.prunings and space.multiple is None:
        return Step(kind="staircase")
    for way in space.prunings:
        low, high = 0, N_RATIOS
        while high - low > 1:
            middle = (low + high) // 2
            found = _ratio(space, done, msgspec.structs.replace(way, ratio=middle / N_RATIOS))
            if isinstance(found, Step):
                return found
            low, high = (middle, high) if found else (low, middle)
    return None


def pruned(space: Space, done: Done, part: Recipe) -> list[Recipe]:
    """The forms in which a pruned model is tried: int8 first where that gains, its rounding trained last."""
    part = msgspec.structs.replace(part, multiple=space.multiple or 1)
    base = best_int8(space, done)
    if base is None:
        return [part]
    change = msgspec.structs.replace
    plain = change(
        base,
        pruned=part.pruned,
        ratio=part.ratio,
        multiple=part.multiple,
        local=part.local,
        epochs=part.epochs,
        equalized=False,
        smoothed=None,
    )
    ways = space.trained_int8 if part.epochs and part.epochs == space.rungs[-1] else ()
    return [plain, *(change(plain, trained_int8=way, bias_corrected=False) for way in ways)]


def _ratio(space: Space, done: Done, part: Recipe) -> Step | bool:
    """Whether this ratio holds the floor, or the step that tells; larger ratios are tried where it would not win."""
    fastest = pruned(space, done, part)[0]
    if fastest.timed_as not in done.costs:
        return Step(kind="time", recipe=fastest)
    cost = done.cost(fastest)
    if cost is None:
        return False
    rivals = [
        value(space, other)
        for recipe, other, grade in _graded(done)
        if holds(space, grade) and not (_is_of(recipe, part) and recipe.ratio >= part.ratio)
    ]
    if value(space, cost) > GAIN_RATIO * min(rivals, default=1.0):
        return True
    return _floor(space, done, part)


def _is_of(recipe: Recipe, way: Recipe) -> bool:
    return (recipe.pruned, recipe.local) == (way.pruned, way.local)


def _floor(space: Space, done: Done, part: Recipe) -> Step | bool:
    """Whether a pruned model holds the floor: trained for a while, then, where there is hope, for longer."""
    for epochs in space.rungs if part.pruned == "module" else (0,):
        for recipe in pruned(space, done, msgspec.structs.replace(part, epochs=epochs)):
            if recipe not in done.grades:
                return Step(kind="grade", recipe=recipe)
            grade = done.grades[recipe]
            if holds(space, grade):
                return True
            if grade is None or (not recipe.trained_int8 and _is_hopeless(space, grade)):
                return False
    return False


def _is_hopeless(space: Space, grade: Grade) -> bool:
    return grade.drop > max(HOPELESS * space.max_drop, 0.1)


def _student(space: Space, done: Done) -> Step | None:
    if not space.has_student or not space.rungs:
        return None
    base = best_int8(space, done)
    plain = Recipe(source="student", epochs=space.rungs[-1])
    if base is None:
        return _worthwhile(space, done, [plain])
    int8 = msgspec.structs.replace(base, source="student", epochs=plain.epochs, equalized=False, smoothed=None)
    return _worthwhile(space, done, [int8, plain])


def _lite(space: Space, done: Done) -> Step | None:
    """Other engines get the whole model and the best pruned one, in int8 and with small weights alone."""
    if not space.engines:
        return None
    found = [recipe for recipe in finalists(space, done, N_RATIOS) if recipe.engine == "onnxruntime"]
    parts = dict.fromkeys([Recipe(), *(recipe.float_part for recipe in found[:1])])
    precisions: tuple[Precision, ...] = ("int8", "weights-8")
    change = msgspec.structs.replace
    recipes = [
        change(part, engine=engine, precision=precision)
        for engine in space.engines
        for part in parts
        for precision in precisions
    ]
    return _worthwhile(space, done, recipes)
