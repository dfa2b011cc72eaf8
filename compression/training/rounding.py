"""Weights rounded up or down so that each layer's answers change least, learned on samples layer by layer.

Design: the loss of a layer counts what follows it directly (a ReLU hides errors below zero), its inputs are those that
the layers before it give after their own rounding, its goal is what the float module answers. A channel's largest
weights are not touched: their levels are the scale that a quantizer finds again.

Source: Nagel et al.: Up or down? Adaptive rounding for post-training quantization, 2020, sections 3 and 4.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import torch

from compression.errors import NotTrainable
from compression.training.answering import arguments, evaluating, seeded
from compression.training.fake_quantization import FakeQuantized, FakeWeight, Placed, fake_quantized
from compression.training.grids import grids
from compression.training.quantization_aware import Quantize
from compression.training.tracing import Traced, traced
from compression.training.training_set import TrainingSet

Stepped = Callable[[int, int], object]
"""Called after each layer's part with the steps done and all steps; what it raises ends the work."""

_ZETA, _GAMMA = 1.1, -0.1
_HARDNESS: Final = 1.0
_COLD_RATIO: Final = 0.2
_SHARP = (20.0, 2.0)
_BATCH: Final = 32
_TIMED_STEPS: Final = 3
_RATE: Final = 1e-2
_PINNED: Final = 1e-3
_MOST_BYTES: Final = 256 * 2**20
_ACTIVATIONS: Final = ("relu", "relu6", "hardtanh", "clamp", "clamp_min")


@dataclass(frozen=True, slots=True)
class RoundedLayer:
    """One layer's mean squared error, relative to the mean square of its answers.

    Attributes:
        node: of the graph of torch.
        nearest: with its weights rounded to nearest.
        learned: with the rounding that it kept.
    """

    node: str
    nearest: float
    learned: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounded:
    """What was rounded.

    Attributes:
        model: float; weights on the same grids as rounding to nearest has, so that a quantizer keeps them.
        ranges: of activations, as the quantizer chose them; by tensor of the model.
        layers: in the order of the graph; one that got no better was rounded to nearest.
        unplaced: what the quantizer rounds and this has not looked at.
    """

    model: onnx.ModelProto
    ranges: dict[str, tuple[float, float]]
    layers: tuple[RoundedLayer, ...]
    unplaced: tuple[str, ...]


def adaround(
    module: torch.nn.Module,
    training_set: TrainingSet,
    quantize: Quantize,
    *,
    n_samples: int = 512,
    n_steps: int = 1000,
    seed: int = 0,
    budget_s: float | None = None,
    stepped: Stepped | None = None,
) -> Rounded:
    """Rounds a module's weights for the quantizer that is handed in; no labels are needed.

    Args:
        module: float; left as it is.
        training_set: its inputs.
        quantize: makes the int8 model of an exported one, always in the same way.
        n_samples: drawn from the training set.
        n_steps: of learning, a layer.
        seed: of what is drawn.
        budget_s: layers learn for fewer steps where they would take longer all together.
        stepped: see `Stepped`.

    Raises:
        NotQuantizable: the quantized graph does not fit the module.
        NotExportable: the module cannot be written as ONNX.
        NotTrainable: a number of samples or steps below 1.
    """
    if n_samples < 1 or n_steps < 1:
        raise NotTrainable(f"{n_samples} samples and {n_steps} steps: give at least one of each")
    example = {name: values[:4] for name, values in training_set.inputs.items()}
    trace = traced(module, example, training_set.output_names)
    found = fake_quantized(trace, grids(quantize(trace.model, {}), trace.model))
    end_s = math.inf if budget_s is None else time.perf_counter() + budget_s
    with seeded(seed) as chance:
        drawn = torch.randperm(training_set.n_samples, generator=chance)[:n_samples].numpy()
        layers = []
        for at, placed in enumerate(found.weights):
            layer = _Layer(trace, found, placed, training_set, drawn)
            n_left = len(found.weights) - at
            pace = _Pace(
                n_steps, (end_s - time.perf_counter()) / n_left, at * n_steps, (at + n_left) * n_steps, stepped
            )
            layers.append(layer.learn(chance, pace))
    return Rounded(
        model=trace.written(found.on_grid(found.module)),
        ranges=found.ranges(found.module),
        layers=tuple(layers),
        unplaced=found.unplaced,
    )


@dataclass(frozen=True, slots=True)
class _Pace:
    """How many steps a layer may take, in which time, and who is told."""

    n_steps: int
    share_s: float
    done: int
    total: int
    stepped: Stepped | None

    def affordable(self, each_s: float) -> int:
        """Steps that fit, at so many seconds each."""
        if math.isinf(self.share_s):
            return self.n_steps
        return min(self.n_steps, int(max(self.share_s, 0.0) / max(each_s, 1e-9)))

    def tell(self, step: int) -> None:
        if self.stepped is not None:
            self.stepped(self.done + step, self.total)


class _Layer:
    """One layer of the rounding graph, its inputs there, and what the float graph answers."""

    def __init__(
        self, trace: Traced, found: FakeQuantized, placed: Placed, training_set: TrainingSet, drawn: np.ndarray
    ) -> None:
        self._placed = placed
        node = _named(found.module, placed.node)
        fake = found.module.get_submodule(placed.rounding)
        assert isinstance(fake, FakeWeight)
        self._weight = found.module.get_parameter(placed.parameter)
        self._scale = fake.scale(self._weight)
        self._n_levels = fake.n_levels
        rounding = next(one for one in node.all_input_nodes if one.target == placed.rounding)
        source = next(one for one in node.all_input_nodes if one is not rounding and one.op != "get_attr")
        rest = [one for one in node.all_input_nodes if one not in (rounding, source)]
        constants = {one: _attribute(found.module, str(one.target)) for one in rest}
        follow = _following(_named(trace.module, placed.node))

        def answer(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            values = {**constants, source: inputs, rounding: weight}
            arguments = torch.fx.map_arg(node.args, lambda one: values[one])
            return follow(node.target(*arguments, **node.kwargs))  # type: ignore[operator]

        self._answer = answer
        self._wanted = follow(_values(_until(trace.module, placed.node), training_set, drawn))
        self._inputs = _values(_until(found.module, source.name), training_set, drawn[: len(self._wanted)])
        self._wanted = self._wanted[: len(self._inputs)]

    def learn(self, chance: torch.Generator, pace: _Pace) -> RoundedLayer:
        """Learns the rounding and writes it into the weight, where it is better than to nearest."""
        ratio = (self._weight / self._scale).detach()
        nearest = ratio.round().clamp(-self._n_levels, self._n_levels)
        before = self._error(nearest * self._scale)
        learned = self._learned(max(before, 1e-12), chance, pace)
        after = self._error(learned * self._scale)
        best = learned if after < before else nearest
        with torch.no_grad():
            self._weight.copy_(best * self._scale)
        return RoundedLayer(self._placed.node, before, min(after, before))

    def _learned(self, before: float, chance: torch.Generator, pace: _Pace) -> torch.Tensor:
        """Levels; the error that is made smaller counts relative to that of rounding to nearest."""
        ratio = (self._weight / self._scale).detach()
        nearest = ratio.round().clamp(-self._n_levels, self._n_levels)
        pinned = ratio.abs() >= self._n_levels - _PINNED
        floor = ratio.floor()
        inner = ((ratio - floor) - _GAMMA) / (_ZETA - _GAMMA)
        choice = torch.nn.Parameter(torch.log(inner / (1 - inner)))
        optimizer = torch.optim.Adam([choice], lr=_RATE)

        def levels(share: torch.Tensor) -> torch.Tensor:
            return torch.where(pinned, nearest, (floor + share).clamp(-self._n_levels, self._n_levels))

        step, n_steps, start_s = 0, pace.n_steps, time.perf_counter()
        while step < n_steps:
            index = torch.randint(len(self._inputs), (_BATCH,), generator=chance)
            share = (torch.sigmoid(choice) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
            seen = self._answer(self._inputs[index], levels(share) * self._scale)
            loss = _relative(seen, self._wanted[index]) / before
            if step >= _COLD_RATIO * n_steps:
                progress = (step - _COLD_RATIO * n_steps) / ((1 - _COLD_RATIO) * n_steps)
                sharp = _SHARP[1] + (_SHARP[0] - _SHARP[1]) * 0.5 * (1 + np.cos(np.pi * progress))
                loss = loss + _HARDNESS * (1 - (2 * share - 1).abs().pow(sharp)).mean()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
            pace.tell(step)
            if step == _TIMED_STEPS:
                n_steps = pace.affordable((time.perf_counter() - start_s) / step)
        return levels((choice.detach() >= 0).float())

    @torch.no_grad()
    def _error(self, weight: torch.Tensor) -> float:
        seen = [self._answer(part, weight) for part in torch.split(self._inputs, _BATCH)]
        return float(_relative(torch.cat(seen), self._wanted))


def _relative(seen: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (seen - wanted).pow(2).mean() / wanted.pow(2).mean().clamp_min(1e-12)


def _named(module: torch.fx.GraphModule, name: str) -> torch.fx.Node:
    found: torch.fx.Node = next(node for node in module.graph.nodes if node.name == name)
    return found


def _attribute(module: torch.fx.GraphModule, name: str) -> torch.Tensor:
    owner, _, own = name.rpartition(".")
    value = getattr(module.get_submodule(owner), own)
    assert isinstance(value, torch.Tensor)
    return value.detach()


def _until(module: torch.fx.GraphModule, name: str) -> torch.fx.GraphModule:
    """The graph up to this node, which it returns; weights are shared."""
    part = torch.fx.Graph()
    copies: dict[torch.fx.Node, torch.fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = part.node_copy(node, lambda one: copies[one])
        if node.name == name:
            part.output(copies[node])
            break
    return torch.fx.GraphModule(module, part)


def _following(node: torch.fx.Node) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation behind a node, where nothing else reads it; else nothing is done."""
    after = next(iter(node.users), None)
    if after is None or len(node.users) != 1 or after.op != "call_function":
        return lambda values: values
    name = getattr(getattr(after.target, "overloadpacket", None), "__name__", "")
    rest = after.args[1:]
    if name not in _ACTIVATIONS or any(isinstance(one, torch.fx.Node) for one in rest):
        return lambda values: values
    return lambda values: after.target(values, *rest, **after.kwargs)  # type: ignore[operator]


def _values(graph: torch.fx.GraphModule, training_set: TrainingSet, drawn: np.ndarray) -> torch.Tensor:
    """What a graph returns for these samples, for as many as fit."""
    with evaluating(graph):
        few = graph(*arguments(graph, training_set.inputs, drawn[:1]))
        drawn = drawn[: max(_BATCH, _MOST_BYTES // max(few.nbytes, 1))]
        parts = [
            graph(*arguments(graph, training_set.inputs, drawn[start : start + _BATCH]))
            for start in range(0, len(drawn), _BATCH)
        ]
    return torch.cat(parts)
