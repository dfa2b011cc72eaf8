"""Reads the nodes and weights of an ONNX graph as steps and arrays; weights in other files are handed in."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from hybrid.errors import ModelInvalid, ModelUntrainable
from hybrid.federated.learning.operators.call import Step
from hybrid.federated.learning.operators.catalog import DOMAINS
from hybrid.graph.model_file import needs_of

Read = Callable[[str, int, int], bytes]
"""Bytes of a file beside the model: (name, offset, length)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a tensor lies in an external file."""

    name: str
    shape: tuple[int, ...]
    location: str
    offset: int
    length: int


def places(model: onnx.ModelProto, locations: Mapping[str, object]) -> list[Place]:
    """The tensors in the named external files, in the order of the files, then of the places.

    Raises:
        ModelUntrainable: one that is not float32.
        ModelInvalid: one whose place is unsound.
    """
    found = []
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        place = _place(tensor)
        if place.location in locations:
            if tensor.data_type != TensorProto.FLOAT:
                kind = TensorProto.DataType.Name(tensor.data_type)
                raise ModelUntrainable(f"{tensor.name!r} in {place.location} is {kind}; what learns is FLOAT")
            if place.length != 4 * int(np.prod(place.shape)):
                raise ModelInvalid(f"{tensor.name!r} of shape {place.shape} has {place.length} bytes; export it again")
            found.append(place)
    order = {location: at for at, location in enumerate(locations)}
    found.sort(key=lambda place: (order[place.location], place.offset))
    for one, other in pairwise(found):
        if one.location == other.location and one.offset + one.length > other.offset:
            raise ModelUntrainable(f"{one.name!r} and {other.name!r} share bytes of {one.location}; keep them apart")
    return found


def _place(tensor: onnx.TensorProto) -> Place:
    said = {entry.key: entry.value for entry in tensor.external_data}
    try:
        offset, length = int(said.get("offset", "0")), int(said["length"])
        return Place(
            name=tensor.name, shape=tuple(tensor.dims), location=said["location"], offset=offset, length=length
        )
    except (KeyError, ValueError) as exc:
        raise ModelInvalid(f"{tensor.name!r} has no sound place in another file; export the model again") from exc


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the standard operators."""
    return next((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), 17)


def nodes_behind(model: onnx.ModelProto, feature: str, others: Mapping[str, object]) -> list[onnx.NodeProto]:
    """What the feature tensor or one of the others reaches, and nodes that make constants for that."""
    reached = {feature, *others}
    n_reached = 0
    while n_reached != len(reached):  # quantizers leave nodes in another order than that of computation
        n_reached = len(reached)
        for node in model.graph.node:
            if not reached.isdisjoint(node.input) and feature not in node.output:
                reached.update(name for name in node.output if name)
    behind = [node for node in model.graph.node if not reached.isdisjoint(node.output) and feature not in node.output]
    weights = {tensor.name for tensor in model.graph.initializer}
    constant = set(weights)
    for node in model.graph.node:
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
    makers = {name: node for node in model.graph.node for name in node.output}
    wanted = [name for node in behind for name in node.input]
    while wanted:
        name = wanted.pop()
        if name in constant and name in makers and makers[name] not in behind:
            behind.append(makers[name])
            wanted += makers[name].input
    return behind


def nodes_before(model: onnx.ModelProto, feature: str) -> list[onnx.NodeProto]:
    """What the feature tensor is made of, makers before readers, also where a quantizer left them in another order."""
    makers = {name: node for node in model.graph.node for name in node.output if name}
    order: list[onnx.NodeProto] = []
    seen: set[int] = set()
    waiting = [(makers[feature], False)] if feature in makers else []
    while waiting:
        node, is_done = waiting.pop()
        if is_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            waiting += [(makers[name], False) for name in needs_of(node) if name in makers]
    return order


def step_of(node: onnx.NodeProto, opset: int) -> Step:
    """A node as a step.

    Raises:
        ModelUntrainable: it has another output that is read, a graph inside, or is of another domain.
    """
    shown = node.name or (node.output[0] if node.output else node.op_type)
    if node.domain not in DOMAINS:
        raise ModelUntrainable(
            f"{node.domain}.{node.op_type} at {shown!r} has no gradient here; choose a feature tensor behind it",
            operator=node.op_type,
        )
    return Step(
        op=node.op_type,
        name=shown,
        inputs=_without_end(tuple(node.input)),
        output=node.output[0],
        attributes={one.name: _value(one) for one in node.attribute},
        opset=opset,
    )


def constants_of(model: onnx.ModelProto, names: set[str], read: Read) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of these names, read from where they lie."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            yield tensor.name, _array(tensor, read)


def _array(tensor: onnx.TensorProto, read: Read) -> np.ndarray:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = _place(tensor)
    whole = onnx.TensorProto()
    whole.CopyFrom(tensor)
    whole.ClearField("external_data")
    whole.ClearField("data_location")
    whole.raw_data = read(place.location, place.offset, place.length)
    return numpy_helper.to_array(whole)


_KINDS: Final = ("FLOAT", "INT", "STRING", "FLOATS", "INTS", "STRINGS")


def _value(attribute: onnx.AttributeProto) -> Any:
    if attribute.type == onnx.AttributeProto.TENSOR:
        return numpy_helper.to_array(attribute.t)
    if onnx.AttributeProto.AttributeType.Name(attribute.type) not in _KINDS:
        return None
    found = onnx.helper.get_attribute_value(attribute)
    return found.decode() if isinstance(found, bytes) else list(found) if isinstance(found, (list, tuple)) else found


def _without_end(names: tuple[str, ...]) -> tuple[str, ...]:
    while names and not names[-1]:
        names = names[:-1]
    return names
