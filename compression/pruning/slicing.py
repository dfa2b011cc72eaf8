"""Takes channels out of an ONNX graph, or switches them off in place: the two must answer alike."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from compression.pruning.channels import Walked, indices

Keep = Mapping[int, np.ndarray]
"""By group: which of its channels stay, ascending. A group that is not named stays whole."""


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every constant of the graph by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def sliced(model: onnx.ModelProto, walked: Walked, keep: Keep) -> onnx.ModelProto:
    """The model without the channels that do not stay.

    Args:
        model: as walked; not changed.
        walked: what follows which channels.
        keep: the channels that stay.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.value_info[:]
    nodes = {node.name: node for node in result.graph.node}
    weights = weights_of(model)
    values: dict[tuple[str, int], np.ndarray] = {}
    for cut in walked.slices:
        key = cut.node, cut.slot
        kept = indices(cut.segments, dict(keep), walked)
        value = values.get(key, weights[nodes[cut.node].input[cut.slot]])
        if len(kept) < value.shape[cut.axis]:
            values[key] = np.take(value, kept, axis=cut.axis)
    for (name, slot), value in values.items():
        fresh = f"{nodes[name].input[slot]}.{name}.{slot}" if _uses(model, nodes[name].input[slot]) > 1 else None
        _put(result, nodes[name], slot, value, fresh)
    for name, segments in walked.depthwise:
        n_kept = len(indices(segments, dict(keep), walked))
        next(entry for entry in nodes[name].attribute if entry.name == "group").i = n_kept
    for name, entry, segments in walked.reshaped:
        target = weights[nodes[name].input[1]].copy()
        target[entry] = len(indices(segments, dict(keep), walked))
        _put(result, nodes[name], 1, target, f"{name}.shape")
    _drop_unused(result)
    return result


def switched_off(model: onnx.ModelProto, walked: Walked, keep: Keep) -> onnx.ModelProto:
    """The model in which the channels that do not stay are weighed with zeros."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes = {node.name: node for node in result.graph.node}
    weights = weights_of(model)
    for consumer in walked.consumers:
        kept = indices(consumer.channels.segments, dict(keep), walked)
        value = np.moveaxis(weights[nodes[consumer.node].input[1]].copy(), consumer.axis, 0)
        if len(kept) < len(value):
            value[np.setdiff1d(np.arange(len(value)), kept)] = 0
            _put(result, nodes[consumer.node], 1, np.moveaxis(value, 0, consumer.axis), f"{consumer.node}.switched_off")
    return result


def _uses(model: onnx.ModelProto, name: str) -> int:
    return sum(list(node.input).count(name) for node in model.graph.node)


def _put(model: onnx.ModelProto, node: onnx.NodeProto, slot: int, value: np.ndarray, fresh: str | None) -> None:
    name = fresh or node.input[slot]
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    if fresh:
        model.graph.initializer.append(tensor)
        node.input[slot] = fresh
        return
    next(entry for entry in model.graph.initializer if entry.name == name).CopyFrom(tensor)


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    used |= {name for node in model.graph.node for name in _inside(node)}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _inside(node: onnx.NodeProto) -> set[str]:
    graphs = [graph for entry in node.attribute for graph in (entry.g, *entry.graphs)]
    return {name for graph in graphs for inner in graph.node for name in (*inner.input, *_inside(inner))}
