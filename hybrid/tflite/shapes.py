"""Shapes of every tensor at given input shapes: asked of the engine, which runs the model on two made-up requests."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from devices.errors import DeviceError
from devices.tflite_engine import interpreter_module
from hybrid.errors import ModelInvalid, ModelUnsupported, TensorMismatch
from hybrid.graph.shape_key import ShapeKey
from hybrid.tflite.model_file import Model
from hybrid.tflite.names import names_of
from hybrid.tflite.operators import SHAPED_BY, is_random, is_stateful, op_name

Shapes = dict[int, tuple[int, ...]]

_DATA_SIZED: Final = frozenset({"WHERE", "UNIQUE"})
"""Operators that make as much as the values of their inputs ask for."""


def measured(data: bytes, graph: Any, shape_key: ShapeKey, shown: str) -> tuple[Shapes, Shapes]:
    """Shapes of all tensors after a run on one made-up request, and after one on another.

    Raises:
        TensorMismatch: the shape key does not fit the model's inputs.
        ModelInvalid, ModelUnsupported: the engine does not open the file.
    """
    names = names_of(graph)
    shapes = dict(shape_key.shapes)
    wanted = {names[int(index)] for index in graph.inputs}
    if wanted != set(shapes):
        raise TensorMismatch(
            f"the shape key names the inputs {sorted(shapes)}, the model wants {sorted(wanted)}; feed exactly these"
        )
    try:
        module = interpreter_module(shown)
    except DeviceError as exc:
        raise ModelUnsupported(str(exc), path=shown) from exc
    for index in map(int, graph.inputs):
        _check(graph.tensors[index], names[index], shapes[names[index]])
    wanted_shapes = {int(index): shapes[names[int(index)]] for index in graph.inputs}
    kinds = module.OpResolverType
    try:
        # A delegate hides what it takes over.
        interpreter = _allocated(module, data, kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES, wanted_shapes)
    except (RuntimeError, ValueError) as exc:
        # Some custom operators only XNNPACK has; behind it tensors keep the shapes of the file, good where those fit.
        said = " ".join(str(exc).split())[:400]
        if "custom op" not in said or any(_declared(graph.tensors[i]) != shape for i, shape in wanted_shapes.items()):
            raise ModelInvalid(f"{shown}: the engine refuses it at {shape_key.text}: {said}", path=shown) from exc
        try:
            interpreter = _allocated(module, data, kinds.AUTO, wanted_shapes)
        except (RuntimeError, ValueError):
            raise ModelUnsupported(f"{shown}: the engine has no such operator: {said}", path=shown) from exc
    return _shapes_after(interpreter, 0), _shapes_after(interpreter, 1)


def _allocated(module: Any, data: bytes, kind: Any, shapes: Mapping[int, tuple[int, ...]]) -> Any:
    interpreter = module.Interpreter(model_content=data, experimental_op_resolver_type=kind)
    for index, shape in shapes.items():
        interpreter.resize_tensor_input(index, shape)
    interpreter.allocate_tensors()
    return interpreter


def _declared(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(map(int, tensor.shape))


def _check(tensor: Any, name: str, shape: tuple[int, ...]) -> None:
    signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    declared = [int(size) for size in signature] if signature is not None else []
    if len(declared) != len(shape) or any(a not in (-1, b) for a, b in zip(declared, shape, strict=True)):
        raise TensorMismatch(f"input {name!r} has shape {list(shape)}; the model wants {declared}")


def _shapes_after(interpreter: Any, seed: int) -> Shapes:
    random = np.random.default_rng(seed)
    for found in interpreter.get_input_details():
        kind, shape = np.dtype(found["dtype"]), tuple(found["shape"])
        if kind.kind == "f":
            interpreter.set_tensor(found["index"], random.standard_normal(shape).astype(kind))
        elif kind.kind in "iu" and kind.itemsize == 1:
            interpreter.set_tensor(found["index"], random.integers(0, 127, shape).astype(kind))
        elif kind.kind in "iub":
            interpreter.set_tensor(found["index"], np.full(shape, seed, kind))  # an index, a length, a mask
    try:
        interpreter.invoke()
    except (RuntimeError, ValueError):
        pass  # made-up values are no input of this model: what allocating told stands
    return {int(found["index"]): tuple(map(int, found["shape"])) for found in interpreter.get_tensor_details()}


def open_sized(model: Model, shapes: tuple[Shapes, Shapes]) -> frozenset[int]:
    """Tensors whose shape the values of a request may decide, so that nobody knows it before a run."""
    graph = model.subgraphs[0]
    first, second = shapes
    made = {int(index) for operator in graph.operators for index in operator.outputs}
    given = set(map(int, graph.inputs))
    told = {index for index in range(len(graph.tensors)) if index not in made and index not in given}
    unsized = {index for index in made if first.get(index) != second.get(index)}
    for operator in graph.operators:
        name = op_name(model, operator)
        reads = [int(index) for index in operator.inputs if index >= 0]
        makes = [int(index) for index in operator.outputs]
        places = SHAPED_BY.get(name, ())
        deciding = [int(operator.inputs[at]) for at in places if at < len(operator.inputs)]
        if name in ("SHAPE", "RANK") or (
            all(index in told for index in reads)
            and not is_stateful(model, graph, operator)
            and not is_random(model, operator)
        ):
            told.update(index for index in makes if index not in unsized)
        elif name in _DATA_SIZED or any(index >= 0 and index not in told for index in deciding):
            unsized.update(makes)
        if any(index in unsized for index in reads):
            unsized.update(makes)
    return frozenset(unsized)


def bind(model: Model, shapes: Mapping[int, tuple[int, ...]], unsized: frozenset[int]) -> None:
    """Write names and shapes into the graph: from now on they are what both sides of a split go by."""
    graph = model.subgraphs[0]
    for index, (tensor, name) in enumerate(zip(graph.tensors, names_of(graph), strict=True)):
        tensor.name = name
        if index not in unsized and index in shapes:
            tensor.shape = list(shapes[index])
            tensor.shapeSignature = None
