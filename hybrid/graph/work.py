"""Work of one operator as a FLOP proxy: multiply-adds for matrix operators, elements for the rest.

It orders cuts by depth and is shown to people. It never decides between plans: heads and tails are timed for that.
"""

from collections.abc import Iterable, Mapping
from math import prod

import onnx

from hybrid.graph.model_file import bodies_of

_FREE = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant", "Dropout"})
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "ConvInteger": 1, "QLinearConv": 3, "DeformConv": 1}
_PRODUCTS = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "FusedMatMul": 1}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

Shapes = Mapping[str, tuple[int | None, ...]]


def work_of(node: onnx.NodeProto, shapes: Shapes) -> float:
    """Work of `node` in floating-point operations, given the shapes known of its tensors; unknown sizes count as 1."""
    bodies = bodies_of(node)
    if bodies:
        inner = [sum(work_of(step, shapes) for step in body.node) for body in bodies]
        return float(max(inner)) + 1.0
    if node.op_type in _FREE:
        return 0.0
    out = _elements(node.output, shapes)
    if node.op_type in _CONVOLUTIONS:
        weight = _shape(node, _CONVOLUTIONS[node.op_type], shapes)
        return 2.0 * out * prod(_sizes(weight[1:]))
    if node.op_type == "ConvTranspose":
        return 2.0 * prod(_sizes(_shape(node, 0, shapes))) * prod(_sizes(_shape(node, 1, shapes)[1:]))
    if node.op_type in _PRODUCTS:
        return 2.0 * out * _inner_size(node, shapes)
    if node.op_type in _GATES:
        sequence, recurrence = _sizes(_shape(node, 0, shapes)), _sizes(_shape(node, 2, shapes))
        weight = _sizes(_shape(node, 1, shapes))
        return 2.0 * prod(sequence[:2]) * (prod(weight) + prod(recurrence))
    return float(max(out, _elements(node.input[:1], shapes)))


def _inner_size(node: onnx.NodeProto, shapes: Shapes) -> int:
    """The length that a matrix product sums over, seen on its first operand."""
    first = _sizes(_shape(node, 0, shapes))
    if not first:
        return 1
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return first[0] if transposed else first[-1]


def _shape(node: onnx.NodeProto, index: int, shapes: Shapes) -> tuple[int | None, ...]:
    return shapes.get(node.input[index], ()) if index < len(node.input) else ()


def _sizes(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in shape)


def _elements(names: Iterable[str], shapes: Shapes) -> int:
    return sum(prod(_sizes(shapes[name])) for name in names if name in shapes)
