"""Which nodes are sooner done in float than in int8: each is tried on the device, beside the whole in int8."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import onnx

from compression.measuring import Feeds, Measure
from compression.quantization.editing import Weights, attribute
from compression.quantization.placement import check_names
from compression.quantization.prepare import WEIGHTED, prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize

_LEAST_GAIN = 0.02
_N_DEPTHWISE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What keeping some nodes float gains.

    Attributes:
        nodes: their names in the prepared model.
        gain_ratio: the time that it saves, of the whole in int8; negative where it costs time.
    """

    nodes: tuple[str, ...]
    gain_ratio: float


def fastest_kept_float(
    model: onnx.ModelProto,
    samples: Sequence[Feeds],
    recipe: Int8Recipe,
    measure: Measure,
    *,
    nodes: Sequence[str] = (),
    watch: Callable[[int, int], None] = lambda _done, _n: None,
) -> tuple[Int8Recipe, list[Gain]]:
    """The recipe with those nodes kept float that make it faster on the device, and all that was measured.

    One at a time first; those that gain are then measured together, and the best of all is taken. What gains less
    than two percent is noise.

    Args:
        nodes: to try, in place of those that are often slower in int8: first and last product, and the depthwise
            convolutions of the most multiplications.

    Raises:
        CompressionError: the device cannot run one.
        NotQuantizable: the model, a sample or a name does not fit.
    """
    prepared = prepare(model)
    check_names(prepared, nodes, "nodes")
    tried = [name for name in nodes or suspects(prepared) if name not in recipe.kept_float]
    timed = partial(_gains, prepared, samples, recipe, measure)
    gains = timed([(name,) for name in tried], watch=watch)
    winners = tuple(gain.nodes[0] for gain in gains if gain.gain_ratio >= _LEAST_GAIN)
    if len(winners) > 1:
        gains += timed([winners], watch=watch)
    best = max(gains, key=lambda gain: gain.gain_ratio, default=None)
    gains.sort(key=lambda gain: -gain.gain_ratio)
    if best is None or best.gain_ratio < _LEAST_GAIN:
        return recipe, gains
    return replace(recipe, kept_float=(*recipe.kept_float, *best.nodes)), gains


def suspects(prepared: onnx.ModelProto) -> list[str]:
    """First and last product, and the depthwise convolutions with the largest weights times maps."""
    products = [node for node in prepared.graph.node if node.op_type in WEIGHTED]
    weights = Weights(prepared)
    sides = {value.name: _n_elements(value) for value in prepared.graph.value_info}
    depthwise = [
        node
        for node in products
        if node.op_type == "Conv"
        and node.input[1] in weights
        and attribute(node, "group", 1) == weights[node.input[1]].shape[0] > 1
    ]
    depthwise.sort(key=lambda node: -sides.get(node.output[0], 0))
    chosen = [products[0], products[-1], *depthwise[:_N_DEPTHWISE]]
    return list(dict.fromkeys(node.name for node in chosen))


def _n_elements(value: onnx.ValueInfoProto) -> int:
    n = 1
    for dim in value.type.tensor_type.shape.dim:
        n *= max(int(dim.dim_value), 1)
    return n


def _gains(
    prepared: onnx.ModelProto,
    samples: Sequence[Feeds],
    recipe: Int8Recipe,
    measure: Measure,
    sets: Sequence[tuple[str, ...]],
    *,
    watch: Callable[[int, int], None],
) -> list[Gain]:
    """Each set kept float, all measured in one go beside the whole."""
    recipes = [recipe, *(replace(recipe, kept_float=(*recipe.kept_float, *names)) for names in sets)]
    with tempfile.TemporaryDirectory(prefix="hybrid-speed-") as folder:
        paths = []
        for number, one in enumerate(recipes):
            paths.append(Path(folder) / f"{number}.onnx")
            paths[-1].write_bytes(quantize(prepared, samples, one).model.SerializeToString())
            watch(number + 1, len(recipes))
        whole, *others = measure(paths, samples[0])
    return [
        Gain(nodes=names, gain_ratio=1.0 - timing.low_s / whole.low_s)
        for names, timing in zip(sets, others, strict=True)
    ]
