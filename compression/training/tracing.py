"""A module as a plain graph of torch whose values are called as in the ONNX model written from it.

Design: normalisations are folded into the convolutions before them, as every quantizer does it, so that what is
trained here is what will be quantized. The graph is an ordinary module: it trains, and is exported again with the same
names after its weights have changed.
"""

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import torch

from compression.errors import NotExportable
from compression.training.answering import arguments, evaluating, outputs_of
from compression.training.exporting import TOLERANCE, captured, exported

aten = torch.ops.aten
_LINEAR: Final = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)
_CONVOLUTION: Final = aten.convolution.default
_NORMALISATIONS: Final = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Traced:
    """A module without normalisations behind convolutions, and its ONNX model.

    Attributes:
        module: a graph of torch; parameters are called as the given module's.
        model: written from it; float.
        example: inputs by name that it was written with.
        output_names: of the model.
    """

    module: torch.fx.GraphModule
    model: onnx.ModelProto
    example: Mapping[str, np.ndarray]
    output_names: tuple[str, ...]

    def node(self, tensor: str) -> torch.fx.Node | None:
        """What makes this tensor of the model, in the graph of torch."""
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        returned = self.module.graph.output_node().args[0]
        outputs = list(returned) if isinstance(returned, list | tuple) else [returned]
        named = {node.name: node for node in self.module.graph.nodes}
        named |= dict(zip((one.name for one in self.model.graph.input), inputs, strict=False))
        named |= dict(zip((one.name for one in self.model.graph.output), outputs, strict=False))
        return named.get(tensor)

    def written(self, module: torch.nn.Module) -> onnx.ModelProto:
        """The model of the same graph with the weights of another, which may hold further parameters.

        Raises:
            NotExportable: as `export` does, or names have changed.
        """
        other = copy.deepcopy(self.module)
        values = module.state_dict()
        other.load_state_dict({name: values[name] for name in other.state_dict()})
        model, _ = exported(other, self.example, self.output_names)
        before, after = ({name for node in one.graph.node for name in node.output} for one in (self.model, model))
        if before != after:
            changed = ", ".join(sorted(before ^ after)[:5])
            raise NotExportable(f"the trained graph was written with other tensors ({changed}); names must stay")
        return model


def traced(module: torch.nn.Module, example: Mapping[str, np.ndarray], output_names: Sequence[str] = ()) -> Traced:
    """The module in evaluation mode as a graph that can be trained, normalisations folded and frozen.

    Raises:
        NotExportable: as `export` does, or the folded graph answers otherwise.
    """
    given = arguments(module, example, slice(None))
    folded = _folded(captured(module, given))
    with evaluating(module), evaluating(folded):
        for wanted, seen in zip(outputs_of(module(*given)), outputs_of(folded(*given)), strict=True):
            error = float((wanted.double() - seen.double()).abs().max() / wanted.abs().max().clamp_min(1e-12))
            if not error <= TOLERANCE:
                raise NotExportable(f"the graph with folded normalisations is {error:.1e} off; it cannot be trained so")
    model, graph = exported(folded, example, output_names)
    return Traced(plain_graph(graph), model, dict(example), tuple(one.name for one in model.graph.output))


def plain_graph(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """An ordinary module of an exported one: without guards, with both modes, returning a tensor or a tuple of them."""
    plain = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    returned = plain.graph_copy(graph.graph, copies)
    flat = tuple(returned) if isinstance(returned, list | tuple) else (returned,)
    plain.output(flat[0] if len(flat) == 1 else flat)
    for node in list(plain.nodes):
        if node.op == "call_module" and not node.users:  # checks of shapes, which the exporter adds
            plain.erase_node(node)
    _without_dead(plain)
    return torch.fx.GraphModule(graph, plain)


def _without_dead(graph: torch.fx.Graph) -> None:
    """Removes what nothing reads, but no input."""
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("get_attr", "call_function"):
            graph.erase_node(node)


def _folded(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    made = copy.deepcopy(plain_graph(graph))  # with weights of its own
    for node in list(made.graph.nodes):
        if node.op == "call_function" and node.target in _NORMALISATIONS:
            _fold(made, node)
    _without_dead(made.graph)
    return torch.fx.GraphModule(made, made.graph)


def _fold(graph: torch.fx.GraphModule, node: torch.fx.Node) -> None:
    """Moves one normalisation into what it follows, where nothing else reads that or its weights."""
    found = _foldable(graph, node)
    if found is None:
        return
    before, answer = found
    weight, bias = _constant(graph, before.args[1]), _constant(graph, _argument(before, 2))
    scale, shift, mean, variance = (_constant(graph, one) for one in node.args[1:5])
    assert weight is not None
    assert mean is not None
    assert variance is not None
    epsilon = float(node.args[6] if node.target == _NORMALISATIONS[0] else node.args[7])  # type: ignore[arg-type]
    with torch.no_grad():
        factor = (torch.ones_like(mean) if scale is None else scale) / torch.sqrt(variance + epsilon)
        rest = (torch.zeros_like(mean) if bias is None else bias) - mean
        rest = rest * factor + (torch.zeros_like(mean) if shift is None else shift)
        weight.data = weight.data * factor.reshape(-1, *[1] * (weight.ndim - 1))
    answer.replace_all_uses_with(before)
    _give_bias(graph, before, rest)


def _foldable(graph: torch.fx.GraphModule, node: torch.fx.Node) -> tuple[torch.fx.Node, torch.fx.Node] | None:
    """The convolution before a normalisation, and the node that answers for both."""
    before = node.args[0]
    if not isinstance(before, torch.fx.Node) or len(before.users) != 1 or not _is_linear(before):
        return None
    weight = before.args[1]
    alone = isinstance(weight, torch.fx.Node) and _n_uses(graph, weight) == 1
    known = all(_constant(graph, one) is not None for one in (weight, *node.args[3:5]))
    if not alone or not known or (_argument(before, 2) is not None and _constant(graph, _argument(before, 2)) is None):
        return None
    if before.target == aten.linear.default and len(before.meta["val"].shape) != 2:
        return None  # channels would lie along another axis
    if node.target == _NORMALISATIONS[1]:
        return before, node
    answers = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    return (before, answers[0]) if len(answers) == 1 and len(node.users) == 1 else None


def _is_linear(node: torch.fx.Node) -> bool:
    if node.target == _CONVOLUTION:
        return not node.args[6]  # a transposed one has its output channels elsewhere
    return node.op == "call_function" and node.target in _LINEAR


def _argument(node: torch.fx.Node, at: int) -> Any:
    return node.args[at] if len(node.args) > at else None


def _constant(graph: torch.fx.GraphModule, node: Any) -> torch.Tensor | None:
    """A parameter or buffer that a node stands for."""
    if not isinstance(node, torch.fx.Node) or node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(owner), name)
    return value if isinstance(value, torch.Tensor) else None


def _n_uses(graph: torch.fx.GraphModule, weight: torch.fx.Node) -> int:
    return sum(len(node.users) for node in graph.graph.nodes if node.op == "get_attr" and node.target == weight.target)


def _give_bias(graph: torch.fx.GraphModule, node: torch.fx.Node, value: torch.Tensor) -> None:
    """A parameter of its own beside the weight, named `bias` unless that name is taken."""
    owner = str(node.args[1].target).rpartition(".")[0]  # type: ignore[union-attr]
    place = graph.get_submodule(owner)
    name = "bias"
    while hasattr(place, name) and getattr(place, name) is not None:
        name = f"folded_{name}"
    if hasattr(place, name):
        delattr(place, name)
    place.register_parameter(name, torch.nn.Parameter(value))
    with graph.graph.inserting_before(node):
        bias = graph.graph.get_attr(f"{owner}.{name}" if owner else name)
    node.args = (*node.args[:2], bias, *node.args[3:])
