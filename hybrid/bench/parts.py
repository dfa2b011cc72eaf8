"""The measured parts of a model, as they are kept: what the simulation is fed with, so that it can be repeated."""

from pathlib import Path
from typing import Final

import msgspec

from hybrid.errors import BadMessage
from hybrid.partition.wiring import Wiring

SCHEMA: Final = 1


class CodecPart(msgspec.Struct, frozen=True, kw_only=True):
    """One codec at one cut.

    Attributes:
        codec: its name; `none` is raw little-endian bytes.
        n_bytes: encoded bytes of each measured input.
        encode_s: median seconds of encoding on this machine.
        decode_s: median seconds of decoding.
        is_lossy: whether it may change values.
        drop: upper end of the calibrated 95 % interval of the accuracy drop; None for a lossy one without calibration.
    """

    codec: str
    n_bytes: tuple[int, ...]
    encode_s: float = 0.0
    decode_s: float = 0.0
    is_lossy: bool = False
    drop: float | None = 0.0


class CutPart(msgspec.Struct, frozen=True, kw_only=True):
    """One cut.

    Attributes:
        cut: its id.
        kind: `input` or `interior`.
        tensors: names of what crosses.
        depth_ratio: share of the work before it.
        raw_bytes: of what crosses.
        reply_bytes: of what the tail answers.
        reply_coded_bytes: of the same, without loss, as a gateway sends large replies; mean over the measured inputs.
        reply_encode_s: median seconds of that on this machine.
        reply_decode_s: median seconds of undoing it.
        head_s: seconds of the head as one session; 0 for the input cut.
        tail_s: seconds of the tail as one session.
        head_layers: numbers of the layers in the head.
        codecs: what was measured here.
    """

    cut: str
    kind: str
    tensors: tuple[str, ...]
    depth_ratio: float
    raw_bytes: int
    reply_bytes: int
    reply_coded_bytes: int = 0
    reply_encode_s: float = 0.0
    reply_decode_s: float = 0.0
    head_s: float
    tail_s: float
    head_layers: tuple[int, ...] = ()
    codecs: tuple[CodecPart, ...] = ()


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One operator of the whole model, run unfused: what layer-wise predictors are made from.

    Attributes:
        op: its type.
        work: floating-point operations (a proxy).
        n_bytes: that it reads and writes.
        seconds: as onnxruntime's profiler shows it.
    """

    op: str
    work: float
    n_bytes: int
    seconds: float


class ModelParts(msgspec.Struct, frozen=True, kw_only=True):
    """All that was measured of one model for one shape of input.

    Attributes:
        name: short, for tables.
        title: what it is, and where its weights come from.
        data: what the measured inputs were.
        model_digest: its digest.
        shape_key: canonical text.
        whole_s: seconds of the whole model as one session.
        spread_ratio: (95 % - 5 %) / median of single runs of it: how noisy this machine was.
        metric: how drops were counted.
        n_samples: inputs that codecs were calibrated on.
        cuts: the input cut first.
        layers: of the whole model, in the order of `wiring`'s nodes.
        wiring: the graph as numbers; for peers that cut it by themselves.
        machine: what measured it: processor, cores, versions.
        n_threads: threads of the engine.
    """

    name: str
    title: str = ""
    data: str = ""
    model_digest: str
    shape_key: str
    whole_s: float
    spread_ratio: float
    metric: str = ""
    n_samples: int = 0
    cuts: tuple[CutPart, ...]
    layers: tuple[Layer, ...]
    wiring: Wiring
    machine: dict[str, str]
    n_threads: int = 1
    schema: int = SCHEMA


def write(parts: ModelParts, folder: Path) -> Path:
    """Keeps the parts as `NAME.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{parts.name}.json"
    path.write_bytes(msgspec.json.encode(parts) + b"\n")
    return path


def read(path: Path) -> ModelParts:
    """The parts that `write` kept.

    Raises:
        BadMessage: not there, no such file, or of another version.
    """
    try:
        parts = msgspec.json.decode(path.read_bytes(), type=ModelParts)
    except (OSError, msgspec.DecodeError) as exc:
        raise BadMessage(f"{path}: no measured parts ({exc}); measure them with `hybrid bench MODEL --data …`") from exc
    if parts.schema != SCHEMA:
        raise BadMessage(f"{path}: parts of version {parts.schema}, this is {SCHEMA}; measure them anew")
    return parts
