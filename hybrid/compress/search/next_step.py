"""Which candidate to try next, given what the ones before have shown: no clock, no file, no chance.

Design: a list of stages, each of which reads all that is known and names its next step, or none when it is done. So a
search that was interrupted goes on by itself: the journal gives the results back, and the same stages name the rest.
Time comes first: what a candidate takes does not depend on what its weights are trained to, so a pruned model is timed
before it is trained, and only one that would win is trained. Ratios of pruning have a room of their own, `ratios`.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from hybrid.compress.grading import Grade
from hybrid.compress.making.recipe import Precision, Ranges, Recipe
from hybrid.compress.search.ratios import N_RATIOS, largest_ratios
from hybrid.compress.search.standing import GAIN_RATIO, Done, Space, finalists, holds, value
from hybrid.compress.search.step import Step

FEWEST_FLOAT: Final = 1
MOST_FLOAT: Final = 16
RANGES: Final[tuple[Ranges, ...]] = ("minmax", "percentile", "entropy")
SMOOTHING: Final = 0.5


def next_step(space: Space, done: Done) -> Step | None:
    """The next thing to do; None when nothing that could win is left."""
    stages: tuple[Callable[[Space, Done], Step | None], ...] = (
        _pairs, _int8, _fallback, _weights_only, _smoothing, _trained, _pruned, _other_int8, _student, _lite,
    )  # fmt: skip
    return next((step for stage in stages if (step := stage(space, done)) is not None), None)


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


def _in_ranges(space: Space, done: Done) -> list[Recipe]:
    """The best pair with each way of finding ranges, its biases corrected, which was never worse where measured."""
    pair = best_pair(space, done)
    change = msgspec.structs.replace
    return [change(pair, ranges=ranges, bias_corrected=True) for ranges in RANGES] if pair is not None else []


def _repaired(base: Recipe) -> list[Recipe]:
    return [
        msgspec.structs.replace(base, bias_corrected=False),
        msgspec.structs.replace(base, equalized=True),
    ]


def _tries(space: Space, done: Done) -> list[Recipe]:
    """Untrained int8 of the whole model in the order in which it is tried, as far as that is known."""
    ranges = _in_ranges(space, done)
    best = _least(done, ranges)
    return [*ranges, *(_repaired(best) if best is not None else [])]


def best_int8(space: Space, done: Done) -> Recipe | None:
    """The untrained int8 of the whole model that loses least, with its repairs."""
    return _least(done, _tries(space, done))


def _first_int8(space: Space, done: Done) -> Recipe | None:
    """The first that held the floor, else the one that loses least; what comes later changes nothing about it."""
    held = (recipe for recipe in _tries(space, done) if holds(space, done.grades.get(recipe)))
    return next(held, None) or best_int8(space, done)


def _least(done: Done, recipes: Sequence[Recipe]) -> Recipe | None:
    known = [(grade.drop, at, recipe) for at, recipe in enumerate(recipes) if (grade := done.grades.get(recipe))]
    return min(known)[2] if known else None


def _int8(space: Space, done: Done) -> Step | None:
    """Ranges one after the other, then repairs of the best, until one holds the floor."""
    for recipe in _in_ranges(space, done):
        if (step := _wanted(done, recipe)) is not None:
            return step
        if holds(space, done.grades.get(recipe)):
            return None
    for recipe in _tries(space, done)[len(RANGES) :]:
        if (step := _wanted(done, recipe)) is not None:
            return step
        if holds(space, done.grades.get(recipe)):
            return None
    return None


def is_lossless(grade: Grade | None) -> bool:
    """Whether no answer was lost: nothing can lose less."""
    return grade is not None and not grade.n_lost


def _other_int8(space: Space, done: Done) -> Step | None:
    """The ranges and repairs that were left out; nothing loses less than what lost no answer."""
    first = _first_int8(space, done)
    if first is not None and is_lossless(done.grades.get(first)):
        return None
    return _wanted(done, *_in_ranges(space, done)) or _wanted(done, *_tries(space, done))


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


def _pruned(space: Space, done: Done) -> Step | None:
    return largest_ratios(space, done, _first_int8(space, done))


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
