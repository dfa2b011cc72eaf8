"""Which candidate to try next, given what the ones before have shown: no clock, no file, no chance.

Design: a list of stages, each of which reads all that is known and names its next step, or none when it is done. So a
search that was interrupted goes on by itself: the journal gives the results back, and the same stages name the rest.
Time comes first: what a candidate takes does not depend on what its weights are trained to, so a pruned model is timed
before it is trained, and only one that would win is trained. A ratio of pruning is found by bisection under the floor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import msgspec

from hybrid.compress.grading import Grade
from hybrid.compress.recipe import Precision, Ranges, Recipe
from hybrid.compress.standing import GAIN_RATIO, Cost, Done, Space, finalists, holds, measured, value

N_RATIOS: Final = 16
"""Ratios of pruning are multiples of 1 / 16."""

HOPELESS: Final = 10.0
"""A short training that leaves more than so many floors, and more than a tenth, is not gone on with."""

FEWEST_FLOAT: Final = 1
MOST_FLOAT: Final = 16
RANGES: Final[tuple[Ranges, ...]] = ("minmax", "percentile", "entropy")
SMOOTHING: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Time a candidate (whatever its weights), make it in full and grade it, or see how wide a pruned one's layers are.

    The fourth kind is about the device alone: its staircase is measured.
    """

    kind: Literal["time", "grade", "staircase", "widths"]
    recipe: Recipe = Recipe()


def next_step(space: Space, done: Done) -> Step | None:
    """The next thing to do; None when nothing that could win is left."""
    stages: tuple[Callable[[Space, Done], Step | None], ...] = (
        _pairs, _int8, _fallback, _weights_only, _smoothing, _trained, _ratios, _other_int8, _student, _lite,
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


def _ratios(space: Space, done: Done) -> Step | None:
    """Bisection, once a way of pruning and precision: the largest ratio whose model holds the floor."""
    if space.prunings and space.multiple is None:
        return Step(kind="staircase")
    for way in space.prunings:
        forms = _forms(space, done, way)
        if isinstance(forms, Step):
            return forms
        for form in forms:
            step = _bisected(space, done, form)
            if step is not None:
                return step
    return None


def _bisected(space: Space, done: Done, form: "_Form") -> Step | None:
    low, high = 0, N_RATIOS
    first: dict[str, int] = {}
    while high - low > 1:
        middle = (low + high) // 2
        found = _of_ratio(space, done, form, middle, first)
        if isinstance(found, Step):
            return found
        low, high = (middle, high) if found else (low, middle)
    return None


def _forms(space: Space, done: Done, way: Recipe) -> "list[_Form] | Step":
    """The precisions of a way of pruning, or the step that tells their order: the better one of half a model first.

    With few channels left int8 may gain nothing over float32, so that it is not taken for granted; and what is tried
    second is trained only where it would beat what the first has found.
    """
    forms = [_Form(way=way, is_int8=is_int8) for is_int8 in (True, False)]
    if _first_int8(space, done) is None:
        return forms[1:]
    values = []
    for form in forms:
        part = form.part(space, 1 / 2)
        if part not in done.widths:
            return Step(kind="widths", recipe=part)
        cost = _cost(space, done, form, part)
        if isinstance(cost, Step):
            return cost
        values.append(value(space, cost) if cost is not None else math.inf)
    first, second = forms if values[0] <= values[1] else forms[::-1]
    return [first, replace(second, rival=first)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """What one bisection is about: a way of pruning, and whether what is left is quantized.

    Attributes:
        way: of pruning.
        is_int8: whether what is left is quantized.
        rival: the other precision where that was tried before; this one is worth it where it is better at a ratio.
    """

    way: Recipe
    is_int8: bool
    rival: "_Form | None" = None

    def part(self, space: Space, ratio: float) -> Recipe:
        """The float32 model of a ratio, in widths that this precision's kernels like."""
        multiple = space.multiple if self.is_int8 else space.float_multiple
        return msgspec.structs.replace(self.way, ratio=ratio, multiple=multiple or 1)

    def holds(self, recipe: Recipe) -> bool:
        """Whether a recipe is one of this bisection's."""
        same = (recipe.pruned, recipe.local) == (self.way.pruned, self.way.local)
        return same and (recipe.precision == "int8") == self.is_int8


def _of_ratio(space: Space, done: Done, form: _Form, ratio: int, first: dict[str, int]) -> Step | bool:
    """Whether a ratio holds the floor, or the step that tells; one of the same widths as an earlier one is that one.

    Args:
        space, done: of the search.
        form: of pruning.
        ratio: in parts of `N_RATIOS`.
        first: the ratio that gave such widths first; added to.
    """
    part = form.part(space, ratio / N_RATIOS)
    if part not in done.widths:
        return Step(kind="widths", recipe=part)
    widths = done.widths[part]
    if widths == "":
        return True  # nothing is gone: it is the whole model
    if widths is not None:
        part = form.part(space, first.setdefault(widths, ratio) / N_RATIOS)
    return _ratio(space, done, form, part)


def _recipes(space: Space, done: Done, form: _Form, part: Recipe) -> list[Recipe]:
    """The recipes in which a pruned model is tried, all of the same time; its rounding is trained last."""
    base = _first_int8(space, done)
    if base is None or not form.is_int8:
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


def _cost(space: Space, done: Done, form: _Form, part: Recipe) -> Cost | Step | None:
    """What a form of a ratio takes, or the step that tells; None where it failed."""
    timed = _recipes(space, done, form, part)[0]
    return done.cost(timed) if timed.timed_as in done.costs else Step(kind="time", recipe=timed)


def _ratio(space: Space, done: Done, form: _Form, part: Recipe) -> Step | bool:
    """Whether this ratio holds the floor, or the step that tells; larger ratios are tried where it would not win."""
    cost = _cost(space, done, form, part)
    if not isinstance(cost, Cost):
        return cost or False
    if form.rival is not None:
        other = _cost(space, done, form.rival, form.rival.part(space, part.ratio))
        if isinstance(other, Step):
            return other
        if other is not None and value(space, cost) > GAIN_RATIO * value(space, other):
            return True
    rivals = [
        value(space, known)
        for recipe, known, grade in measured(done)
        if holds(space, grade) and not (form.holds(recipe) and recipe.ratio >= part.ratio)
    ]
    if value(space, cost) > GAIN_RATIO * min(rivals, default=1.0):
        return True
    return _floor(space, done, form, part)


def _floor(space: Space, done: Done, form: _Form, part: Recipe) -> Step | bool:
    """Whether a pruned model holds the floor: trained for a while, then, where there is hope, for longer."""
    for epochs in space.rungs if part.pruned == "module" else (0,):
        for recipe in _recipes(space, done, form, msgspec.structs.replace(part, epochs=epochs)):
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
