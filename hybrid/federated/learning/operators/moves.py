"""Operators that move elements, or tell shapes: nothing is computed."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybrid.federated.learning.operators.call import Call, Gradients, Pull, no_gradient


def reshape(call: Call) -> tuple[np.ndarray, Pull]:
    """A fixed first size of 1 is that of a model exported for one sample: here it means all of them."""
    x, wanted = call[0], [int(size) for size in call.numbers(1, "shape") or ()]
    if not call.attribute("allowzero", 0):
        wanted = [x.shape[at] if size == 0 else size for at, size in enumerate(wanted)]
    if wanted and wanted[0] == 1 and x.shape[0] != 1:
        wanted[0] = x.shape[0]
    return x.reshape(wanted), lambda g: (g.reshape(x.shape), None)


def flatten(call: Call) -> tuple[np.ndarray, Pull]:
    """Flatten."""
    x, axis = call[0], int(call.attribute("axis", 1))
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod(x.shape[:axis]))
    return x.reshape(rows, x.size // max(rows, 1)), lambda g: (g.reshape(x.shape),)


def squeeze(call: Call) -> tuple[np.ndarray, Pull]:
    """Squeeze."""
    x, axes = call[0], call.numbers(1, "axes")
    answer = np.squeeze(x, tuple(axes)) if axes is not None else np.squeeze(x)
    return answer, lambda g: (g.reshape(x.shape), None)


def unsqueeze(call: Call) -> tuple[np.ndarray, Pull]:
    """Unsqueeze."""
    x = call[0]
    return np.expand_dims(x, tuple(call.numbers(1, "axes") or ())), lambda g: (g.reshape(x.shape), None)


def transpose(call: Call) -> tuple[np.ndarray, Pull]:
    """Transpose."""
    x = call[0]
    order = call.attribute("perm") or list(range(x.ndim))[::-1]
    back = np.argsort(order)
    return x.transpose(order), lambda g: (g.transpose(back),)


def concat(call: Call) -> tuple[np.ndarray, Pull]:
    """Concat."""
    arrays = [call[at] for at in range(len(call.arrays))]
    axis = int(call.attribute("axis", 0))
    ends = np.cumsum([array.shape[axis] for array in arrays])[:-1]
    return np.concatenate(arrays, axis), lambda g: tuple(np.split(g, ends, axis))


def gather(call: Call) -> tuple[np.ndarray, Pull]:
    """Gather by constant indices, such as the first token."""
    x, indices, axis = call[0], call[1], int(call.attribute("axis", 0))

    def pull(g: np.ndarray) -> Gradients:
        found = np.zeros_like(x)
        place: list[Any] = [slice(None)] * x.ndim
        place[axis] = indices
        np.add.at(found, tuple(place), g)
        return found, None

    return np.take(x, indices, axis), pull


def cut_out(call: Call) -> tuple[np.ndarray, Pull]:
    """Slice."""
    x = call[0]
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes") or list(range(len(starts)))
    steps = call.numbers(4, "steps") or [1] * len(starts)
    place = _place(x, starts, ends, axes, steps)

    def pull(g: np.ndarray) -> Gradients:
        found = np.zeros_like(x)
        found[place] = g
        return (found,)

    return x[place], pull


def _place(x: np.ndarray, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]) -> Any:
    place: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        is_before = step < 0 and end < -size
        place[axis] = slice(start, None if is_before else end, step)
    return tuple(place)


def shape_of(call: Call) -> tuple[np.ndarray, Pull]:
    """Shape."""
    x = call[0]
    first, end = int(call.attribute("start", 0)), call.attribute("end")
    return np.array(x.shape[first : None if end is None else int(end)], np.int64), no_gradient


def constant(call: Call) -> tuple[np.ndarray, Pull]:
    """Constant."""
    for name, kind in (("value_float", np.float32), ("value_floats", np.float32),
                       ("value_int", np.int64), ("value_ints", np.int64)):  # fmt: skip
        found = call.attribute(name)
        if found is not None:
            return np.array(found, kind), no_gradient
    found = call.attribute("value")
    if not isinstance(found, np.ndarray):
        call.refuse("holds no number")
    return found, no_gradient
