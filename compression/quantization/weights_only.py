"""Weights of 8 or 4 bits under float arithmetic: fewer bytes to send and keep, no samples needed."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.errors import NotQuantizable
from compression.quantization.editing import attribute, copied, drop_unread
from compression.quantization.prepare import prepare, without_marks
from compression.quantization.tables import shrink_tables

_LEAST_WEIGHTS = 1024
_BLOCKS = (16, 32, 64, 128, 256)
_INT8_SUMS = 4  # the operator's accuracy level: its input is rounded to int8 block by block, or 8 bits are slow


def weights_only(model: onnx.ModelProto, bits: int = 8, block: int = 32) -> onnx.ModelProto:
    """The model with small weights; what flows between its nodes stays float32.

    A matrix product by constant weights becomes onnxruntime's MatMulNBits, a scale for each `block` of weights that
    are summed together. Tables that Gather reads become int8 with a scale for each row. Weights of convolutions and
    Gemm become int8 with a scale for each output channel; no engine has a kernel for these, so they are widened at
    every run, which costs time: for these the gain is in bytes alone.

    Args:
        model: float32, prepared or not; not changed.
        bits: of the weights of matrix products, 8 or 4.
        block: 16, 32, 64, 128 or 256.

    Raises:
        NotQuantizable: the model does not fit, holds no such weights, or `bits` and `block` have other values.
    """
    if bits not in (4, 8):
        raise NotQuantizable(f"bits is {bits}, wanted 8 or 4: engines run no other")
    if block not in _BLOCKS:
        raise NotQuantizable(f"block is {block}, wanted one of {', '.join(map(str, _BLOCKS))}")
    small = copied(prepare(model))
    weights = {tensor.name: tensor for tensor in small.graph.initializer}
    n_tables = shrink_tables(small)
    done = [_shrink(small, node, weights, bits, block) for node in list(small.graph.node)]
    if not n_tables and not any(done):
        raise NotQuantizable(
            f"the model has no constant weights of {_LEAST_WEIGHTS} numbers or more: nothing would become smaller"
        )
    drop_unread(small)
    del small.graph.value_info[:]
    return without_marks(small)


def _shrink(
    model: onnx.ModelProto, node: onnx.NodeProto, weights: dict[str, TensorProto], bits: int, block: int
) -> bool:
    at = {"MatMul": 1, "Conv": 1, "ConvTranspose": 1, "Gemm": 1}.get(node.op_type)
    if at is None or len(node.input) <= at or node.input[at] not in weights:
        return False
    tensor = weights[node.input[at]]
    values = numpy_helper.to_array(tensor)
    if tensor.data_type != TensorProto.FLOAT or values.size < _LEAST_WEIGHTS:
        return False
    if not np.isfinite(values).all():
        raise NotQuantizable(f"weight {tensor.name!r} holds NaN or infinity, which no scale covers; mend the model")
    if node.op_type == "MatMul":
        if values.ndim != 2:
            return False
        _use_nbits(model, node, values, bits, block)
        return True
    axis = _channel_axis(node)
    if axis >= values.ndim:
        return False
    name = f"{tensor.name}.int8"
    if name not in {made.output[0] for made in model.graph.node}:
        _widen(model, name, values, axis)
    node.input[at] = name
    return True


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "ConvTranspose" else 0


def _widen(model: onnx.ModelProto, name: str, values: np.ndarray, axis: int) -> None:
    """Int8 weights and the DequantizeLinear that makes `name` of them."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    model.graph.initializer.extend(
        [numpy_helper.from_array(small, f"{name}.q"), numpy_helper.from_array(scale.reshape(-1), f"{name}.scale")]
    )
    node = helper.make_node("DequantizeLinear", [f"{name}.q", f"{name}.scale"], [name], name=name, axis=axis)
    model.graph.node.insert(0, node)


def _use_nbits(model: onnx.ModelProto, node: onnx.NodeProto, values: np.ndarray, bits: int, block: int) -> None:
    """The product by `values` (k, n) as a MatMulNBits: blocks along k, their bytes one after another for each n."""
    k, n = values.shape
    n_blocks = -(-k // block)
    padded = np.zeros((n_blocks * block, n), np.float32)
    padded[:k] = values
    blocks = padded.T.reshape(n, n_blocks, block)
    half = 1 << (bits - 1)
    scale = np.abs(blocks).max(axis=2) / np.float32(half - 1)
    scale[scale == 0] = 1
    levels = np.clip(np.rint(blocks / scale[..., None]) + half, 0, 2 * half - 1).astype(np.uint8)
    packed = levels if bits == 8 else levels[..., 0::2] | (levels[..., 1::2] << 4)
    name = f"{node.input[1]}.{bits}bit"
    if name not in {tensor.name for tensor in model.graph.initializer}:
        model.graph.initializer.extend(
            [numpy_helper.from_array(packed, name), numpy_helper.from_array(scale.reshape(-1), f"{name}.scale")]
        )
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"
    del node.input[1:]
    node.input.extend([name, f"{name}.scale"])
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": _INT8_SUMS}
    node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    if "com.microsoft" not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
