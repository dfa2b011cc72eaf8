"""Tables that Gather reads row by row (embeddings) in int8, each row with a scale of its own."""

from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.quantization.editing import Weights, attribute, drop_unread, readers

_LEAST_NUMBERS = 1024


def shrink_tables(model: onnx.ModelProto, kept_float: Collection[str] = ()) -> int:
    """Put int8 rows where Gather read float ones, in place; how many tables became small.

    Only the rows that are read are widened, so nothing of the table is ever float in memory.
    """
    weights, read = Weights(model), readers(model)
    tables: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type != "Gather" or node.name in kept_float or node.input[0] not in weights:
            continue
        name, values = node.input[0], weights[node.input[0]]
        if attribute(node, "axis", 0) != 0 or values.ndim != 2 or values.size < _LEAST_NUMBERS:
            continue
        if any(one.op_type != "Gather" or one.name in kept_float for one in read[name]):
            continue  # somebody reads all of it as float: two forms would not be smaller than one
        if name not in tables:
            _add_rows(model, name, values)
            tables.add(name)
        _read_rows(model, node, name)
    drop_unread(model)
    return len(tables)


def _add_rows(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    rows = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
    model.graph.initializer.extend(
        [numpy_helper.from_array(rows, f"{name}.rows"), numpy_helper.from_array(scale, f"{name}.scales")]
    )


def _read_rows(model: onnx.ModelProto, node: onnx.NodeProto, name: str) -> None:
    at = list(model.graph.node).index(node)
    level, wide, scale = (f"{node.name}.{part}" for part in ("level", "wide", "scale"))
    result, index = node.output[0], node.input[1]
    node.input[0], node.output[0] = f"{name}.rows", level
    for more, made in enumerate(
        [
            helper.make_node("Cast", [level], [wide], name=wide, to=TensorProto.FLOAT),
            helper.make_node("Gather", [f"{name}.scales", index], [scale], name=scale),
            helper.make_node("Mul", [wide, scale], [result], name=f"{node.name}.row"),
        ]
    ):
        model.graph.node.insert(at + 1 + more, made)
