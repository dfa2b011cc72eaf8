"""A model in two: what makes the features, and the head on them; and the head put back onto another body.

Design: a body that is quantized or pruned by itself keeps what it hands on, so that the head behind it stays as it is,
byte for byte, and one head that has learned fits every form of the body.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import onnx
from onnx import ValueInfoProto, inliner, shape_inference

from compression.errors import NotTrainable
from compression.training.heads import head_parts

AUTO: Final = "auto"
"""What is said in place of a tensor: the input of the last product by float weights."""

_PRODUCTS: Final = ("Gemm", "MatMul", "Conv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a head begins.

    Attributes:
        tensor: on which it stands.
        node: the first that reads it; in words, its operator along.
    """

    tensor: str
    node: str


def stand_of(model: onnx.ModelProto, wanted: str = AUTO) -> Stand:
    """The tensor that is meant.

    Args:
        model: with or without its weights.
        wanted: a tensor's name, or `auto` for the input of the last product by float weights.

    Raises:
        NotTrainable: there is none, or no head stands on it.
    """
    tensor = wanted if wanted != AUTO else _last_product(model)
    first = head_parts(model, tensor).head[0]
    return Stand(tensor=tensor, node=f"{first.name or first.output[0]} ({first.op_type})")


def _last_product(model: onnx.ModelProto) -> str:
    weights = {one.name for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT}
    made = {name: node for node in model.graph.node for name in node.output}
    for node in reversed(model.graph.node):
        if node.op_type not in _PRODUCTS:
            continue
        constant = [name in weights or _is_constant(name, made, weights) for name in node.input[:2]]
        if len(constant) == 2 and any(constant) and not all(constant):
            return str(node.input[constant.index(False)])
    raise NotTrainable(f"the model has no {', '.join(_PRODUCTS)} by float weights; name a tensor in place of {AUTO!r}")


def _is_constant(name: str, made: dict[str, onnx.NodeProto], weights: set[str]) -> bool:
    """Whether float weights alone make this tensor, as where an exporter leaves a Transpose in the graph."""
    node = made.get(name)
    return node is not None and bool(node.input) and all(one in weights for one in node.input)


def around(
    model: onnx.ModelProto, feature_tensor: str, change: Callable[[onnx.ModelProto], onnx.ModelProto]
) -> onnx.ModelProto:
    """The model with its body changed and its head as it was.

    Args:
        model: float, its weights inside; not changed.
        feature_tensor: on which the head stands.
        change: takes the body, whose outputs are what the head reads, and gives another one of the same outputs.

    Raises:
        NotTrainable: no head stands on the tensor, or the changed body does not fit it.
    """
    whole = inliner.inline_local_functions(model) if model.functions else model
    return joined(change(body_of(whole, feature_tensor)), whole, feature_tensor)


def body_of(model: onnx.ModelProto, feature_tensor: str) -> onnx.ModelProto:
    """The model without its head: its outputs are what the head reads, and those of the model that it makes itself."""
    parts = head_parts(model, feature_tensor)
    made_inside = {name for node in parts.head_and_constants for name in node.output}
    crossing = _crossing(parts.body, parts.head_and_constants)
    known = {value.name: value for value in shape_inference.infer_shapes(model).graph.value_info}
    own = [value for value in model.graph.output if value.name not in made_inside]
    names = [name for name in crossing if name not in {value.name for value in own}]
    body = onnx.ModelProto()
    body.CopyFrom(model)
    del body.graph.node[:]
    body.graph.node.extend(parts.body)
    del body.graph.output[:]
    body.graph.output.extend([*(known.get(name, ValueInfoProto(name=name)) for name in names), *own])
    del body.graph.value_info[:]
    read = {name for node in parts.body for name in _read(node)} | {value.name for value in body.graph.output}
    _keep(body.graph, read)
    return body


def joined(body: onnx.ModelProto, model: onnx.ModelProto, feature_tensor: str) -> onnx.ModelProto:
    """A body with the head of a model behind it.

    Raises:
        NotTrainable: the body has other operator sets than the head can be written in, or lacks what the head reads.
    """
    whole = _at_opset(model, _opsets(body).get("", 0))
    parts = head_parts(whole, feature_tensor)
    crossing = _crossing(parts.body, parts.head_and_constants)
    missing = set(crossing) - {value.name for value in body.graph.output}
    if missing:
        raise NotTrainable(f"the changed body lacks {', '.join(sorted(missing))}, on which the head stands")
    made = onnx.ModelProto()
    made.CopyFrom(body)
    nodes = parts.head_and_constants
    read = {name for node in nodes for name in _read(node)}
    constants = [one for one in whole.graph.initializer if one.name in read]
    theirs = {name for node in nodes for name in _named(node)} | {one.name for one in constants}
    _rename(made.graph, theirs - set(crossing) - {value.name for value in made.graph.input})
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(constants)
    del made.graph.output[:]
    made.graph.output.extend(whole.graph.output)
    del made.graph.value_info[:]
    _unite(made, whole)
    return made


def _crossing(body: Sequence[onnx.NodeProto], head: Sequence[onnx.NodeProto]) -> list[str]:
    """What the head reads of the body's making, in the order of its reading."""
    made = {name for node in body for name in node.output if name}
    inside = {name for node in head for name in node.output if name}
    return list(dict.fromkeys(name for node in head for name in _read(node) if name in made - inside))


def _keep(graph: onnx.GraphProto, read: set[str]) -> None:
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, graphs inside it included."""
    yield from filter(None, node.input)
    for inner in _inner(node):
        for one in inner.node:
            yield from _read(one)
        yield from (value.name for value in inner.output)


def _named(node: onnx.NodeProto) -> Iterator[str]:
    """What a node makes, graphs inside it included."""
    yield from filter(None, node.output)
    for inner in _inner(node):
        yield from (one.name for one in inner.initializer)
        for one in inner.node:
            yield from _named(one)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for entry in node.attribute:
        if entry.HasField("g"):
            yield entry.g
        yield from entry.graphs


def _rename(graph: onnx.GraphProto, taken: set[str]) -> None:
    """Gives what the graph itself makes other names than the taken ones."""
    own = [one.name for one in graph.initializer] + [name for node in graph.node for name in _named(node)]
    used = taken | set(own) | {name for node in graph.node for name in _read(node)}
    new: dict[str, str] = {}
    for name in own:
        if name in taken and name not in new:
            number = 1
            while f"{name}~{number}" in used:
                number += 1
            new[name] = f"{name}~{number}"
            used.add(new[name])
    if not new:
        return
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    for node in graph.node:
        _renamed(node, new)


def _renamed(node: onnx.NodeProto, new: dict[str, str]) -> None:
    for names in (node.input, node.output):
        for at, name in enumerate(names):
            names[at] = new.get(name, name)
    for inner in _inner(node):
        for value in (*inner.initializer, *inner.output):
            value.name = new.get(value.name, value.name)
        for one in inner.node:
            _renamed(one, new)


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {entry.domain if entry.domain != "ai.onnx" else "": entry.version for entry in model.opset_import}


def _at_opset(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model in the operator set that its body was upgraded to."""
    if _opsets(model).get("", 0) == version:
        return model
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as exc:  # the converter raises RuntimeError and kinds of its own
        raise NotTrainable(f"the head cannot be upgraded to opset {version} ({exc}); export the model again") from exc


def _unite(made: onnx.ModelProto, whole: onnx.ModelProto) -> None:
    mine = _opsets(made)
    for domain, version in _opsets(whole).items():
        if mine.setdefault(domain, version) != version:
            raise NotTrainable(
                f"body and head want other versions of {domain or 'ai.onnx'}: {mine[domain]} and {version}"
            )
    del made.opset_import[:]
    made.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in mine.items())
    made.ir_version = max(made.ir_version, whole.ir_version)
