"""Cross-layer equalisation: channels of one layer and the next share their ranges, so that no channel has few levels.

Source: M. Nagel, M. van Baalen, T. Blankevoort, M. Welling, Data-Free Quantization Through Weight Equalization and
Bias Correction, ICCV 2019, section 4.1; for Relu6 with a bound of ours, see `_bounds`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from compression.measuring import Feeds
from compression.quantization.editing import Weights, attribute, copied, readers
from compression.quantization.running import open_session, run, with_outputs

_N_SWEEPS = 20
_SETTLED = 1e-3
_MOST = 64.0
"""No channel is scaled by more than this in all: the paper's formula has no bound, a dead channel no end."""
_MARGIN = 1.5

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
"""f(s·x) = s·f(x) for each channel's s > 0."""


@dataclass(slots=True)
class _Pair:
    first: onnx.NodeProto
    second: onnx.NodeProto
    clip: onnx.NodeProto | None
    scale: np.ndarray


def equalize(prepared: onnx.ModelProto, samples: Sequence[Feeds] = ()) -> tuple[onnx.ModelProto, int]:
    """A model that computes the same with weights of like ranges, and how many pairs of layers were made alike.

    Goes through Relu, pooling and depthwise convolutions. A Clip (Relu6) is no multiple of itself: a channel that it
    cuts on any sample keeps its scale, the others stay below its limit with a third to spare; without samples such
    pairs are left out.
    """
    model = copied(prepared)
    weights = Weights(model)
    read = readers(model)
    pairs = _pairs(model, weights, read, with_clips=bool(samples))
    limits = _bounds(model, pairs, weights, samples)
    for pair in pairs:
        weights.own(pair.first, 1, read)
        weights.own(pair.second, 1, read)
        if len(pair.first.input) > 2 and pair.first.input[2]:
            weights.own(pair.first, 2, read)
    for _ in range(_N_SWEEPS):
        moved = max((_equalize(pair, weights, limits) for pair in pairs), default=0.0)
        if moved < _SETTLED:
            break
    return model, len(pairs)


def _pairs(
    model: onnx.ModelProto, weights: Weights, read: Mapping[str, list[onnx.NodeProto]], *, with_clips: bool
) -> list[_Pair]:
    answers = {value.name for value in model.graph.output}
    pairs = []
    for first in model.graph.node:
        if first.op_type not in ("Conv", "Gemm") or not _has_weights(first, weights):
            continue
        at, clip, node, squeezed = first.output[0], None, first, first.op_type == "Gemm"
        while at not in answers and len(read[at]) == 1:
            node = read[at][0]
            if node.op_type == "Clip" and clip is None and with_clips and _limit(node, weights) is not None:
                clip = node
            elif node.op_type not in _HOMOGENEOUS and not (node.op_type == "Flatten" and squeezed):
                break
            squeezed = squeezed or node.op_type == "GlobalAveragePool"
            at = node.output[0]
        fits = node.op_type == "Conv" or (node.op_type == "Gemm" and squeezed)
        if node is not first and fits and node.input[0] == at and _has_weights(node, weights):
            n_channels = _reach_out(first, weights).size
            if _reach_in(node, weights).size == n_channels:
                pairs.append(_Pair(first, node, clip, np.ones(n_channels, np.float32)))
    return pairs


def _has_weights(node: onnx.NodeProto, weights: Weights) -> bool:
    constant = all(name in weights for name in node.input[1:] if name)
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    biased = len(node.input) > 2 and node.input[2]
    flat = not biased or (node.input[2] in weights and weights[node.input[2]].ndim == 1)
    return constant and node.input[1] in weights and plain and flat and not attribute(node, "transA", 0)


def _limit(clip: onnx.NodeProto, weights: Weights) -> float | None:
    """The upper end of a Clip whose lower one is zero."""
    if len(clip.input) < 3 or clip.input[1] not in weights or clip.input[2] not in weights:
        return None
    low, high = float(weights[clip.input[1]]), float(weights[clip.input[2]])
    return high if low == 0.0 and high > 0.0 else None


def _bounds(
    model: onnx.ModelProto, pairs: list[_Pair], weights: Weights, samples: Sequence[Feeds]
) -> dict[str, np.ndarray]:
    """For each Clip the least scale of each channel that keeps it from cutting; 0 where the samples show it cutting."""
    clips = [pair.clip for pair in pairs if pair.clip is not None]
    if not clips:
        return {}
    session = open_session(with_outputs(model, [clip.input[0] for clip in clips]))
    highest: list[np.ndarray | None] = [None] * len(clips)
    for feeds in samples:
        for number, values in enumerate(run(session, [clip.input[0] for clip in clips], feeds)):
            most = values.max(axis=(0, *range(2, values.ndim)))
            before = highest[number]
            highest[number] = most if before is None else np.maximum(before, most)
    bounds = {}
    for clip, most in zip(clips, highest, strict=True):
        assert most is not None
        needed = np.maximum(most, 0.0) * _MARGIN / (_limit(clip, weights) or 1.0)
        bounds[clip.name] = np.where(needed >= 1.0, 0.0, needed)
    return bounds


def _equalize(pair: _Pair, weights: Weights, bounds: Mapping[str, np.ndarray]) -> float:
    """One step of one pair; how far its largest logarithm moved."""
    out, into = _reach_out(pair.first, weights), _reach_in(pair.second, weights)
    alive = (out > 0) & (into > 0)
    step = np.where(alive, np.sqrt(np.where(alive, out, 1.0) / np.where(alive, into, 1.0)), 1.0)
    whole = np.clip(pair.scale * step, 1 / _MOST, _MOST)
    if pair.clip is not None:
        bound = bounds[pair.clip.name]
        whole = np.where(bound > 0.0, np.maximum(whole, bound), 1.0)
    step = (whole / pair.scale).astype(np.float32)
    pair.scale = whole.astype(np.float32)
    _scale_out(pair.first, weights, 1.0 / step)
    _scale_in(pair.second, weights, step)
    return float(np.abs(np.log(step)).max())


def _reach_out(node: onnx.NodeProto, weights: Weights) -> np.ndarray:
    values = np.abs(weights[node.input[1]])
    if node.op_type == "Gemm":
        return np.asarray(values.max(axis=1 if attribute(node, "transB", 0) else 0))
    return np.asarray(values.reshape(values.shape[0], -1).max(axis=1))


def _reach_in(node: onnx.NodeProto, weights: Weights) -> np.ndarray:
    values = np.abs(weights[node.input[1]])
    if node.op_type == "Gemm":
        return np.asarray(values.max(axis=0 if attribute(node, "transB", 0) else 1))
    grouped = values.reshape(attribute(node, "group", 1), -1, *values.shape[1:])
    return np.asarray(grouped.max(axis=(1, *range(3, grouped.ndim)))).reshape(-1)


def _scale_out(node: onnx.NodeProto, weights: Weights, scale: np.ndarray) -> None:
    values = weights[node.input[1]]
    if node.op_type == "Gemm":
        shape: tuple[int, ...] = (-1, 1) if attribute(node, "transB", 0) else (1, -1)
    else:
        shape = (-1, *[1] * (values.ndim - 1))
    weights[node.input[1]] = values * scale.reshape(shape)
    if len(node.input) > 2 and node.input[2]:
        weights[node.input[2]] = weights[node.input[2]] * scale


def _scale_in(node: onnx.NodeProto, weights: Weights, scale: np.ndarray) -> None:
    values = weights[node.input[1]]
    if node.op_type == "Gemm":
        weights[node.input[1]] = values * scale.reshape((1, -1) if attribute(node, "transB", 0) else (-1, 1))
        return
    n_groups = attribute(node, "group", 1)
    grouped = values.reshape(n_groups, -1, *values.shape[1:])
    shaped = scale.reshape(n_groups, 1, values.shape[1], *[1] * (values.ndim - 2))
    weights[node.input[1]] = (grouped * shaped).reshape(values.shape)
