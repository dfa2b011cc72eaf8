"""Small edits of graphs: attributes, weights, who reads what."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of the graphs in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def attribute(node: onnx.NodeProto, name: str, default: object) -> Any:
    """The value of an attribute, as the kind of thing that the default is."""
    for entry in node.attribute:
        if entry.name == name:
            value = helper.get_attribute_value(entry)
            if isinstance(default, str):
                return value.decode()
            return list(value) if isinstance(default, list) else value
    return default


def set_attributes(node: onnx.NodeProto, *, without: tuple[str, ...] = (), **values: object) -> None:
    """Replace these attributes and take those of `without` away."""
    kept = [entry for entry in node.attribute if entry.name not in values and entry.name not in without]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in values.items())


def readers(model: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    """For each tensor the nodes that read it, those in inner graphs included."""
    read: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in all_nodes(model.graph):
        for name in dict.fromkeys(node.input):
            if name:
                read[name].append(node)
    return read


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """For each tensor the node that makes it."""
    return {name: node for node in model.graph.node for name in node.output if name}


class Weights:
    """The constant float tensors of a model by name; setting one changes the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors and self._tensors[name].data_type == onnx.TensorProto.FLOAT

    def __getitem__(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._tensors[name])

    def __setitem__(self, name: str, values: np.ndarray) -> None:
        made = numpy_helper.from_array(np.ascontiguousarray(values), name)
        if name in self._tensors:
            self._tensors[name].CopyFrom(made)
        else:
            self._model.graph.initializer.append(made)
            self._tensors[name] = self._model.graph.initializer[-1]

    def own(self, node: onnx.NodeProto, at: int, read: dict[str, list[onnx.NodeProto]]) -> str:
        """The name of the node's weight at this input, copied first where another node reads it too."""
        name: str = node.input[at]
        if len(read[name]) > 1 or list(node.input).count(name) > 1:
            copied = f"{name}.{node.name}"
            self[copied] = self[name]
            read[name].remove(node)
            read[copied] = [node]
            node.input[at] = name = copied
        return name


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put each node behind the makers of what it reads, else in the order that they have."""
    waiting = list(model.graph.node)
    made = {name for node in waiting for name in node.output}
    ordered: list[onnx.NodeProto] = []
    done: set[str] = set()

    def visit(start: onnx.NodeProto) -> None:
        stack = [start]
        while stack:
            node = stack[-1]
            missing = [name for name in _reads(node) if name in made and name not in done]
            if missing:
                stack.append(maker[missing[0]])
                continue
            stack.pop()
            if not all(name in done for name in node.output if name):
                ordered.append(node)
                done.update(name for name in node.output if name)

    maker = makers(model)
    for node in waiting:
        visit(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _reads(node: onnx.NodeProto) -> list[str]:
    inner = [one for entry in node.attribute if entry.HasField("g") for one in all_nodes(entry.g)]
    return [name for one in (node, *inner) for name in one.input if name]


def drop_unread(model: onnx.ModelProto) -> None:
    """Take constants away that nothing reads any more."""
    read = {name for node in all_nodes(model.graph) for name in node.input}
    read |= {value.name for value in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of its own with the same content."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other
