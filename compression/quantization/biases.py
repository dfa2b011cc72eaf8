"""Bias correction: the mean error that int8 makes in each channel of a layer is taken from the layer's bias.

*Design.* Errors are taken layer by layer, each layer reading what the float model gives it, rounded as its int8 form
rounds it. So one pass over the samples finds all of them at once, and a correction does not answer for what earlier
layers did, which their own corrections take away. Nagel et al. (2019, section 4.2) and NNCF go layer by layer through
the quantized net instead, one pass a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from compression.measuring import Feeds
from compression.quantization.editing import Weights, attribute, copied, makers, readers
from compression.quantization.running import open_session, run, with_outputs


@dataclass(frozen=True, slots=True)
class _Layer:
    node: onnx.NodeProto
    error: str
    axis: int


def mean_errors(model: onnx.ModelProto, placed: onnx.ModelProto, samples: Sequence[Feeds]) -> dict[str, np.ndarray]:
    """For each int8 convolution and matrix product of `placed` the mean over samples of its error, by channel.

    Args:
        model: the float model that was placed.
        placed: holds the same nodes with what int8 makes of their inputs and weights.
        samples: whole inputs.
    """
    shown = copied(model)
    layers = _add_errors(shown, placed)
    names = [layer.error for layer in layers]
    session = open_session(with_outputs(shown, names))
    sums = {layer.node.name: np.zeros(0) for layer in layers}
    for feeds in samples:
        for layer, error in zip(layers, run(session, names, feeds), strict=True):
            others = tuple(axis for axis in range(error.ndim) if axis != layer.axis % error.ndim)
            mean = error.mean(axis=others, dtype=np.float64)
            before = sums[layer.node.name]
            sums[layer.node.name] = mean if before.size == 0 else before + mean
    return {name: total / len(samples) for name, total in sums.items()}


def corrected(model: onnx.ModelProto, errors: Mapping[str, np.ndarray]) -> tuple[onnx.ModelProto, int]:
    """The float model with these errors taken from its biases, and how many layers had one to take it from."""
    mended = copied(model)
    weights = Weights(mended)
    read = readers(mended)
    n_mended = sum(_mend(node, errors[node.name], weights, read) for node in mended.graph.node if node.name in errors)
    return mended, n_mended


def _add_errors(shown: onnx.ModelProto, placed: onnx.ModelProto) -> list[_Layer]:
    """Beside each layer its int8 form on the same input, and the difference of both."""
    made = makers(placed)
    floats = {node.name: node for node in shown.graph.node}
    constants = {tensor.name: tensor for tensor in placed.graph.initializer}
    known = {tensor.name for tensor in shown.graph.initializer}
    layers: list[_Layer] = []
    for node in placed.graph.node:
        own = floats.get(node.name)
        if node.op_type not in ("Conv", "Gemm", "MatMul") or own is None:
            continue
        rounded = [made.get(name) for name in node.input[:2]]
        if any(one is None or one.op_type != "DequantizeLinear" for one in rounded):
            continue
        into, weight = rounded
        assert into is not None
        assert weight is not None
        if weight.input[0] not in constants:
            continue  # both factors flow: no bias follows from the weights
        for name in (*into.input[1:], *weight.input):
            if name not in known:
                shown.graph.initializer.append(constants[name])
                known.add(name)
        prefix = f"{node.name}~int8"
        level, back, small = (f"{prefix}.{part}" for part in ("level", "input", "weight"))
        twin = onnx.NodeProto()
        twin.CopyFrom(own)
        twin.name, twin.input[0], twin.input[1], twin.output[0] = prefix, back, small, f"{prefix}.output"
        shown.graph.node.extend(
            [
                helper.make_node("QuantizeLinear", [own.input[0], *into.input[1:]], [level]),
                helper.make_node("DequantizeLinear", [level, *into.input[1:]], [back]),
                helper.make_node("DequantizeLinear", list(weight.input), [small], axis=attribute(weight, "axis", 1)),
                twin,
                helper.make_node("Sub", [twin.output[0], own.output[0]], [f"{prefix}.error"]),
            ]
        )
        layers.append(_Layer(own, f"{prefix}.error", 1 if node.op_type == "Conv" else -1))
    return layers


def _mend(node: onnx.NodeProto, error: np.ndarray, weights: Weights, read: dict[str, list[onnx.NodeProto]]) -> bool:
    if node.op_type == "MatMul":
        return _mend_sum(node, error, weights, read)
    scale = attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
    if len(node.input) > 2 and node.input[2]:
        if node.input[2] not in weights or scale == 0.0:
            return False
        name = weights.own(node, 2, read)
        values = weights[name]
        if values.size not in (1, error.size) or values.ndim > 2:
            return False
        weights[name] = (np.broadcast_to(values.reshape(-1), error.shape) - error / scale).astype(np.float32)
        return True
    name = f"{node.name}.bias"
    weights[name] = (-error / scale).astype(np.float32)
    del node.input[2:]
    node.input.append(name)
    return True


def _mend_sum(node: onnx.NodeProto, error: np.ndarray, weights: Weights, read: dict[str, list[onnx.NodeProto]]) -> bool:
    """A matrix product has its bias in the addition behind it, if it has one."""
    behind = read[node.output[0]]
    if len(behind) != 1 or behind[0].op_type != "Add":
        return False
    after = behind[0]
    at = 1 if after.input[0] == node.output[0] else 0
    if after.input[at] not in weights or weights[after.input[at]].shape != error.shape:
        return False
    name = weights.own(after, at, read)
    weights[name] = (weights[name] - error).astype(np.float32)
    return True
