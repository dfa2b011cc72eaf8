"""Opens the leading dimension of a graph that was bound to one number of rows, so that any number may run at once.

Design: only declared shapes and the constant targets of Reshape hold that number in most graphs; these are changed here
and nothing is proved. Whether row i of many still gives what it gives alone is for the caller to measure.
"""

from typing import Final

import numpy as np
import onnx
from onnx import numpy_helper

from hybrid.errors import ModelUnsupported

ROWS: Final = "rows"
"""Name of the open dimension."""

MIXING: Final = frozenset({
    "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulInteger", "ConvInteger",
    "NonMaxSuppression", "Unique", "NonZero", "Compress", "Loop", "Scan", "If", "RandomNormal", "RandomUniform",
    "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial", "SequenceConstruct", "SplitToSequence",
    "SequenceMap", "Optional", "StringSplit", "LayerNormalizationTraining", "BatchNormInternal",
})  # fmt: skip
"""Operators through which one row's values can change another's result, or its shape. Such graphs are never batched:
numbers that agree today need not agree for other values."""


def open_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the leading dimension of all inputs and outputs is open.

    Raises:
        ModelUnsupported: an input without dimensions, inputs of different numbers of rows, or an operator that mixes
            rows.
    """
    check_rows(model)
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    graph = opened.graph
    n_rows = _common_rows(graph)
    sizes = {value.name: _leading(value) for value in (*graph.value_info, *graph.input)}
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_param = ROWS
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for number, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx"):
            _open_reshape(graph, node, number, constants, sizes.get(node.input[0]) == n_rows)
    del graph.value_info[:]
    return opened


def check_rows(model: onnx.ModelProto) -> None:
    """See that no operator mixes rows.

    Raises:
        ModelUnsupported: one does; the message names it.
    """
    names = {node.op_type for node in model.graph.node} | {node.op_type for f in model.functions for node in f.node}
    mixing = sorted(names & MIXING)
    trains = any(
        node.op_type == "BatchNormalization" and attribute.name == "training_mode" and attribute.i
        for node in model.graph.node
        for attribute in node.attribute
    )
    if mixing or trains:
        raise ModelUnsupported(f"{', '.join(mixing) or 'BatchNormalization in training'} may mix the rows of a batch")


def _common_rows(graph: onnx.GraphProto) -> int:
    found = {_leading(value) for value in graph.input}
    if len(found) != 1 or None in found:
        raise ModelUnsupported("the inputs have no common number of rows in front")
    (n_rows,) = found
    assert n_rows is not None
    return n_rows


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
    keeps_rows: bool,  # noqa: FBT001 (private)
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
    elif keeps_rows and not any(attribute.name == "allowzero" and attribute.i for attribute in node.attribute):
        first = 0
    else:
        return
    opened = numpy_helper.from_array(np.concatenate([[first], sizes[1:]]).astype(np.int64), f"{ROWS}/{number}")
    graph.initializer.append(opened)
    node.input[1] = opened.name
