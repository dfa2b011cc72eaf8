"""Where the rows go in operators that move elements without computing: other sizes, other axes, parts and copies."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Final

import numpy as np

from hybrid.graph.row_facts import Count, Fact, Fixed, Rows, Size, Step

_TO_THE_END: Final = 10**9
"""Where a slice that ends so far away takes everything: no tensor here has so many rows."""


def reshape(step: Step) -> list[Fact]:
    """To sizes that follow the number of rows."""
    rows = step.rows()
    target = step.numbers(1)
    if not target or not all(isinstance(size, Count) or (type(size) is int and size >= -1) for size in target):
        step.refuse("its sizes are not known before a run")
    sizes: list[Size] = []
    for axis, size in enumerate(target):
        if size == 0:
            if step.attribute("allowzero", 0) or axis >= len(rows.shape):
                step.refuse("it has no elements")
            size = rows.shape[axis]
        sizes.append(size)
    if any(size == 0 for size in sizes) or sum(size == -1 for size in sizes) > 1:
        step.refuse("it has no elements, or two sizes to be found")
    return [step.regrouped(rows, _filled(step, rows, sizes))]


def _filled(step: Step, rows: Rows, sizes: list[Size]) -> list[Size]:
    """The sizes with -1 as what the others leave."""
    if -1 not in sizes:
        return sizes
    others = [size for size in sizes if size != -1]
    n_others = _total(others)
    total = _total(rows.shape)
    try:
        left = total // n_others
    except (TypeError, ZeroDivisionError):
        step.refuse("its sizes do not divide for every number of rows")
    return [left if size == -1 else size for size in sizes]


def _total(sizes: Sequence[Size]) -> Any:
    found: Any = prod(size for size in sizes if not isinstance(size, Count))
    for size in sizes:
        if isinstance(size, Count):
            found = size * found  # raises where there are two
    return found


def flatten(step: Step) -> list[Fact]:
    """To two axes."""
    rows = step.rows()
    rank = len(rows.shape)
    axis = step.attribute("axis", 1)
    if not -rank <= axis <= rank:
        step.refuse(f"axis {axis} of {rank}")
    at = axis + rank if axis < 0 else axis
    return [step.regrouped(rows, [_total(rows.shape[:at]), _total(rows.shape[at:])])]


def unsqueeze(step: Step) -> list[Fact]:
    """More axes of size 1."""
    rows = step.rows()
    found = step.attribute("axes")
    given = step.numbers(1) if found is None else found
    rank = len(rows.shape) + len(given)
    added = set(step.axes(given, rank))
    if len(added) != len(given):
        step.refuse("an axis twice")
    kept = iter(rows.shape)
    return [step.regrouped(rows, [1 if axis in added else next(kept) for axis in range(rank)])]


def squeeze(step: Step) -> list[Fact]:
    """Fewer axes of size 1; which, must be named: with one row theirs has size 1 too."""
    rows = step.rows()
    found = step.attribute("axes")
    axes = set(step.axes(step.numbers(1) if found is None else found, len(rows.shape)))
    if not axes or any(rows.shape[axis] != 1 for axis in axes):
        step.refuse("it does not name axes of size 1")
    return [step.regrouped(rows, [size for axis, size in enumerate(rows.shape) if axis not in axes])]


def transpose(step: Step) -> list[Fact]:
    """The axes in another order."""
    rows = step.rows()
    rank = len(rows.shape)
    order = step.axes(step.attribute("perm", range(rank - 1, -1, -1)), rank)
    if sorted(order) != list(range(rank)):
        step.refuse("its order of axes is none")
    return [Rows(tuple(rows.shape[axis] for axis in order))]


def concat(step: Step) -> list[Fact]:
    """Side by side, each row with its own."""
    first = step.rows(0)
    for index in range(1, len(step.inputs)):
        other = step.rows(index)
        if (other.axis, other.count, len(other.shape)) != (first.axis, first.count, len(first.shape)):
            step.refuse(f"input {index} has its rows at another place")
    if step.axis(0, len(first.shape)) == first.axis:
        step.refuse("it puts rows behind one another")
    return [step.along(first.axis, first.count)]


def split(step: Step) -> list[Fact]:
    """Parts along another axis than the rows'."""
    rows = step.rows()
    if step.axis(0, len(rows.shape)) == rows.axis:
        step.refuse("it takes the rows apart")
    step.need_fixed(1)
    return [step.along(rows.axis, rows.count, index) for index in range(len(step.outputs))]


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
        is_all = start == 0 and by == 1 and type(end) is int and end >= _TO_THE_END * rows.count.k
        if axis == rows.axis and not is_all:
            step.refuse("it takes a part of the rows")
    return [step.along(rows.axis, rows.count)]


def gather(step: Step) -> list[Fact]:
    """By places that are the same for all rows along another axis, or by each row's own in a table for all."""
    data, places = step.given(0), step.given(1)
    if isinstance(data, Rows):
        axis = step.axis(0, len(data.shape))
        if axis == data.axis:
            step.refuse("it takes rows by their number")
        step.need_fixed(1)
        if not isinstance(places, Fixed) or places.shape is None:
            step.refuse("the size of its places is not known before a run")
        return [step.along(data.axis + (len(places.shape) - 1) * (axis < data.axis), data.count)]
    step.need_fixed(0)
    if not isinstance(data, Fixed) or data.shape is None:
        step.refuse("the size of its table is not known before a run")
    rows = step.rows(1)
    return [step.along(step.axis(0, len(data.shape)) + rows.axis, rows.count)]


def gather_elements(step: Step) -> list[Fact]:
    """By each row's own places within itself."""
    data, places = step.rows(0), step.rows(1)
    if (data.axis, data.count) != (places.axis, places.count) or step.axis(0, len(data.shape)) == data.axis:
        step.refuse("it takes elements of other rows")
    return [step.along(places.axis, places.count)]


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
    return [step.along(rows.axis, rows.count)]


def resize(step: Step) -> list[Fact]:
    """Larger or smaller along other axes than the rows'."""
    rows = step.rows()
    if step.attribute("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        step.refuse("it crops by a region")
    if step.attribute("keep_aspect_ratio_policy", b"stretch") != b"stretch" or step.attribute("antialias", 0):
        step.refuse("its scales follow from one another")
    axes = step.axes(step.attribute("axes") or range(len(rows.shape)), len(rows.shape))
    if rows.axis in axes:
        place = axes.index(rows.axis)
        sizes: list[Any] = step.numbers(3) if step.version > 10 else []
        scales = step.attribute("scales") or step.numbers(2 if step.version > 10 else 1)
        if len(scales or sizes) != len(axes):
            step.refuse("its scales are not known before a run")
        if (scales[place] != 1.0) if scales else (sizes[place] != rows.count):
            step.refuse("it changes the number of rows")
        if sizes and len(axes) == len(rows.shape):
            return _made(step, [sizes[axes.index(axis)] for axis in range(len(axes))])
    return [step.along(rows.axis, rows.count)]


def expand(step: Step) -> list[Fact]:
    """Copies along other axes than the rows'; or the same for as many rows as there are."""
    source = _copied(step)
    target = step.numbers(1)
    shape: tuple[Size, ...] | None = source.shape if source is not None else None
    if shape is None:
        step.refuse("its size is not known before a run")
    rank = max(len(shape), len(target))
    mine: list[Any] = [1] * (rank - len(shape)) + list(shape)
    wanted: list[Any] = [1] * (rank - len(target)) + target
    sizes: list[Size] = []
    for one, other in zip(mine, wanted, strict=True):
        if one not in (1, other) and other != 1:
            step.refuse("its sizes do not fit every number of rows")
        sizes.append(other if one == 1 else one)
    return _made(step, sizes)


def fill(step: Step) -> list[Fact]:
    """ConstantOfShape: the same for as many rows as there are."""
    value = step.attribute("value")
    number: Any = 0.0 if value is None else _scalar(value)
    return _made(step, step.numbers(0), number)


def tile(step: Step) -> list[Fact]:
    """Copies along other axes than the rows'; or the same for as many rows as there are."""
    source = _copied(step)
    repeats = step.numbers(1)
    shape: tuple[Size, ...] | None = source.shape if source is not None else None
    if shape is None or len(shape) != len(repeats):
        step.refuse("its size is not known before a run")
    for size, often in zip(shape, repeats, strict=True):
        if (isinstance(size, Count) and often != 1) or (isinstance(often, Count) and size != 1):
            step.refuse("it repeats the rows")
    return _made(step, [size * often for size, often in zip(shape, repeats, strict=True)])


def _copied(step: Step) -> Fact | None:
    """What is copied: rows, or what does not follow their number, since copies are made without their values."""
    source = step.given(0)
    if not isinstance(source, Rows):
        step.need_fixed(0)
    return source


def _made(step: Step, sizes: Sequence[Any], number: Any = None) -> list[Fact]:
    """What has these sizes: rows where one of them follows their number."""
    n_counts = sum(isinstance(size, Count) for size in sizes)
    if n_counts > 1 or not all(isinstance(size, Count) or (type(size) is int and size >= 0) for size in sizes):
        step.refuse("its sizes are not known before a run")
    if n_counts:
        return [Rows(tuple(sizes))]
    value = np.full(tuple(sizes), number, object) if number is not None and prod(sizes) <= 256 else None
    return [Fixed(tuple(sizes), value)]


def _scalar(value: Any) -> Any:
    from onnx import numpy_helper

    return numpy_helper.to_array(value).reshape(-1)[0].item()


def shape_of(step: Step) -> list[Fact]:
    """Shape: sizes, with the number of rows among them."""
    fact = step.given(0)
    if fact is None or fact.shape is None:
        step.refuse("a size is not known before a run")
    sizes = fact.shape[slice(step.attribute("start", 0), step.attribute("end"))]
    value = np.empty(len(sizes), object)
    value[:] = sizes
    return [Fixed(value.shape, value)]


def size_of(step: Step) -> list[Fact]:
    """Size: the number of elements."""
    fact = step.given(0)
    if fact is None or fact.shape is None:
        step.refuse("a size is not known before a run")
    value = np.empty((), object)
    value[()] = _total(fact.shape)
    return [Fixed((), value)]


def one_hot(step: Step) -> list[Fact]:
    """One more axis for each element."""
    rows = step.rows(0)
    step.need_fixed(1, 2)
    axis = step.axis(-1, len(rows.shape) + 1)
    return [step.along(rows.axis + (axis <= rows.axis), rows.count)]


def triangle(step: Step) -> list[Fact]:
    """Trilu: within matrices, of which the rows are no axis."""
    rows = step.rows()
    if rows.back < 3:
        step.refuse("the rows are an axis of its matrix")
    step.need_fixed(1)
    return [step.along(rows.axis, rows.count)]


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
            counts.add(fact.count)
    step.need_fixed(*(index for index, fact in enumerate(step.inputs) if not isinstance(fact, Rows)))
    (letter, *more) = letters
    fixed = [term for term, fact in zip(operands, step.inputs, strict=True) if not isinstance(fact, Rows)]
    if more or len(counts) > 1 or result.count(letter) != 1 or any(letter in term for term in fixed):
        step.refuse("its rows meet one another, or are summed over")
    return [step.along(result.index(letter), counts.pop())]


MAKERS: Final[dict[str, Callable[[Step], list[Fact]]]] = {
    "ConstantOfShape": fill, "Expand": expand, "Shape": shape_of, "Size": size_of, "Tile": tile,
}  # fmt: skip
"""Operators that make rows of what has none, or sizes of what has rows."""

MOVES: Final[dict[str, Callable[[Step], list[Fact]]]] = {
    **MAKERS, "Concat": concat, "Einsum": sums, "Flatten": flatten, "Gather": gather,
    "GatherElements": gather_elements, "OneHot": one_hot, "Pad": pad, "Reshape": reshape, "Resize": resize,
    "Slice": take_slice, "Split": split, "Squeeze": squeeze, "Transpose": transpose, "Trilu": triangle,
    "Unsqueeze": unsqueeze, "Upsample": resize,
}  # fmt: skip
