"""Where the rows go in operators that move elements without computing: other sizes, other axes, parts of them."""

from collections.abc import Callable
from math import prod
from typing import Final

from hybrid.graph.row_facts import Fact, Fixed, Rows, Step

_TO_THE_END: Final = 10**9
"""Where a slice that ends so far away takes everything: no tensor here has so many rows."""


def reshape(step: Step) -> list[Fact]:
    """To a stored size that keeps the axes up to the rows', or whose first is what the others leave."""
    rows = step.rows()
    target = step.numbers(1) if step.version >= 5 else []
    if not target or step.attribute("allowzero", 0) or any(type(size) is not int or size < -1 for size in target):
        step.refuse("its sizes are not stored in the graph")
    if target[: rows.axis + 1] == [0] * (rows.axis + 1):
        return [step.along(rows.axis, rows.k)]
    if rows.axis != 0 or target[0] != -1 or min(target[1:], default=1) < 1:
        step.refuse(f"its sizes {target} do not keep the rows in front")
    block, others = rows.k * rows.behind, prod(target[1:])
    if block % others:
        step.refuse(f"a row of {block} elements is not divided into {others}")
    return [step.along(0, block // others)]


def flatten(step: Step) -> list[Fact]:
    """To two axes, the rows in front."""
    rows = step.rows()
    axis = step.attribute("axis", 1)
    axis = axis + rows.rank if axis < 0 else axis
    if rows.axis != 0 or not 1 <= axis <= rows.rank:
        step.refuse("its rows are not in front")
    return [step.along(0, rows.k * prod(rows.shape[1:axis]))]


def unsqueeze(step: Step) -> list[Fact]:
    """More axes of size 1."""
    rows = step.rows()
    found = step.attribute("axes")
    given = step.numbers(1) if found is None else found
    added = set(step.axes(given, rows.rank + len(given)))
    if not added or len(added) != len(given):
        step.refuse("it does not name its axes, each once")
    kept = [axis for axis in range(rows.rank + len(given)) if axis not in added]
    return [step.along(kept[rows.axis], rows.k)]


def squeeze(step: Step) -> list[Fact]:
    """Fewer axes of size 1; which, must be named: with one row theirs has size 1 too."""
    rows = step.rows()
    found = step.attribute("axes")
    axes = set(step.axes(step.numbers(1) if found is None else found, rows.rank))
    if not axes or rows.axis in axes:
        step.refuse("it does not name axes, or names the rows'")
    return [step.along(rows.axis - sum(axis < rows.axis for axis in axes), rows.k)]


def transpose(step: Step) -> list[Fact]:
    """The axes in another order."""
    rows = step.rows()
    order = step.axes(step.attribute("perm", list(range(rows.rank))[::-1]), rows.rank)
    if sorted(order) != list(range(rows.rank)):
        step.refuse("its order of axes is none")
    return [step.along(order.index(rows.axis), rows.k)]


def concat(step: Step) -> list[Fact]:
    """Side by side, each row with its own."""
    first = step.rows(0)
    for index in range(1, len(step.inputs)):
        other = step.rows(index)
        if (other.axis, other.k, len(other.shape)) != (first.axis, first.k, len(first.shape)):
            step.refuse(f"input {index} has its rows at another place")
    if step.axis(0, len(first.shape)) == first.axis:
        step.refuse("it puts rows behind one another")
    return [step.along(first.axis, first.k)]


def split(step: Step) -> list[Fact]:
    """Parts along another axis than the rows'."""
    rows = step.rows()
    if step.axis(0, len(rows.shape)) == rows.axis:
        step.refuse("it takes the rows apart")
    step.need_fixed(1)
    return [step.along(rows.axis, rows.k, index) for index in range(len(step.outputs))]


def take_slice(step: Step) -> list[Fact]:
    """A part along other axes than the rows', or all of them."""
    rows = step.rows()
    rank = len(rows.shape)
    if step.version < 10:
        starts, ends = step.attribute("starts"), step.attribute("ends")
        axes, steps = step.attribute("axes", range(len(starts))), [1] * len(starts)
    else:
        starts, ends = step.numbers(1), step.numbers(2)
        axes = step.numbers(3) or range(len(starts))
        steps = step.numbers(4) or [1] * len(starts)
    for axis, start, end, by in zip(step.axes(axes, rank), starts, ends, steps, strict=True):
        is_all = start == 0 and by == 1 and type(end) is int and end >= _TO_THE_END * rows.k
        if axis == rows.axis and not is_all:
            step.refuse("it takes a part of the rows")
    return [step.along(rows.axis, rows.k)]


def gather(step: Step) -> list[Fact]:
    """By places that are the same for all rows along another axis, or by each row's own in a table for all."""
    data, places = step.given(0), step.given(1)
    if isinstance(data, Rows):
        axis = step.axis(0, len(data.shape))
        if axis == data.axis:
            step.refuse("it takes rows by their number")
        step.need_fixed(1)
        if not isinstance(places, Fixed):
            step.refuse("it has no places")
        return [step.along(data.axis + (len(places.shape) - 1) * (axis < data.axis), data.k)]
    step.need_fixed(0)
    if not isinstance(data, Fixed):
        step.refuse("it has no table")
    rows = step.rows(1)
    return [step.along(step.axis(0, len(data.shape)) + rows.axis, rows.k)]


def gather_elements(step: Step) -> list[Fact]:
    """By each row's own places within itself."""
    data, places = step.rows(0), step.rows(1)
    if (data.axis, data.k) != (places.axis, places.k) or step.axis(0, len(data.shape)) == data.axis:
        step.refuse("it takes elements of other rows")
    return [step.along(places.axis, places.k)]


def pad(step: Step) -> list[Fact]:
    """More elements along other axes than the rows'."""
    rows = step.rows()
    rank = len(rows.shape)
    if step.version < 11:
        pads, axes = step.attribute("pads", ()), list(range(rank))
    else:
        pads, axes = step.numbers(1), step.axes(step.numbers(3) or range(rank), rank)
    step.need_fixed(2)
    if len(pads) != 2 * len(axes) or any(axis == rows.axis and pads[i] for i, axis in enumerate([*axes, *axes])):
        step.refuse("it puts something before or behind the rows")
    return [step.along(rows.axis, rows.k)]


def resize(step: Step) -> list[Fact]:
    """Larger or smaller along other axes than the rows'."""
    rows = step.rows()
    if step.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        step.refuse("it crops by a region")
    if step.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch" or step.attribute("antialias", 0):
        step.refuse("its scales follow from one another")
    axes = step.axes(step.attribute("axes") or list(range(rows.rank)), rows.rank)
    if rows.axis in axes:
        place = axes.index(rows.axis)
        scales = step.attribute("scales") or step.numbers(2 if step.version > 10 else 1)
        if len(scales) != len(axes) or scales[place] != 1.0:
            step.refuse("it may change the number of rows")
    return [step.along(rows.axis, rows.k)]


def triangle(step: Step) -> list[Fact]:
    """Trilu: within matrices, of which the rows are no axis."""
    rows = step.rows()
    if rows.back < 3:
        step.refuse("the rows are an axis of its matrix")
    step.need_fixed(1)
    return [step.along(rows.axis, rows.k)]


def sums(step: Step) -> list[Fact]:
    """Einsum: the rows have one letter everywhere, which is in the result."""
    equation = step.attribute("equation", b"").decode().replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    if not arrow or "." in equation or len(operands) != len(step.inputs):
        step.refuse("its equation is not written out")
    letters, counts = set(), set()
    for operand, fact in zip(operands, step.inputs, strict=True):
        if isinstance(fact, Rows):
            if len(operand) != len(fact.shape) or len(set(operand)) != len(operand):
                step.refuse("its equation does not fit its inputs")
            letters.add(operand[fact.axis])
            counts.add(fact.k)
    step.need_fixed(*(index for index, fact in enumerate(step.inputs) if not isinstance(fact, Rows)))
    (letter, *more) = letters
    fixed = [term for term, fact in zip(operands, step.inputs, strict=True) if not isinstance(fact, Rows)]
    if more or len(counts) > 1 or result.count(letter) != 1 or any(letter in term for term in fixed):
        step.refuse("its rows meet one another, or are summed over")
    return [step.along(result.index(letter), counts.pop())]


MOVES: Final[dict[str, Callable[[Step], list[Fact]]]] = {
    "Concat": concat, "Einsum": sums, "Flatten": flatten, "Gather": gather, "GatherElements": gather_elements,
    "Pad": pad, "Reshape": reshape, "Resize": resize, "Slice": take_slice, "Split": split, "Squeeze": squeeze,
    "Transpose": transpose, "Trilu": triangle, "Unsqueeze": unsqueeze, "Upsample": resize,
}  # fmt: skip
