"""Ranges of activations from samples, one sample in memory at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnxruntime import InferenceSession

from compression.errors import NotQuantizable
from compression.measuring import Feeds
from compression.quantization.recipe import Ranges
from compression.quantization.running import check_samples, open_session, run, with_outputs

Range: TypeAlias = tuple[float, float]

_N_BINS = 4096
_N_COUNTED = 1 << 16
"""Values of one tensor that one sample adds to its histogram, evenly spread."""
_COVERED = 0.9999
_N_LEVELS = 256
_THRESHOLDS = np.linspace(0.2, 1.0, 65)


@dataclass(slots=True)
class _Seen:
    low: float = np.inf
    high: float = -np.inf
    counts: np.ndarray | None = None


def activation_ranges(model: onnx.ModelProto, samples: Sequence[Feeds], ranges: Ranges) -> dict[str, Range]:
    """The range of every float activation of a prepared model.

    Two passes where a histogram is needed: the extremes are its edges.

    Raises:
        NotQuantizable: samples that do not fit, or an activation that is NaN or infinite.
    """
    check_samples(model, samples)
    names = float_tensors(model)
    made = [name for name in names if name not in {value.name for value in model.graph.input}]
    session = open_session(with_outputs(model, made))
    seen = {name: _Seen() for name in names}
    for number, feeds in enumerate(samples):
        for name, values in _tensors(session, made, feeds, seen):
            _widen(seen[name], values, f"sample {number}: tensor {name!r}")
    if ranges != "minmax":
        for feeds in samples:
            for name, values in _tensors(session, made, feeds, seen):
                _count(seen[name], values)
    return {name: _range(one, ranges) if one.low <= one.high else (0.0, 0.0) for name, one in seen.items()}


def float_tensors(model: onnx.ModelProto) -> list[str]:
    """Inputs and results of nodes that are float, in the graph's order."""
    weights = {tensor.name for tensor in model.graph.initializer}
    known = {v.name: v for part in (model.graph.input, model.graph.value_info, model.graph.output) for v in part}
    order = [value.name for value in model.graph.input]
    order += [name for node in model.graph.node for name in node.output]
    return [
        name
        for name in dict.fromkeys(order)
        if name in known and name not in weights and known[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    ]


def _tensors(
    session: InferenceSession, made: list[str], feeds: Feeds, wanted: Mapping[str, _Seen]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in feeds.items():
        if name in wanted:
            yield name, np.asarray(values)
    yield from zip(made, run(session, made, feeds), strict=True)


def _widen(seen: _Seen, values: np.ndarray, where: str) -> None:
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NotQuantizable(f"{where} holds NaN or infinity, which no range covers; take the sample out or keep float")
    seen.low, seen.high = min(seen.low, low, 0.0), max(seen.high, high, 0.0)


def _count(seen: _Seen, values: np.ndarray) -> None:
    span = seen.high - seen.low
    if span <= 0.0 or values.size == 0:
        return
    flat = values.reshape(-1)
    if flat.size > _N_COUNTED:
        flat = flat[np.linspace(0, flat.size - 1, _N_COUNTED).astype(np.int64)]
    at = ((flat - np.float32(seen.low)) * np.float32(_N_BINS / span)).astype(np.int64)
    counted = np.bincount(np.clip(at, 0, _N_BINS - 1), minlength=_N_BINS)
    seen.counts = counted if seen.counts is None else seen.counts + counted


def _range(seen: _Seen, ranges: Ranges) -> Range:
    if ranges == "minmax" or seen.counts is None:
        return seen.low, seen.high
    edges = np.linspace(seen.low, seen.high, _N_BINS + 1)
    if ranges == "percentile":
        return _percentile(seen.counts, edges)
    centres = (edges[:-1] + edges[1:]) / 2
    most = max(-seen.low, seen.high)
    candidates = [(max(seen.low, -most * t), min(seen.high, most * t)) for t in _THRESHOLDS]
    loss = _divergence if ranges == "entropy" else _squared_error
    if ranges == "entropy":
        seen.counts[np.clip(int(-seen.low * _N_BINS / (seen.high - seen.low)), 0, _N_BINS - 1)] = 0
    losses = [loss(seen.counts.astype(np.float64), centres, candidate) for candidate in candidates]
    return candidates[int(np.argmin(losses))]


def _percentile(counts: np.ndarray, edges: np.ndarray) -> Range:
    share = np.cumsum(counts) / counts.sum()
    low = edges[np.searchsorted(share, 1.0 - _COVERED)]
    high = edges[min(int(np.searchsorted(share, _COVERED)) + 1, _N_BINS)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _squared_error(counts: np.ndarray, centres: np.ndarray, candidate: Range) -> float:
    """Of values that are cut off, and of the rounding of the others."""
    low, high = candidate
    beyond = centres - np.clip(centres, low, high)
    step = (high - low) / (_N_LEVELS - 1)
    inside = counts[beyond == 0.0].sum()
    return float((counts * beyond**2).sum() + inside * step**2 / 12)


def _divergence(counts: np.ndarray, centres: np.ndarray, candidate: Range) -> float:
    """Kullback-Leibler, of the distribution from what rounding to 256 levels within the candidate makes of it.

    Source: S. Migacz, 8-bit inference with TensorRT, GTC 2017. Zeros are left out (behind a Relu they are half of
    all values and exact in any range), and a value's mass is spread over its level's width, so that a range too wide
    costs as one that cuts does.
    """
    low, high = candidate
    kept = (centres >= low) & (centres <= high)
    inside = counts[kept]
    cut = inside.copy()
    cut[0] += counts[centres < low].sum()
    cut[-1] += counts[centres > high].sum()
    level = np.minimum((np.arange(inside.size) * _N_LEVELS) // inside.size, _N_LEVELS - 1)
    sums = np.bincount(level, weights=inside, minlength=_N_LEVELS)
    widths = np.bincount(level, minlength=_N_LEVELS)
    p, q = cut + 0.5, (sums / widths)[level] + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())
