"""The largest ratio of pruning whose model holds the floor, found by bisection: a way and a precision at a time.

Design: as in `search`, steps over what is known. A ratio is timed before anything is trained for it; one that would
not win is passed over towards larger ones; of the two precisions the second is tried only where it beats the first.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from hybrid.compress.grading import Grade
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.search.standing import GAIN_RATIO, Cost, Done, Space, holds, measured, value
from hybrid.compress.search.step import Step

N_RATIOS: Final = 16
"""Ratios of pruning are multiples of 1 / 16."""

HOPELESS: Final = 10.0
"""A short training that leaves more than so many floors, and more than a tenth, is not gone on with."""


def largest_ratios(space: Space, done: Done, int8: Recipe | None) -> Step | None:
    """The step that the search for the largest ratios under the floor wants next; None when all are known.

    Args:
        space, done: of the search.
        int8: in which types and ranges pruned models are quantized; None where int8 gains nothing for the whole model.
    """
    if space.prunings and space.multiple is None:
        return Step(kind="staircase")
    for way in space.prunings:
        if way.pruned in done.unprunable:
            continue
        forms = _forms(space, done, way, int8)
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


def _forms(space: Space, done: Done, way: Recipe, int8: Recipe | None) -> "list[_Form] | Step":
    """The precisions of a way of pruning, or the step that tells their order: the better one of half a model first.

    With few channels left int8 may gain nothing over float32, so that it is not taken for granted; and what is tried
    second is trained only where it would beat what the first has found.
    """
    in_float = _Form(way=way)
    if int8 is None:
        return [in_float]
    forms = [_Form(way=way, int8=int8), in_float]
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
        int8: how what is left is quantized; None for float32.
        rival: the other precision where that was tried before; this one is worth it where it is better at a ratio.
    """

    way: Recipe
    int8: Recipe | None = None
    rival: "_Form | None" = None

    def part(self, space: Space, ratio: float) -> Recipe:
        """The float32 model of a ratio, in widths that this precision's kernels like."""
        multiple = space.multiple if self.int8 is not None else space.float_multiple
        return msgspec.structs.replace(self.way, ratio=ratio, multiple=multiple or 1)

    def holds(self, recipe: Recipe) -> bool:
        """Whether a recipe is one of this bisection's."""
        same = (recipe.pruned, recipe.local) == (self.way.pruned, self.way.local)
        return same and (recipe.precision == "int8") == (self.int8 is not None)


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


def _recipes(space: Space, form: _Form, part: Recipe) -> list[Recipe]:
    """The recipes in which a pruned model is tried, all of the same time; its rounding is trained last."""
    if form.int8 is None:
        return [part]
    change = msgspec.structs.replace
    plain = change(
        form.int8,
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
    timed = _recipes(space, form, part)[0]
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
        for recipe in _recipes(space, form, msgspec.structs.replace(part, epochs=epochs)):
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
