"""Which operators behind a feature tensor only torch computes, read from the file's encoding: no weight is loaded."""

import mmap
from pathlib import Path
from typing import Any, Final

from hybrid.artifact.external_data import NotOnnx, View, fields
from hybrid.errors import ModelInvalid
from hybrid.federated.learning.operators.call import Step
from hybrid.federated.learning.operators.catalog import needs_torch
from hybrid.federated.learning.operators.windows import with_window

_GRAPH, _NODE, _WEIGHT = 7, 1, 5
_DIMENSION, _WEIGHT_NAME = 1, 8
_INPUT, _OUTPUT, _OP_TYPE, _ATTRIBUTE = 1, 2, 4, 5
_NAME, _INT, _INTS = 1, 3, 8
_BYTES: Final = 2


def torch_operators(path: Path, feature: str) -> tuple[str, ...]:
    """Their names, each once; empty where numpy is enough.

    Args:
        path: an ONNX model.
        feature: the tensor that what learns stands on.

    Raises:
        ModelInvalid: no ONNX model.
        OSError: it cannot be read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            steps = _steps(view)
    except (NotOnnx, ValueError) as exc:
        raise ModelInvalid(f"{path}: not an ONNX model ({exc})", path=str(path)) from exc
    reached, n_reached = {feature}, 0
    while n_reached != len(reached):
        n_reached = len(reached)
        reached.update(step.output for step in steps if not reached.isdisjoint(step.inputs))
    return tuple(sorted({step.op for step in steps if needs_torch(step) and not reached.isdisjoint(step.inputs)}))


def _steps(view: View) -> list[Step]:
    steps, sizes = [], {}
    for number, wire, low, high in fields(view, 0, len(view)):
        if number == _GRAPH and wire == _BYTES:
            for inner, kind, start, end in fields(view, low, high):
                if inner == _NODE and kind == _BYTES:
                    steps.append(_step(view, start, end))
                elif inner == _WEIGHT and kind == _BYTES:
                    name, shape = _weight(view, start, end)
                    sizes[name] = shape[2:]
    return [with_window(step, sizes) for step in steps]


def _weight(view: View, low: int, high: int) -> tuple[str, tuple[int, ...]]:
    """Its name and its shape."""
    name, shape = "", list[int]()
    for number, wire, start, end in fields(view, low, high):
        if number == _DIMENSION:
            shape += _packed(view, start, end) if wire == _BYTES else [start]
        elif number == _WEIGHT_NAME:
            name = view[start:end].decode()
    return name, tuple(shape)


def _step(view: View, low: int, high: int) -> Step:
    inputs, output, op, attributes = [], "", "", dict[str, Any]()
    for number, _, start, end in fields(view, low, high):
        if number == _INPUT:
            inputs.append(view[start:end].decode())
        elif number == _OUTPUT and not output:
            output = view[start:end].decode()
        elif number == _OP_TYPE:
            op = view[start:end].decode()
        elif number == _ATTRIBUTE:
            name, value = _attribute(view, start, end)
            if value is not None:
                attributes[name] = value
    return Step(op=op, name=output, inputs=tuple(inputs), output=output, attributes=attributes)


def _attribute(view: View, low: int, high: int) -> tuple[str, int | list[int] | None]:
    """Its name, and its value where that is of whole numbers."""
    name, value, several = "", None, list[int]()
    for number, wire, start, end in fields(view, low, high):
        if number == _NAME:
            name = view[start:end].decode()
        elif number == _INT:
            value = start
        elif number == _INTS:
            several += _packed(view, start, end) if wire == _BYTES else [start]
    return name, several or value


def _packed(view: View, low: int, high: int) -> list[int]:
    found, value, shift = [], 0, 0
    for byte in view[low:high]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(value)
            value = shift = 0
    return found
