"""Arithmetic on sizes: what exporters compute from `Shape`, with the number of rows as a symbol.

Design: elements are Python numbers and `Count`s in object arrays, so that numpy does the indexing; what has no exact
answer for every number of rows raises TypeError, and the caller refuses it.
"""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from onnx import TensorProto

from hybrid.graph.row_facts import Count, Fixed, Step

_WHOLE: Final = frozenset({
    TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.UINT16,
    TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip
_BROKEN: Final = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE})
MAX_ELEMENTS: Final = 256
"""Of a tensor whose elements are looked at."""


def elements(array: np.ndarray) -> np.ndarray | None:
    """The elements as Python numbers; None for many, or for what is no number."""
    return array.astype(object) if array.size <= MAX_ELEMENTS and array.dtype.kind in "iufb" else None


def fold(step: Step) -> list[Fixed]:
    """The outputs of a node none of whose inputs has rows."""
    given = [fact for fact in step.inputs if isinstance(fact, Fixed)]
    evaluate = _EVALUATED.get(step.op)
    if evaluate is not None and len(given) == len(step.inputs):
        values = [fact.value for fact in given]
        if all(value is not None for value in values):
            try:
                found = np.asarray(evaluate(step, *values), object)
            except (TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError):
                pass
            else:
                if found.size <= MAX_ELEMENTS:
                    return [Fixed(found.shape, found)]
    if any(fact.counts_rows for fact in given):
        step.refuse("it computes with the number of rows")
    return [Fixed(step.sized(index)) for index in range(len(step.outputs))]


def _each(rule: Callable[..., Any]) -> Callable[..., np.ndarray]:
    spread = np.frompyfunc(rule, rule.__code__.co_argcount, 1)
    return lambda _, *values: spread(*values)


def _add(a: Any, b: Any) -> Any:
    if isinstance(a, Count) or isinstance(b, Count):
        if a == 0 or b == 0:
            return b if a == 0 else a
        raise TypeError("rows and a number more")
    return a + b


def _subtract(a: Any, b: Any) -> Any:
    return _add(a, 0 if b == 0 else -b)


def _divide(a: Any, b: Any) -> Any:
    if isinstance(a, Count):
        return a // b
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if a < 0 or b <= 0:
        raise ValueError("signs whose rounding differs")
    return a // b


def _equal(a: Any, b: Any) -> bool:
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Count) and not isinstance(other, Count) and other > 0:
            raise TypeError("equal for one number of rows, not for another")
    return bool(a == b)


def _cast(step: Step, value: np.ndarray) -> np.ndarray:
    to = step.attribute("to")
    if to in _WHOLE:
        return np.frompyfunc(lambda item: item if isinstance(item, Count) else int(item), 1, 1)(value)  # type: ignore[no-any-return]
    if to in _BROKEN:
        return np.frompyfunc(float, 1, 1)(value)  # type: ignore[no-any-return]
    raise TypeError("a type that sizes do not have")


def _unsqueezed(step: Step, value: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    found = step.attribute("axes") if axes is None else [int(axis) for axis in axes.flat]
    return np.expand_dims(value, tuple(found))


def _squeezed(step: Step, value: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    found = step.attribute("axes") if axes is None else [int(axis) for axis in axes.flat]
    return np.squeeze(value, None if found is None else tuple(found))


def _sliced(_: Step, value: np.ndarray, *given: np.ndarray) -> np.ndarray:
    starts, ends = ([int(item) for item in array.flat] for array in given[:2])
    axes = [int(item) for item in given[2].flat] if len(given) > 2 else list(range(len(starts)))
    steps = [int(item) for item in given[3].flat] if len(given) > 3 else [1] * len(starts)
    index = [slice(None)] * value.ndim
    for axis, start, end, by in zip(axes, starts, ends, steps, strict=True):
        if by < 1:
            raise ValueError("backwards")
        index[axis] = slice(start, end, by)
    return value[tuple(index)]


def _sliced_before_10(step: Step, value: np.ndarray) -> np.ndarray:
    starts = step.attribute("starts")
    given = [np.array(found) for found in (starts, step.attribute("ends"), step.attribute("axes", range(len(starts))))]
    return _sliced(step, value, *given)


def _gathered(step: Step, value: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return np.take(value, indices.astype(np.int64), axis=step.attribute("axis", 0))


def _reshaped(step: Step, value: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    if step.attribute("allowzero", 0) or 0 in sizes:
        raise ValueError("sizes that are copied")
    return value.reshape([int(size) for size in sizes.flat])


_EVALUATED: Final[dict[str, Callable[..., Any]]] = {
    "Add": _each(_add),
    "Cast": _cast,
    "Concat": lambda step, *values: np.concatenate(values, axis=step.attribute("axis")),
    "Div": _each(_divide),
    "Equal": _each(_equal),
    "Gather": _gathered,
    "Identity": lambda _, value: value,
    "Mul": _each(lambda a, b: a * b),
    "Neg": _each(lambda a: -a),
    "Reshape": _reshaped,
    "Slice": lambda step, *values: _sliced(step, *values) if len(values) > 1 else _sliced_before_10(step, *values),
    "Squeeze": _squeezed,
    "Sub": _each(_subtract),
    "Unsqueeze": _unsqueezed,
    "Where": lambda _, which, a, b: np.where(which.astype(bool), a, b),
}
