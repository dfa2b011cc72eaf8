"""Puts QuantizeLinear and DequantizeLinear where onnxruntime computes fast: its own quantizer places them."""

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from compression.errors import NotQuantizable
from compression.quantization.editing import copied
from compression.quantization.prepare import WEIGHTED, without_marks
from compression.quantization.ranges import Range
from compression.quantization.recipe import Int8Recipe
from compression.quantization.running import quiet

OPERATORS = tuple(sorted(set(QLinearOpsRegistry) | set(QDQRegistry)))
"""What the quantizer knows to quantize."""

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
    model = copied(prepared)
    limits = {
        name: TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
        for name, (low, high) in ranges.items()
    }
    options = {"WeightSymmetric": True}  # integer kernels want one zero point for all channels
    try:
        with quiet():
            quantizer = QDQQuantizer(
                model, recipe.per_channel, recipe.reduce_range, _TYPES[recipe.weights], _TYPES[recipe.activations],
                TensorsData(CalibrationMethod.MinMax, limits), list(only), list(recipe.kept_float), list(OPERATORS),
                options,
            )  # fmt: skip
            quantizer.quantize_model()
    except (ValueError, TypeError, KeyError, RuntimeError, AssertionError, IndexError) as error:
        raise NotQuantizable(
            f"onnxruntime's quantizer does not fit this model ({type(error).__name__}: {error}); "
            "keep the nodes that it names float (kept_float)"
        ) from error
    placed: onnx.ModelProto = quantizer.model.model
    del placed.graph.value_info[:]  # of the float model; an engine infers its own
    return without_marks(placed)


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
