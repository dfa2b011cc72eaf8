"""Which nodes cost most accuracy in int8: each is quantized by itself, or all but it, and the outputs compared."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import onnx

from compression.measuring import Feeds
from compression.quantization.answers import Answers
from compression.quantization.editing import readers
from compression.quantization.placement import check_names, place
from compression.quantization.prepare import WEIGHTED, prepare
from compression.quantization.ranges import activation_ranges
from compression.quantization.recipe import Int8Recipe
from compression.quantization.running import check_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """What one node does to the outputs.

    Attributes:
        node: its name in the prepared model, as `Int8Recipe.kept_float` takes it.
        distance: of the outputs from the float ones, relative to these: 0 is the same, 1 as far as all zeros.
    """

    node: str
    distance: float


def sensitivities(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    recipe: Int8Recipe | None = None,
    *,
    nodes: Sequence[str] = (),
    way: Literal["alone", "all_but"] = "alone",
    watch: Callable[[int, int], None] = lambda _done, _n: None,
) -> list[Sensitivity]:
    """Every node's share in the error, the greatest first.

    Args:
        model: float32, prepared or not.
        samples: they give the ranges, and the outputs are compared on them; few suffice.
        recipe: types and ranges; nodes that it keeps float are left out.
        nodes: names to look at, in place of every convolution and matrix product.
        way: `alone` quantizes one node at a time: the distance that it makes. `all_but` keeps one node float at
            a time: the distance that it takes away, which may be negative; it sees errors that cancel.
        watch: is told how many nodes are done, of how many.

    Raises:
        NotQuantizable: the model, a sample or a name does not fit.
    """
    recipe = recipe or Int8Recipe()
    prepared = prepare(model)
    check_samples(prepared, samples)
    check_names(prepared, nodes, "nodes")
    looked_at = [name for name in nodes or weighted_nodes(prepared) if name not in recipe.kept_float]
    ranges = activation_ranges(prepared, samples, recipe.ranges)
    wanted = Answers(prepared, samples)
    whole = wanted.distance(place(prepared, ranges, recipe)) if way == "all_but" else 0.0
    behind = _activations(prepared)
    found = []
    for number, name in enumerate(looked_at):
        if way == "alone":
            distance = wanted.distance(place(prepared, ranges, recipe, only=[name, *behind.get(name, ())]))
        else:
            kept = replace(recipe, kept_float=(*recipe.kept_float, name))
            distance = whole - wanted.distance(place(prepared, ranges, kept))
        found.append(Sensitivity(node=name, distance=distance))
        watch(number + 1, len(looked_at))
    return sorted(found, key=lambda one: -one.distance)


def _activations(prepared: onnx.ModelProto) -> dict[str, list[str]]:
    """For each node the Relu or Clip behind it, which cuts off what the node's own rounding need not reach."""
    read = readers(prepared)
    return {
        node.name: [read[node.output[0]][0].name]
        for node in prepared.graph.node
        if len(read[node.output[0]]) == 1 and read[node.output[0]][0].op_type in ("Relu", "Clip")
    }


def weighted_nodes(prepared: onnx.ModelProto) -> list[str]:
    """Names of the convolutions and matrix products, in the graph's order."""
    return [node.name for node in prepared.graph.node if node.op_type in WEIGHTED]
