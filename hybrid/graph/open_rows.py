"""Opens the leading dimension of a graph that was bound to one number of rows, so that any number may run at once.

Design: only declared shapes and the constant targets of Reshape hold that number in most graphs; these are changed here
and nothing is proved. Whether row i of many is still made of row i alone is for `row_proof.py`, and whether it gives
what the graph gave before is for the caller to measure.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from hybrid.errors import ModelUnsupported

ROWS: Final = "rows"
"""Name of the open dimension."""


def open_rows(model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """A copy in which the leading dimension of all inputs and outputs is open.

    Args:
        model: bound to one number of rows; not changed.
        sizes: of its tensors, as the engine gives them for that number.

    Raises:
        ModelUnsupported: an input without dimensions, or inputs of different numbers of rows.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
    _common_rows(graph)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = ROWS
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx"):
            _open_reshape(graph, node, number, constants, sizes)
    del graph.value_info[:]
    return opened


def _common_rows(graph: onnx.GraphProto) -> None:
    found = {_leading(value) for value in graph.input}
    if len(found) != 1 or None in found:
        raise ModelUnsupported("the inputs have no common number of rows in front")


def _leading(value: onnx.ValueInfoProto) -> int | None:
    """The first size; 0 where it is open, None where there is no dimension."""
    dims = value.type.tensor_type.shape.dim
    if not dims:
        return None
    return int(dims[0].dim_value) if dims[0].HasField("dim_value") else 0


def _open_reshape(
    graph: onnx.GraphProto,
    node: onnx.NodeProto,
    number: int,
    constants: dict[str, onnx.TensorProto],
    sizes_of: Mapping[str, tuple[int, ...]],
) -> None:
    """Let a constant target follow the rows: its first size is what the others leave, or what the input has."""
    target = constants.get(node.input[1])
    if target is None or target.data_location == onnx.TensorProto.EXTERNAL:
        return
    sizes = numpy_helper.to_array(target).astype(np.int64)
    if sizes.ndim != 1 or not len(sizes) or sizes[0] in (0, -1):
        return
    if -1 not in sizes[1:]:
        first = -1
    elif sizes_of.get(node.input[0], ())[:1] == (int(sizes[0]),) and not any(
        attribute.name == "allowzero" and attribute.i for attribute in node.attribute
    ):
        first = 0
    else:
        return
    opened = numpy_helper.from_array(np.concatenate([[first], sizes[1:]]).astype(np.int64), f"{ROWS}/{number}")
    graph.initializer.append(opened)
    node.input[1] = opened.name
