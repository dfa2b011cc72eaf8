"""A traced module that rounds where its quantized ONNX form will: levels of weights and of what flows between layers.

Design: nothing is guessed about placement. The grids are read from the quantized graph itself, and tensors that share a
scale there share it here. Rounding lets gradients through; the ranges of activations learn with the weights, their
zero points stay, so that the engine will find the same levels. A weight's scale follows its largest value.

Source: Esser et al.: Learned step size quantization, 2020; Jacob et al.: Quantization and training of neural networks
    for efficient integer-arithmetic-only inference, 2018.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import onnx
import torch

from compression.errors import NotQuantizable
from compression.training.grids import Grid, Grids
from compression.training.tracing import Traced

_PACE: Final = 4.0
"""How much faster than weights the logarithm of a range may move."""

_LEAST: Final = 1e-12
_STEPS_BEHIND: Final = 2
_UNEVEN: Final = 0.02


class FakeActivation(torch.nn.Module):
    """A tensor rounded to the levels of a grid whose scale is learned."""

    scale: torch.Tensor

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.pace = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("scale", torch.tensor(float(grid.scale.reshape(-1)[0])))
        self._zero = int(grid.zero.reshape(-1)[0])
        self._low, self._high = grid.low, grid.high

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid."""
        scale = self.scale * torch.exp(_PACE * self.pace)
        levels = (rounded(values / scale) + self._zero).clamp(self._low, self._high)
        return (levels - self._zero) * scale

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number of the grid."""
        scale = float(self.scale * torch.exp(_PACE * self.pace.detach()))
        return (self._low - self._zero) * scale, (self._high - self._zero) * scale


class FakeWeight(torch.nn.Module):
    """A weight rounded to symmetric levels, for each channel as many as its largest value spans.

    Args:
        grid: of the quantized graph.
        weight: as it was when the grid was made.
        axis: of the channels in this weight; None for one scale.
    """

    def __init__(self, grid: Grid, weight: torch.Tensor, axis: int | None) -> None:
        super().__init__()
        middle = (grid.low + grid.high + 1) // 2
        if (grid.zero != middle).any():
            raise NotQuantizable("a weight's zero point is not in the middle of its levels; quantize weights symmetric")
        self._axis = axis
        scale = torch.from_numpy(grid.scale.copy()).reshape(-1)
        largest = self._largest(weight.detach()).reshape(-1)
        if scale.numel() not in (1, largest.numel()):
            raise NotQuantizable(f"{scale.numel()} scales for {largest.numel()} channels of a weight; wanted one each")
        spans = (largest / scale.clamp_min(_LEAST))[largest > _LEAST]
        self.n_levels = round(float(spans.max())) if len(spans) else -grid.low
        if len(spans) and float(spans.max() - spans.min()) > _UNEVEN * self.n_levels:
            raise NotQuantizable(
                "the quantizer's scales do not follow from the module's weights; quantize without equalizing or"
                " smoothing, which change them"
            )
        if not 1 <= self.n_levels <= -grid.low + middle:
            raise NotQuantizable(f"a weight has {self.n_levels} levels on one side, its type {-grid.low + middle}")

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the grid that the weight itself spans."""
        scale = self.scale(weight)
        return rounded(weight / scale).clamp(-self.n_levels, self.n_levels) * scale

    def scale(self, weight: torch.Tensor) -> torch.Tensor:
        """One level of each channel, in a shape that spreads over the weight."""
        return (self._largest(weight.detach()) / self.n_levels).clamp_min(_LEAST)

    def _largest(self, weight: torch.Tensor) -> torch.Tensor:
        others = [at for at in range(weight.ndim) if at != self._axis]
        return weight.abs().amax(others, keepdim=True)


def rounded(values: torch.Tensor) -> torch.Tensor:
    """To whole numbers, halves to even, as engines do; gradients pass as if nothing had happened."""
    return values + (values.round() - values).detach()


@dataclass(frozen=True, slots=True)
class Placed:
    """What rounds which weight of a graph.

    Attributes:
        node: of the graph, which computes with the weight.
        parameter: its name.
        rounding: name of the submodule that rounds it.
    """

    node: str
    parameter: str
    rounding: str


@dataclass(frozen=True, slots=True)
class FakeQuantized:
    """A copy of a traced module that rounds.

    Attributes:
        module: the graph with the roundings in it.
        weights: roundings of weights, in the order of the graph.
        activations: names of submodules that round, by the tensor's name in the float model.
        unplaced: tensors and nodes of the quantized graph that have no equal in torch, and are not rounded.
    """

    module: torch.fx.GraphModule
    weights: tuple[Placed, ...]
    activations: dict[str, str]
    unplaced: tuple[str, ...]

    def on_grid(self, module: torch.nn.Module) -> torch.nn.Module:
        """A copy of this module, or of one trained from it, whose rounded weights lie on their grids."""
        made = copy.deepcopy(module)
        with torch.no_grad():
            for one in self.weights:
                weight = made.get_parameter(one.parameter)
                weight.copy_(made.get_submodule(one.rounding)(weight))
        return made

    def ranges(self, module: torch.nn.Module) -> dict[str, tuple[float, float]]:
        """Of all activations that this module, or one trained from it, rounds; by tensor of the float model."""
        found = {}
        for tensor, name in self.activations.items():
            fake = module.get_submodule(name)
            assert isinstance(fake, FakeActivation)
            found[tensor] = fake.range
        return found


def fake_quantized(traced: Traced, found: Grids) -> FakeQuantized:
    """Puts a rounding wherever the quantized graph has one.

    Raises:
        NotQuantizable: the two graphs have nothing in common, or weights are not symmetric.
    """
    module = copy.deepcopy(traced.module)
    own = {node.name: node for node in module.graph.nodes}
    unplaced: list[str] = []
    weights = []
    for (name, _), grid in found.weights.items():
        at = _maker(traced, name)
        parameter = None if at is None else _parameter(module, own[at.name])
        if at is None or parameter is None:
            unplaced.append(name)
        else:
            weights.append(_round_weight(module, own[at.name], parameter, grid))
    activations: dict[str, str] = {}
    by_group: dict[str, FakeActivation] = {}
    for tensor, grid in found.activations.items():
        made_by = traced.node(tensor)
        if made_by is None:
            unplaced.append(tensor)
            continue
        fake = by_group.setdefault(grid.group, FakeActivation(grid))
        activations[tensor] = f"rounded_{made_by.name}"
        _insert(module, own[made_by.name], fake, activations[tensor])
    if not weights or not activations:
        raise NotQuantizable(
            "the quantized graph has no weight or activation that the module has; nothing can be learned"
        )
    module.recompile()
    order = {node.name: at for at, node in enumerate(module.graph.nodes)}
    weights.sort(key=lambda one: order[one.node])
    return FakeQuantized(module, tuple(weights), activations, tuple(unplaced))


def _insert(module: torch.fx.GraphModule, node: torch.fx.Node, fake: torch.nn.Module, name: str) -> None:
    module.add_submodule(name, fake)
    with module.graph.inserting_after(node):
        new = module.graph.call_module(name, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)


def _round_weight(module: torch.fx.GraphModule, node: torch.fx.Node, weight: torch.fx.Node, grid: Grid) -> Placed:
    parameter = str(weight.target)
    axis = None if grid.axis is None else 0 if _channels_first(node) else grid.axis
    fake = FakeWeight(grid, module.get_parameter(parameter), axis)
    name = f"rounded_weight_{node.name}"
    module.add_submodule(name, fake)
    with module.graph.inserting_before(node):
        new = module.graph.call_module(name, (weight,))
    node.replace_input_with(weight, new)
    return Placed(node.name, parameter, name)


def _channels_first(node: torch.fx.Node) -> bool:
    """Whether a weight's output channels lie along its first axis in torch, wherever they do in ONNX."""
    name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
    if name == "convolution":
        return not node.args[6]  # transposed
    return name in ("linear", "conv1d", "conv2d", "conv3d")


def _maker(traced: Traced, name: str) -> torch.fx.Node | None:
    """The node of torch behind a node of the model; one of torch may be two there, a product and a sum."""
    nodes = {node.name: node for node in traced.model.graph.node}
    node = nodes.get(name)
    for _ in range(_STEPS_BEHIND):
        if node is None:
            return None
        if (found := traced.node(node.output[0])) is not None:
            return found
        node = next(_readers(traced.model, node.output[0]), None)
    return None


def _readers(model: onnx.ModelProto, tensor: str) -> Iterator[onnx.NodeProto]:
    return (node for node in model.graph.node if tensor in node.input)


def _parameter(module: torch.fx.GraphModule, node: torch.fx.Node) -> torch.fx.Node | None:
    """The one parameter of two or more axes that a node computes with."""
    names = {name for name, value in module.named_parameters() if value.ndim >= 2}
    found = [one for one in node.all_input_nodes if one.op == "get_attr" and str(one.target) in names]
    return found[0] if len(found) == 1 else None
