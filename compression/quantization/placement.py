"""Puts QuantizeLinear and DequantizeLinear where onnxruntime computes fast: its own quantizer places them."""

from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from compression.errors import NotQuantizable
from compression.quantization.editing import Weights, copied, sort_nodes
from compression.quantization.prepare import WEIGHTED, without_marks
from compression.quantization.ranges import Range
from compression.quantization.recipe import Int8Recipe
from compression.quantization.running import quiet
from compression.quantization.tables import shrink_tables

OPERATORS = tuple(sorted(set(QLinearOpsRegistry) | set(QDQRegistry)))
"""What the quantizer knows to quantize."""

_MASK = 9e3
"""Attention masks add -10,000, or the least float, to what shall not be seen."""
_PROBABILITIES = ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid", "Tanh")
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


def place(
    prepared: onnx.ModelProto, ranges: Mapping[str, Range], recipe: Int8Recipe, *, only: Collection[str] = ()
) -> onnx.ModelProto:
    """The prepared model with these ranges in int8; `recipe` says which types, and which nodes stay float.

    Args:
        only: nodes to quantize, in place of all that the quantizer knows.

    Raises:
        NotQuantizable: a node to keep float that the model does not have, or the quantizer cannot place.
    """
    check_names(prepared, recipe.kept_float, "kept_float")
    check_names(prepared, only, "only")
    products = _only_products(prepared, recipe)
    kept = {*recipe.kept_float, *_unfit(prepared, ranges), *_last(prepared)}
    if products:
        kept |= _without_weights(prepared)
    limits = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    options: dict[str, object] = {
        "WeightSymmetric": True,  # integer kernels want one zero point for all channels
        "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],  # their kernels hand on their float sums as well
    }
    try:
        with quiet():
            quantizer = _run(prepared, recipe, limits, only=only, kept=kept, options=options)
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, IndexError) as error:
        raise NotQuantizable(
            f"onnxruntime's quantizer does not fit this model ({type(error).__name__}: {error}); "
            "keep the nodes that it names float (kept_float)"
        ) from error
    placed: onnx.ModelProto = quantizer.model.model
    if products and not only:
        shrink_tables(placed, recipe.kept_float)
    sort_nodes(placed)
    del placed.graph.value_info[:]  # of the float model; an engine infers its own
    return without_marks(placed)


def _run(
    model: onnx.ModelProto,
    recipe: Int8Recipe,
    limits: dict[str, TensorData],
    *,
    only: Collection[str],
    kept: Collection[str],
    options: dict[str, object],
) -> QDQQuantizer:
    for more in ({}, {"QDQDisableWeightAdjustForInt32Bias": True}):  # that stumbles over tables of one dimension
        quantizer = QDQQuantizer(
            copied(model), recipe.per_channel, recipe.reduce_range, _TYPES[recipe.weights],
            _TYPES[recipe.activations], TensorsData(CalibrationMethod.MinMax, dict(limits)), list(only), sorted(kept),
            list(OPERATORS), {**options, **more},
        )  # fmt: skip
        try:
            quantizer.quantize_model()
        except ValueError:
            if more:
                raise
        else:
            break
    return quantizer


def _only_products(prepared: onnx.ModelProto, recipe: Int8Recipe) -> bool:
    if recipe.operators != "auto":
        return recipe.operators == "products"
    kinds = Counter(node.op_type for node in prepared.graph.node)
    normalised = kinds["LayerNormalization"] + kinds["Softmax"] > 1  # a lone Softmax ends a classifier
    return normalised and kinds["MatMul"] + kinds["Gemm"] > kinds["Conv"]


def _without_weights(prepared: onnx.ModelProto) -> set[str]:
    """Everything but products by constant weights."""
    weights = Weights(prepared)
    return {node.name for node in prepared.graph.node if node.op_type not in WEIGHTED or node.input[1] not in weights}


def _unfit(prepared: onnx.ModelProto, ranges: Mapping[str, Range]) -> set[str]:
    """Nodes between products that handle a mask: beside its minus infinity every other number would be level zero."""
    wide = {name for name, (low, high) in ranges.items() if max(-low, high) >= _MASK}
    return {
        node.name
        for node in prepared.graph.node
        if node.op_type not in WEIGHTED and not wide.isdisjoint((*node.input, *node.output))
    }


def _last(prepared: onnx.ModelProto) -> set[str]:
    """What ends the model as a probability: of a thousand classes most would round to level zero."""
    answers = {value.name for value in prepared.graph.output}
    return {
        node.name
        for node in prepared.graph.node
        if node.op_type in _PROBABILITIES and not answers.isdisjoint(node.output)
    }


def check_names(model: onnx.ModelProto, names: Collection[str], where: str) -> None:
    """Refuse names of nodes that the model does not have.

    Raises:
        NotQuantizable: says which, and what names there are.
    """
    known = {node.name for node in model.graph.node}
    if unknown := sorted(set(names) - known):
        some = ", ".join(sorted(known)[:8])
        raise NotQuantizable(
            f"{where}: the prepared model has no node {', '.join(map(repr, unknown))}; it has {some}, …: "
            "take names from prepare(model) or from sensitivities"
        )


def count(placed: onnx.ModelProto) -> tuple[int, int]:
    """How many convolutions and matrix products are int8, and how many float."""
    dequantized = {node.output[0] for node in placed.graph.node if node.op_type == "DequantizeLinear"}
    weighted = [node for node in placed.graph.node if node.op_type in WEIGHTED]
    n_int8 = sum(node.input[0] in dequantized and node.input[1] in dequantized for node in weighted)
    return n_int8, len(weighted) - n_int8
