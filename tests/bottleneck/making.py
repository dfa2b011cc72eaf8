"""A working encoder, decoder and prior for any cut with one float32 crossing tensor, made in a second without torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime

from compression.bottleneck.graph import Crossing
from compression.bottleneck.linear import linear_bottleneck


class SplitFiles(NamedTuple):
    """Three files, and the crossing tensor that they are for."""

    encoder: Path
    decoder: Path
    prior: Path
    crossing: Crossing


def crossing_values(model: onnx.ModelProto, tensor: str, samples: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """The values of one tensor inside a graph, one sample after another."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    if tensor not in {value.name for value in probe.graph.output}:
        probe.graph.output.append(onnx.ValueInfoProto(name=tensor))
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    return np.stack([session.run([tensor], dict(feeds))[0] for feeds in samples])


def make_split(
    folder: Path,
    model: onnx.ModelProto,
    tensor: str,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    channels: int = 4,
    stride: int = 1,
    levels: float = 64.0,
) -> SplitFiles:
    """`encoder.onnx`, `decoder.onnx` and `prior.json` for a tensor of a model, in this folder; shapes are static."""
    values = crossing_values(model, tensor, samples)
    crossing = Crossing(name=tensor, shape=values.shape[1:])
    made = linear_bottleneck(crossing, list(values), channels=channels, stride=stride, levels=levels)
    folder.mkdir(parents=True, exist_ok=True)
    files = SplitFiles(folder / "encoder.onnx", folder / "decoder.onnx", folder / "prior.json", crossing)
    onnx.save(made.encoder, files.encoder)
    onnx.save(made.decoder, files.decoder)
    files.prior.write_text(made.prior.to_json(), encoding="utf-8")
    return files
