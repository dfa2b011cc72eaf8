"""What each ONNX operator does to channels: one rule an operator, and one for those that nobody knows."""

from collections.abc import Callable
from math import prod
from typing import Final

import onnx

from compression.pruning.channels import (
    Channels,
    Consumer,
    Segment,
    Slice,
    Tensors,
    Walked,
    attribute,
    axes_of,
    number,
)

ELEMENTWISE: Final = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Softsign",
    "Gelu", "FastGelu", "QuickGelu", "Mish", "Swish", "Erf", "Abs", "Neg", "Exp", "Sqrt", "Reciprocal",
    "ThresholdedRelu", "Identity", "Dropout", "Clip", "Cast",
)  # fmt: skip
BINARY: Final = ("Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Sum", "BiasGelu")
POOLING: Final = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
NORMS: Final = ("BatchNormalization", "InstanceNormalization")
REDUCING: Final = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum", "ReduceL2")


def walk(model: onnx.ModelProto) -> Walked:
    """Every group of channels of the graph, and what follows them.

    The nodes must have names and the shapes be inferred, as `prepare` leaves a model.
    """
    walked, tensors = Walked(), Tensors(model)
    inner = {name for node in model.graph.node for name in _used_inside(node)}
    for node in model.graph.node:
        rule = RULES.get(node.op_type, _unknown) if node.domain in ("", "ai.onnx", "com.microsoft") else _unknown
        try:
            made = rule(node, tensors, walked)
        except _LostError:
            made = None
            for name in node.input:
                if name in tensors.channels:
                    walked.freeze(tensors.channels[name].segments, f"{node.op_type} ({node.name}) mixes or moves them")
        if made:
            tensors.channels[node.output[0]] = made
        for name in node.output:
            if name in inner and name in tensors.channels:
                walked.freeze(tensors.channels[name].segments, "a graph inside a node uses these channels")
    for value in model.graph.output:
        if value.name in tensors.channels:
            walked.freeze(tensors.channels[value.name].segments, "these channels are outputs of the model")
    return walked


def _used_inside(node: onnx.NodeProto) -> set[str]:
    found: set[str] = set()
    for entry in node.attribute:
        for graph in (entry.g, *entry.graphs):
            for inner in graph.node:
                found |= set(inner.input) | _used_inside(inner)
    return found


class _LostError(Exception):
    """A rule that cannot say what this node does to the channels that come in: they stay as they are."""


def _unknown(_node: onnx.NodeProto, _tensors: Tensors, _walked: Walked) -> Channels | None:
    raise _LostError


def _pass(node: onnx.NodeProto, tensors: Tensors, _walked: Walked) -> Channels | None:
    if any(name in tensors.channels for name in node.input[1:]):
        raise _LostError
    return tensors.channels.get(node.input[0])


def _conv(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    weight = tensors.weights.get(node.input[1])
    known = tensors.channels.get(node.input[0])
    bias = node.input[2] if len(node.input) > 2 else ""
    if weight is None or (bias and bias not in tensors.weights) or (known and known.axis != 1):
        raise _LostError
    n_groups = number(node, "group", 1)
    transposed = node.op_type == "ConvTranspose"
    if n_groups == 1:
        in_axis, out_axis = (0, 1) if transposed else (1, 0)
        return _weigh(node, tensors, walked, in_axis=in_axis, out_axis=out_axis, at=1)
    if not transposed and n_groups == weight.shape[0] and weight.shape[1] == 1 and known:
        for slot in (1, 2) if bias else (1,):
            walked.slices.append(Slice(node=node.name, slot=slot, axis=0, segments=known.segments))
        walked.depthwise.append((node.name, known.segments))
        return known
    raise _LostError


def _weigh(node: onnx.NodeProto, tensors: Tensors, walked: Walked, *, in_axis: int, out_axis: int, at: int) -> Channels:
    """A product with a constant weight: it consumes the channels of its input and makes a group of its own."""
    known = tensors.channels.get(node.input[0])
    weight = tensors.weights[node.input[1]]
    if known and len({segment.repeat for segment in known.segments}) > 1:
        walked.freeze(known.segments, f"{node.op_type} ({node.name}) weighs channels of different lengths")
    if known:
        walked.slices.append(Slice(node=node.name, slot=1, axis=in_axis, segments=known.segments))
        walked.consumers.append(Consumer(node=node.name, tensor=node.input[0], channels=known, axis=in_axis))
    n_out = weight.shape[out_axis]
    made = (Segment(walked.new_group(n_out, node.name), n_out),)
    walked.slices.append(Slice(node=node.name, slot=1, axis=out_axis, segments=made))
    if len(node.input) > 2 and node.input[2]:
        shape = tensors.weights[node.input[2]].shape
        if shape and shape[-1] == n_out:
            walked.slices.append(Slice(node=node.name, slot=2, axis=len(shape) - 1, segments=made))
    return Channels(at, made)


def _gemm(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    bias = node.input[2] if len(node.input) > 2 else ""
    foreign = node.input[1] not in tensors.weights or (bias and bias not in tensors.weights)
    if foreign or number(node, "transA", 0) or (known and known.axis != 1):
        raise _LostError
    transposed = bool(number(node, "transB", 0))
    return _weigh(node, tensors, walked, in_axis=int(transposed), out_axis=int(not transposed), at=1)


def _matmul(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known, rank = tensors.channels.get(node.input[0]), tensors.rank(node.input[0])
    weight = tensors.weights.get(node.input[1])
    if weight is None or weight.ndim != 2 or rank is None or (known and known.axis != rank - 1):
        raise _LostError
    return _weigh(node, tensors, walked, in_axis=0, out_axis=1, at=rank - 1)


def _norm(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    if known is None:
        return None
    if known.axis != 1 or any(name not in tensors.weights for name in node.input[1:]):
        raise _LostError
    for slot in range(1, len(node.input)):
        walked.slices.append(Slice(node=node.name, slot=slot, axis=0, segments=known.segments))
    return known


def _binary(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    carrying = [name for name in node.input if name in tensors.channels]
    if not carrying:
        return None
    ends = {tensors.from_end(name) for name in carrying}
    end = ends.pop()
    rank = tensors.rank(node.output[0]) or max(tensors.rank(name) or 0 for name in node.input)
    if ends or end is None:
        raise _LostError
    first = tensors.channels[carrying[0]]
    for name in carrying[1:]:
        reason = f"{node.op_type} ({node.name}) of channels that do not line up"
        walked.unite(first.segments, tensors.channels[name].segments, reason)
    for slot, name in enumerate(node.input):
        if name in tensors.channels:
            continue
        size = tensors.size(name, end)
        if size == 1:
            continue
        if name not in tensors.weights or size != first.n_elements:
            raise _LostError
        axis = tensors.weights[name].ndim - end
        walked.slices.append(Slice(node=node.name, slot=slot, axis=axis, segments=first.segments))
    return Channels(rank - end, first.segments)


def _reduce(node: onnx.NodeProto, tensors: Tensors, _walked: Walked) -> Channels | None:
    known, axes = tensors.channels.get(node.input[0]), axes_of(node, tensors)
    if known is None:
        return None
    if axes is None or known.axis in axes:
        raise _LostError
    keeps = node.op_type in ("Squeeze", "Unsqueeze") or number(node, "keepdims", 1)
    gone = 0 if keeps and node.op_type != "Squeeze" else sum(axis < known.axis for axis in axes)
    return Channels(known.axis - gone, known.segments)


def _pooled(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    if known and (known.axis != 1 or len(node.output) > 1):
        raise _LostError
    return _pass(node, tensors, walked)


def _concat(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    carrying = [name for name in node.input if name in tensors.channels]
    rank = tensors.rank(node.output[0]) or (tensors.rank(carrying[0]) if carrying else None)
    if not carrying:
        return None
    ends = {tensors.channels[name].axis for name in carrying}
    if rank is None or len(ends) > 1:
        raise _LostError
    axis = number(node, "axis", 1) % rank
    (at,) = ends
    if axis != at:
        raise _LostError
    segments: list[Segment] = []
    for name in node.input:
        if name in tensors.channels:
            segments += tensors.channels[name].segments
            continue
        size = tensors.size(name, rank - axis)
        if size is None:
            raise _LostError
        made = Segment(walked.new_group(size, name), size)
        walked.freeze([made], "not made by a convolution or a product with constant weights")
        segments.append(made)
    return Channels(axis, tuple(segments))


def _flatten(node: onnx.NodeProto, tensors: Tensors, _walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    if known is None:
        return None
    if number(node, "axis", 1) != 1:
        raise _LostError
    return _as_rows(known, tensors.n_positions(node.input[0]))


def _as_rows(known: Channels, n_positions: int | None) -> Channels:
    """One row a sample: each channel is as long as it has positions."""
    if known.axis != 1 or n_positions is None:
        raise _LostError
    return Channels(1, tuple(Segment(part.group, part.n, part.repeat * n_positions) for part in known.segments))


def _reshape(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    shape, target = tensors.shapes.get(node.input[0]), tensors.weights.get(node.input[1])
    if known is None:
        return None
    if shape is None or target is None or target.ndim != 1 or number(node, "allowzero", 0):
        raise _LostError
    made = _reshaped(known, shape, [int(size) for size in target], tensors.n_positions(node.input[0]))
    if target[made.axis] > 0:
        walked.reshaped.append((node.name, made.axis, made.segments))
    return made


def _reshaped(known: Channels, shape: tuple[int | None, ...], target: list[int], n_positions: int | None) -> Channels:
    """Where a reshape leaves the channels: on the last axis, on the second with other positions, or as rows."""
    n_elements = known.n_elements
    if known.axis == len(shape) - 1 and target[-1] == n_elements:
        return Channels(len(target) - 1, known.segments)
    if known.axis != 1 or len(target) < 2 or n_positions is None:
        raise _LostError
    same_rows = target[0] in {0, shape[0]}
    if len(target) == 2 and (target[1] == n_elements * n_positions or (same_rows and target[1] == -1)):
        return _as_rows(known, n_positions)
    positions = target[2:]
    if same_rows and target[1] in {0, n_elements} and (-1 in positions or prod(positions) == n_positions):
        return known
    raise _LostError


def _transpose(node: onnx.NodeProto, tensors: Tensors, _walked: Walked) -> Channels | None:
    known, order = tensors.channels.get(node.input[0]), attribute(node, "perm")
    if known is None:
        return None
    if not isinstance(order, list):
        raise _LostError
    return Channels(order.index(known.axis), known.segments)


def _softmax(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known, rank = tensors.channels.get(node.input[0]), tensors.rank(node.input[0])
    if known and (rank is None or number(node, "axis", -1) % rank == known.axis):
        raise _LostError
    return _pass(node, tensors, walked)


def _pad(node: onnx.NodeProto, tensors: Tensors, _walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    amounts = tensors.weights.get(node.input[1])
    rank = tensors.rank(node.input[0])
    if known is None:
        return None
    whole = amounts is not None and rank is not None and amounts.size == 2 * rank
    if not whole or amounts is None or rank is None or amounts[known.axis] or amounts[known.axis + rank]:
        raise _LostError
    return known


def _resize(node: onnx.NodeProto, tensors: Tensors, walked: Walked) -> Channels | None:
    known = tensors.channels.get(node.input[0])
    scales = tensors.weights.get(node.input[2]) if len(node.input) == 3 else None
    if known and (scales is None or scales.size <= known.axis or scales[known.axis] != 1):
        raise _LostError
    return _pass(node, tensors, walked)


Rule = Callable[[onnx.NodeProto, Tensors, Walked], Channels | None]
RULES: Final[dict[str, Rule]] = {
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _gemm, "MatMul": _matmul, "Concat": _concat, "Flatten": _flatten,
    "Reshape": _reshape, "Transpose": _transpose, "Softmax": _softmax, "Pad": _pad, "Resize": _resize,
    "Squeeze": _reduce,
    **dict.fromkeys(ELEMENTWISE, _pass), **dict.fromkeys(BINARY, _binary), **dict.fromkeys(POOLING, _pooled),
    **dict.fromkeys(NORMS, _norm), **dict.fromkeys(REDUCING, _reduce),
}  # fmt: skip
