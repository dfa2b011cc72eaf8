"""A module's part before its head as a TensorFlow Lite file: found by what it computes, not by what it is called.

Design: the feature tensor of an ONNX model has no name in the module that it came from, or another one; but on the same
request some value of the module's graph is the same array. The module is cut off there and exported as any other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from compression.errors import NotExportable
from compression.measuring import Feeds
from compression.tflite.export import export

if TYPE_CHECKING:
    from torch import fx, nn

NEAR: Final = 1e-2
"""Largest difference of a value that counts as the feature tensor, of its largest value."""


def export_body(module: "nn.Module", requests: Sequence[Feeds], features: Sequence[np.ndarray], name: str) -> bytes:
    """The module up to a tensor as a TensorFlow Lite file for the requests' shapes.

    Args:
        module: in evaluation mode; takes a request's arrays in their order.
        requests: some, by input name, of one size; their batch is the file's.
        features: the tensor's value for each of them.
        name: what the file's output is called.

    Raises:
        NotExportable: no value of the module is that tensor, an input is of the head alone, or as `export`.
    """
    import torch

    from compression.training.answering import arguments, evaluating
    from compression.training.exporting import captured
    from compression.training.tracing import plain_graph

    given = [arguments(module, request, slice(None)) for request in requests]
    graph = plain_graph(captured(module, given[0]))
    places = [node for node in graph.graph.nodes if node.op == "call_function"]
    with evaluating(graph):
        for one, array in zip(given, features, strict=True):
            same = _same(graph, one, torch.from_numpy(np.ascontiguousarray(array)))
            places = [node for node in places if node in same]
    if not places:
        raise NotExportable(
            f"no value of the module is the feature tensor {name!r} ({list(features[0].shape)}) on the samples: the "
            "head begins inside an operation of torch, or the model is another one's"
        )
    return export(_cut(graph, places[0]), requests[0], [name])


def _same(graph: "fx.GraphModule", given: tuple[Any, ...], wanted: Any) -> "set[fx.Node]":
    """The nodes that compute this array."""
    import torch

    most = max(float(wanted.abs().max()), 1e-6) if wanted.numel() else 1.0
    found: set[fx.Node] = set()

    class Looking(torch.fx.Interpreter):
        def run_node(self, n: "fx.Node") -> Any:
            value = super().run_node(n)
            is_same = isinstance(value, torch.Tensor) and value.shape == wanted.shape and value.is_floating_point()
            if is_same and float((value - wanted).abs().max()) <= NEAR * most:
                found.add(n)
            return value

    Looking(graph).run(*given)
    return found


def _cut(graph: "fx.GraphModule", last: "fx.Node") -> "fx.GraphModule":
    """The graph whose output is this node's."""
    import torch

    made = torch.fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.op == "output":
            break
        copies[node] = made.node_copy(node, lambda one: copies[one])
    made.output(copies[last])
    for node in reversed(list(made.nodes)):
        if not node.users and node.op in {"get_attr", "call_function"}:
            made.erase_node(node)
    idle = [node.name for node in made.nodes if node.op == "placeholder" and not node.users]
    if idle:
        raise NotExportable(f"{', '.join(idle)} goes past the feature tensor into the head; choose an earlier tensor")
    return torch.fx.GraphModule(graph, made)
