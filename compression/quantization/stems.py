"""Lets the first convolution of an image net meet the engine's fast int8 kernel, which wants channels by fours.

*Design.* An image has one to four channels; onnxruntime then gathers every window into a matrix first, which for the
three channels of a photo costs more time than the product. A stride of two is folded into channels instead: pixels of
a 2 x 2 square lie side by side (SpaceToDepth), and the convolution over squares has the same products in another
order, with weights of zero where a square reaches beyond the window. Elsewhere channels of zeros are added up to a
multiple of four. Both give the same numbers bit by bit, since zero has an exact level in every range.
"""

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.quantization.editing import Weights, attribute, copied, drop_unread, set_attributes

_FOURS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Widened:
    """A model whose stems are wide.

    Attributes:
        model: computes what the given one does.
        origins: for each tensor that is new, the input that it holds the values of.
        added: names of the nodes that are new, which move float numbers and are not to be quantized.
    """

    model: onnx.ModelProto
    origins: dict[str, str]
    added: tuple[str, ...]


def widen_stems(prepared: onnx.ModelProto, kept_float: tuple[str, ...] = ()) -> Widened:
    """The prepared model with each convolution that reads a narrow float input of the model made wide.

    Args:
        kept_float: nodes that stay as they are.
    """
    model = copied(prepared)
    inputs = {value.name: value for value in model.graph.input}
    weights = Weights(model)
    origins: dict[str, str] = {}
    added: list[str] = []
    for node in list(model.graph.node):
        if node.op_type != "Conv" or node.name in kept_float:
            continue
        value = inputs.get(node.input[0])
        if value is None or node.input[1] not in weights or attribute(node, "group", 1) != 1:
            continue
        kernel = weights[node.input[1]]
        if kernel.ndim != 4 or kernel.shape[1] % _FOURS == 0:
            continue
        sides = _sides(value)
        geometry = _Geometry.of(node, kernel, sides) if sides is not None else None
        made = _fold(model, node, kernel, geometry) if geometry is not None else _pad(model, node, kernel)
        origins[node.input[0]] = value.name
        added.append(made)
    drop_unread(model)
    return Widened(model=model, origins=origins, added=tuple(added))


@dataclass(frozen=True, slots=True)
class _Geometry:
    """A convolution of stride two over squares of two pixels: zeros before the window, taps, squares to pad."""

    lead: tuple[int, int]
    taps: tuple[int, int]
    pads: tuple[int, int, int, int]

    @classmethod
    def of(cls, node: onnx.NodeProto, kernel: np.ndarray, sides: tuple[int, int]) -> "_Geometry | None":
        """None where a stride, a dilation or a side forbids it."""
        if attribute(node, "strides", [1, 1]) != [2, 2] or attribute(node, "dilations", [1, 1]) != [1, 1]:
            return None
        if any(side % 2 for side in sides):
            return None
        parts = [
            _one_side(side, size, *ends)
            for side, size, ends in zip(sides, kernel.shape[2:], _ends(node, kernel, sides), strict=True)
        ]
        if any(after < 0 for _, _, _, after in parts):
            return None
        (top, rows, above, below), (left, columns, before, after) = parts
        return cls((top, left), (rows, columns), (above, before, below, after))


def _one_side(side: int, size: int, before: int, after: int) -> tuple[int, int, int, int]:
    lead = before % 2
    n_out = (side + before + after - size) // 2 + 1
    taps = (size + lead + 1) // 2
    first = (before + lead) // 2
    return lead, taps, first, n_out - 1 + taps - first - side // 2


def _ends(node: onnx.NodeProto, kernel: np.ndarray, sides: tuple[int, int]) -> list[tuple[int, int]]:
    way = attribute(node, "auto_pad", "NOTSET")
    if way in ("SAME_UPPER", "SAME_LOWER"):
        ends = []
        for side, size in zip(sides, kernel.shape[2:], strict=True):
            whole = max(0, (-(-side // 2) - 1) * 2 + size - side)
            less, more = whole // 2, whole - whole // 2
            ends.append((less, more) if way == "SAME_UPPER" else (more, less))
        return ends
    top, left, bottom, right = [0] * 4 if way == "VALID" else attribute(node, "pads", [0] * 4)
    return [(top, bottom), (left, right)]


def _fold(model: onnx.ModelProto, node: onnx.NodeProto, kernel: np.ndarray, geometry: _Geometry) -> str:
    n_out, n_in, height, width = kernel.shape
    (top, left), (rows, columns) = geometry.lead, geometry.taps
    wide = np.zeros((n_out, n_in, 2 * rows, 2 * columns), kernel.dtype)
    wide[:, :, top : top + height, left : left + width] = kernel
    squares = wide.reshape(n_out, n_in, rows, 2, columns, 2).transpose(0, 3, 5, 1, 2, 4)
    name = f"{node.name}.squares"
    made = helper.make_node("SpaceToDepth", [node.input[0]], [name], name=name, blocksize=2)
    _replace(model, node, made, squares.reshape(n_out, 4 * n_in, rows, columns))
    set_attributes(node, without=("auto_pad",), pads=list(geometry.pads), strides=[1, 1], kernel_shape=[rows, columns])
    return name


def _pad(model: onnx.ModelProto, node: onnx.NodeProto, kernel: np.ndarray) -> str:
    n_more = -kernel.shape[1] % _FOURS
    name = f"{node.name}.fours"
    ends = np.array([0, 0, 0, 0, 0, n_more, 0, 0], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(ends, f"{name}.ends"))
    made = helper.make_node("Pad", [node.input[0], f"{name}.ends"], [name], name=name)
    _replace(model, node, made, np.pad(kernel, ((0, 0), (0, n_more), (0, 0), (0, 0))))
    return name


def _replace(model: onnx.ModelProto, node: onnx.NodeProto, made: onnx.NodeProto, kernel: np.ndarray) -> None:
    """`made` before the convolution, whose weights become `kernel`."""
    name = f"{made.name}.weight"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(kernel), name))
    model.graph.node.insert(0, made)
    shown = helper.make_tensor_value_info(made.output[0], onnx.TensorProto.FLOAT, None)
    model.graph.value_info.append(shown)
    node.input[0], node.input[1] = made.output[0], name


def _sides(value: onnx.ValueInfoProto) -> tuple[int, int] | None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != 4 or not all(dim.HasField("dim_value") for dim in dims[2:]):
        return None
    return int(dims[2].dim_value), int(dims[3].dim_value)
