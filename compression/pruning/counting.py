"""What a graph costs, and what one channel of a group costs: multiplications and weights."""

from collections.abc import Mapping

import numpy as np
import onnx

from compression.measuring import Feeds
from compression.pruning.channels import Walked
from compression.pruning.slicing import weights_of
from compression.quantization.prepare import WEIGHTED
from compression.quantization.running import open_session, run, with_outputs


def n_products(model: onnx.ModelProto, feeds: Feeds) -> dict[str, int]:
    """How often each node with a constant weight multiplies with every element of it, on these inputs."""
    return {node.name: times for node, times in _products(model, feeds)}


def n_macs(model: onnx.ModelProto, feeds: Feeds) -> int:
    """Multiplications of every convolution and matrix product on these inputs; nodes need no names."""
    weights = weights_of(model)
    return sum(times * weights[node.input[1]].size for node, times in _products(model, feeds))


def _products(model: onnx.ModelProto, feeds: Feeds) -> list[tuple[onnx.NodeProto, int]]:
    weights = weights_of(model)
    nodes = [node for node in model.graph.node if node.op_type in WEIGHTED and node.input[1] in weights]
    values = run(open_session(with_outputs(model, [node.output[0] for node in nodes])), [], feeds)
    found = []
    for node, value in zip(nodes, values, strict=True):
        n_out = value.shape[1] if node.op_type in ("Conv", "ConvTranspose") else value.shape[-1]
        found.append((node, value.size // max(n_out, 1)))
    return found


def n_parameters(model: onnx.ModelProto) -> int:
    """Elements of all constants."""
    return sum(int(np.prod(tensor.dims, dtype=np.int64)) for tensor in model.graph.initializer)


def saved_by_channel(
    model: onnx.ModelProto, walked: Walked, times: Mapping[str, int] | None = None
) -> dict[int, float]:
    """What each channel of a group takes with it: multiplications where `times` is given, or else weights."""
    weights = weights_of(model)
    nodes = {node.name: node for node in model.graph.node}
    saved = dict.fromkeys(walked.n_channels, 0.0)
    for cut in walked.slices:
        value = weights[nodes[cut.node].input[cut.slot]]
        factor = 1 if times is None else times.get(cut.node, 0) * (cut.slot == 1)
        for part in cut.segments:
            saved[walked.find(part.group)] += factor * value.size / value.shape[cut.axis] * part.repeat
    return saved
