"""Refits, in the order of the graph, the weights that see fewer channels, so that their outputs stay what they were."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import onnx
from onnx import numpy_helper

from compression.measuring import Feeds
from compression.pruning.channels import Channels, Consumer, Segment, Walked, attribute, indices
from compression.pruning.reconstruction import mixing
from compression.pruning.slicing import Keep, weights_of
from compression.pruning.watching import Seen, moments_across


def rows_of_weight(weight: np.ndarray, consumer: Consumer) -> np.ndarray:
    """A weight as rows of channels, `(outputs and kernel positions, channels)`."""
    repeat = consumer.channels.segments[0].repeat
    last = np.moveaxis(weight, consumer.axis, -1)
    if repeat > 1:
        last = np.moveaxis(last.reshape(*last.shape[:-1], -1, repeat), -1, -2)
    return last.reshape(-1, last.shape[-1])


def weight_of_rows(rows: np.ndarray, shape: Sequence[int], consumer: Consumer) -> np.ndarray:
    """The weight of a shape from its rows: `rows_of_weight` backwards."""
    repeat = consumer.channels.segments[0].repeat
    outer = [size for axis, size in enumerate(shape) if axis != consumer.axis]
    last = rows.reshape(*outer, repeat, -1) if repeat > 1 else rows.reshape(*outer, -1)
    if repeat > 1:
        last = np.moveaxis(last, -2, -1)
        last = last.reshape(*last.shape[:-2], -1)
    return np.ascontiguousarray(np.moveaxis(last, -1, consumer.axis))


def refit(
    whole: onnx.ModelProto, smaller: onnx.ModelProto, walked: Walked, keep: Keep, samples: Sequence[Feeds]
) -> onnx.ModelProto:
    """The smaller model with the weights of every consumer refitted to what the whole one's outputs are.

    One consumer after the other: each sees what the ones before it, refitted already, really hand on.
    """
    result = onnx.ModelProto()
    result.CopyFrom(smaller)
    nodes = {node.name: node for node in result.graph.node}
    before, places = weights_of(whole), {node.name: node for node in whole.graph.node}
    for consumer in walked.consumers:
        kept = _kept_channels(consumer, walked, keep)
        if len(kept) == _n_base(consumer.channels):
            continue
        channels = (consumer.channels, _narrow(consumer.channels, walked, keep))
        seen = moments_across(whole, result, consumer.tensor, channels, samples)
        weight = _rows_that_stay(before[places[consumer.node].input[1]], consumer, walked, keep)
        _put(result, nodes[consumer.node], consumer, weight=weight, seen=seen, kept=kept)
    return result


def _n_base(channels: Channels) -> int:
    return sum(segment.n for segment in channels.segments)


def _kept_channels(consumer: Consumer, walked: Walked, keep: Keep) -> np.ndarray:
    once = [Segment(part.group, part.n) for part in consumer.channels.segments]
    return indices(once, dict(keep), walked)


def _narrow(channels: Channels, walked: Walked, keep: Keep) -> Channels:
    segments = tuple(
        Segment(part.group, len(keep.get(walked.find(part.group), range(part.n))), part.repeat)
        for part in channels.segments
    )
    return Channels(channels.axis, segments)


def _rows_that_stay(weight: np.ndarray, consumer: Consumer, walked: Walked, keep: Keep) -> np.ndarray:
    """The whole weight with all its input channels and only the outputs that are left."""
    for cut in walked.slices:
        if (cut.node, cut.slot) == (consumer.node, 1) and cut.axis != consumer.axis:
            weight = np.take(weight, indices(cut.segments, dict(keep), walked), axis=cut.axis)
    return weight


def _put(
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    consumer: Consumer,
    *,
    weight: np.ndarray,
    seen: Seen,
    kept: np.ndarray,
) -> None:
    """Write the refitted weight, and the bias that keeps each output's mean."""
    reach = _reach(node, weight, seen.sizes)
    biased = reach is not None
    across = seen.across.central() if biased else seen.across.square / seen.across.n
    own = seen.own.central() if biased else seen.own.square / seen.own.n
    mix = mixing(across, own, kept, seen.own.n)
    rows = rows_of_weight(weight, consumer).astype(np.float64)
    fitted = rows @ mix
    shape = list(weight.shape)
    shape[consumer.axis] = len(kept) * consumer.channels.segments[0].repeat
    _set(model, node, 1, weight_of_rows(fitted, shape, consumer).astype(np.float32))
    if reach is None:
        return
    means = seen.across.means
    short = rows @ means[0] - fitted @ means[1]
    per_output = short.reshape(shape[1 - consumer.axis], -1)
    _add_bias(model, node, (per_output * reach).sum(axis=1))


def _reach(node: onnx.NodeProto, weight: np.ndarray, sizes: tuple[int, ...]) -> np.ndarray | None:
    """Share of the output positions at which each kernel position lies inside of the input; None without a bias."""
    if node.op_type == "Gemm" and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0:
        return np.ones(1)
    if node.op_type != "Conv":
        return None
    kernel, n_axes = weight.shape[2:], len(weight.shape) - 2
    strides = _list(node, "strides", [1] * n_axes)
    dilations = _list(node, "dilations", [1] * n_axes)
    pads = _list(node, "pads", [0] * 2 * n_axes)
    auto = attribute(node, "auto_pad", b"NOTSET")
    shares = []
    for axis, (size, taps) in enumerate(zip(sizes, kernel, strict=True)):
        span = (taps - 1) * dilations[axis] + 1
        before, after = pads[axis], pads[axis + n_axes]
        if auto in (b"SAME_UPPER", b"SAME_LOWER"):
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + span - size, 0)
            before = total // 2 if auto == b"SAME_UPPER" else total - total // 2
            after = total - before
        elif auto == b"VALID":
            before = after = 0
        n_out = (size + before + after - span) // strides[axis] + 1
        at = np.arange(n_out)[:, None] * strides[axis] + np.arange(taps) * dilations[axis] - before
        shares.append(((at >= 0) & (at < size)).mean(axis=0))
    return np.array([float(np.prod(parts)) for parts in product(*shares)])


def _list(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    value = attribute(node, name, default)
    assert isinstance(value, list)
    return value


def _add_bias(model: onnx.ModelProto, node: onnx.NodeProto, extra: np.ndarray) -> None:
    weights = weights_of(model)
    if len(node.input) < 3 or not node.input[2]:
        name = f"{node.name}.bias"
        model.graph.initializer.append(numpy_helper.from_array(extra.astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)
        return
    bias = weights[node.input[2]]
    _set(model, node, 2, (np.broadcast_to(bias, (*bias.shape[:-1], len(extra))) + extra).astype(np.float32))


def _set(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, value: np.ndarray) -> None:
    """Give a node a weight of its own: others may share the one that it has."""
    name = f"{node.input[slot]}.refitted.{node.name}" if _shared(model, node.input[slot]) else node.input[slot]
    tensor = numpy_helper.from_array(value, name)
    for entry in model.graph.initializer:
        if entry.name == name:
            entry.CopyFrom(tensor)
            break
    else:
        model.graph.initializer.append(tensor)
    node.input[slot] = name


def _shared(model: onnx.ModelProto, name: str) -> bool:
    return sum(list(node.input).count(name) for node in model.graph.node) > 1
