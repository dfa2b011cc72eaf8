"""Where a quantized ONNX graph rounds, and to which levels: read from its own QuantizeLinear and DequantizeLinear."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

_RENAMED: Final = "_QuantizeLinear_Input"
"""What onnxruntime's quantizer appends to the name of an output that it quantizes."""

_MOVING: Final = ("SpaceToDepth", "Pad")


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels of one tensor: `(level - zero) * scale`.

    Attributes:
        scale: of the whole tensor, or one a channel.
        zero: the level of 0, likewise.
        low, high: the smallest and the largest level.
        axis: of the channels; None for the whole tensor.
        group: tensors of one group share their scale.
    """

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    axis: int | None
    group: str

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest number of the grid of a whole tensor."""
        scale, zero = float(self.scale.reshape(-1)[0]), int(self.zero.reshape(-1)[0])
        return (self.low - zero) * scale, (self.high - zero) * scale


@dataclass(frozen=True, slots=True)
class Grids:
    """All grids of a quantized graph.

    Attributes:
        activations: by the tensor's name in the float model.
        weights: by the node that reads it and the number of its input.
    """

    activations: Mapping[str, Grid]
    weights: Mapping[tuple[str, int], Grid]


def grids(quantized: onnx.ModelProto, model: onnx.ModelProto) -> Grids:
    """The grids of a quantized model; biases in int32 round so little that they are left out.

    Args:
        quantized: with QuantizeLinear and DequantizeLinear.
        model: the float model that it was made from; names of tensors are its own.
    """
    known = {name for node in model.graph.node for name in node.output}
    constants = {one.name: one for one in quantized.graph.initializer}
    quantizers = {node.output[0]: node for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    activations: dict[str, Grid] = {}
    weights: dict[str, Grid] = {}
    for node in quantized.graph.node:
        if node.op_type != "DequantizeLinear":
            continue
        source = quantizers.get(node.input[0])
        if source is not None and source.input[0] not in constants:
            tensor = source.input[0].removesuffix(_RENAMED)
            while tensor not in known and tensor in makers and makers[tensor].op_type in _MOVING:
                tensor = makers[tensor].input[0]  # a quantizer may rearrange an image, or pad it with zeros
            activations[tensor] = _grid(node, constants)
        elif source is not None or constants[node.input[0]].data_type != onnx.TensorProto.INT32:
            weights[node.output[0]] = _grid(node, constants)
    read = {
        (node.name, at): weights[name]
        for node in quantized.graph.node
        for at, name in enumerate(node.input)
        if name in weights
    }
    return Grids(activations, read)


def _grid(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Grid:
    scale = numpy_helper.to_array(constants[node.input[1]])
    if len(node.input) > 2 and node.input[2]:
        zero = numpy_helper.to_array(constants[node.input[2]])
    else:
        zero = np.zeros(scale.shape, np.uint8)
    limits = np.iinfo(zero.dtype)
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    return Grid(scale, zero, int(limits.min), int(limits.max), axis if scale.size > 1 else None, node.input[1])
