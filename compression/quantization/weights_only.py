"""Weights of 8 or 4 bits under float arithmetic: fewer bytes to send and keep, no samples needed."""

from math import prod

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.errors import NotQuantizable
from compression.quantization.editing import attribute, copied, drop_unread
from compression.quantization.prepare import prepare, without_marks
from compression.quantization.tables import shrink_tables

_LEAST_WEIGHTS = 1024
_BLOCKS = (16, 32, 64, 128, 256)
_HALF_STEP = 2.0**-10
_PARTS = tuple(np.linspace(0.7, 1.0, 13))
_INT8_SUMS = 4  # the operator's accuracy level: its input is rounded to int8 block by block, or 8 bits are slow


def weights_only(model: onnx.ModelProto, bits: int = 8, block: int = 32) -> onnx.ModelProto:
    """The model with small weights; what flows between its nodes stays float32.

    A matrix product by constant weights becomes onnxruntime's MatMulNBits, a scale for each `block` of weights that
    are summed together. Tables that Gather reads become int8 with a scale for each row. Weights of convolutions and
    Gemm become int8 with a scale for each output channel; no engine has a kernel for these, so they are widened when
    the model is opened: for these the gain is in bytes of the file alone.

    Args:
        model: float32, prepared or not; not changed.
        bits: of the weights of matrix products, 8 or 4.
        block: 16, 32, 64, 128 or 256.

    Raises:
        NotQuantizable: the model does not fit, holds no such weights (none of a MatMul, for 4 bits), or `bits` and
            `block` have other values.
    """
    if bits not in (4, 8):
        raise NotQuantizable(f"bits is {bits}, wanted 8 or 4: engines run no other")
    if block not in _BLOCKS:
        raise NotQuantizable(f"block is {block}, wanted one of {', '.join(map(str, _BLOCKS))}")
    small = copied(prepare(model))
    weights = {tensor.name: tensor for tensor in small.graph.initializer}
    n_tables = shrink_tables(small)
    done = [_shrink(small, node, weights, bits, block) for node in list(small.graph.node)]
    if bits == 4 and not any(node.op_type == "MatMulNBits" for node in small.graph.node):
        raise NotQuantizable(
            f"no MatMul by a constant matrix of {_LEAST_WEIGHTS} numbers or more, which alone is stored in 4 bits: "
            "other weights become 8 bits; use bits=8"
        )
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
    """Int8 weights, and the Cast and Mul that make `name` of them.

    Not a DequantizeLinear: onnxruntime leaves that to every run, while these it folds once, when it opens the model.
    """
    others = tuple(i for i in range(values.ndim) if i != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    model.graph.initializer.extend(
        [numpy_helper.from_array(small, f"{name}.level"), numpy_helper.from_array(scale, f"{name}.scale")]
    )
    wide = f"{name}.wide"
    cast = helper.make_node("Cast", [f"{name}.level"], [wide], name=wide, to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    model.graph.node.insert(1, helper.make_node("Mul", [wide, f"{name}.scale"], [name], name=name))


def _use_nbits(model: onnx.ModelProto, node: onnx.NodeProto, values: np.ndarray, bits: int, block: int) -> None:
    """The product by `values` (k, n) as a MatMulNBits: blocks along k, their bytes one after another for each n."""
    k, n = values.shape
    n_blocks = -(-k // block)
    padded = np.zeros((n_blocks * block, n), np.float32)
    padded[:k] = values
    blocks = padded.T.reshape(n, n_blocks, block)
    half = 1 << (bits - 1)
    scale, levels = _levels(blocks, half)
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


def _levels(blocks: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """The scale of each block and the levels of its numbers, zero at `half`; of few shrunken scales the best."""
    widest = np.abs(blocks).max(axis=2) / np.float32(half - 1)
    widest[widest == 0] = 1
    best, least = widest, np.full(widest.shape, np.inf, np.float32)
    for part in _PARTS if half < 128 else (1.0,):
        scale = widest * np.float32(part)
        error = np.square(_rounded(blocks, scale, half) * scale[..., None] - blocks).sum(axis=2)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best, (_rounded(blocks, best, half) + half).astype(np.uint8)


def _rounded(blocks: np.ndarray, scale: np.ndarray, half: int) -> np.ndarray:
    return np.asarray(np.clip(np.rint(blocks / scale[..., None]), -half, half - 1))


def half_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large weights in float16, half the file; arithmetic and speed stay those of float32.

    Weights that float16 cannot hold (beyond 65,504, or all below its least step) stay as they are.

    Raises:
        NotQuantizable: no large float32 weight.
    """
    small = copied(model)
    heads = []
    for tensor in list(small.graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or prod(tensor.dims) < _LEAST_WEIGHTS:
            continue
        values = numpy_helper.to_array(tensor)
        if not np.abs(values).max() < np.finfo(np.float16).max:  # also where one is NaN
            continue
        halves = values.astype(np.float16)
        if np.abs(halves.astype(np.float32) - values).max() > np.abs(values).max() * _HALF_STEP:
            continue
        name = f"{tensor.name}.half"
        heads.append(helper.make_node("Cast", [name], [tensor.name], name=name, to=TensorProto.FLOAT))
        tensor.CopyFrom(numpy_helper.from_array(halves, name))
    if not heads:
        raise NotQuantizable(f"the model has no float32 weight of {_LEAST_WEIGHTS} numbers that float16 can hold")
    nodes = [*heads, *(onnx.NodeProto.FromString(node.SerializeToString()) for node in small.graph.node)]
    del small.graph.node[:]
    small.graph.node.extend(nodes)
    names = {node.output[0] for node in heads}
    inputs = [value for value in small.graph.input if value.name not in names]
    del small.graph.input[:]
    small.graph.input.extend(inputs)
    small.ir_version = max(small.ir_version, 4)
    return small
