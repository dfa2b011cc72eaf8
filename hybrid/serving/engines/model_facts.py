"""What is known of a model from its files alone: the memory it will take, and whether its run time is bounded."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from devices.tflite_magic import is_headed, is_tflite
from hybrid.artifact.digest import files_of_model
from hybrid.errors import ModelInvalid

if TYPE_CHECKING:
    import onnx

_READ_BYTES: Final = 16 << 20
"""A larger file without external data is not parsed: it is far from tiny, and its size says enough."""

_UNBOUNDED: Final = frozenset({
    "Loop", "Scan", "If", "Range", "Tile", "Expand", "ConstantOfShape", "Resize", "Upsample", "OneHot", "Pad",
    "NonZero", "NonMaxSuppression", "Unique", "RandomNormal", "RandomUniform", "GridSample", "RoiAlign", "StringSplit",
    "SequenceMap", "ScatterND", "CenterCropPad", "DFT", "STFT", "HannWindow", "HammingWindow", "BlackmanWindow",
})  # fmt: skip
"""Operators whose work follows from the values of their inputs, not only from the shapes."""

_STANDARD: Final = frozenset({"", "ai.onnx", "com.microsoft"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts of one model file.

    Attributes:
        n_bytes: file and external weights; an estimate of its session's memory.
        is_bounded: the shapes of its inputs alone say how long it runs, so that a short run stays short.
    """

    n_bytes: int
    is_bounded: bool


def facts_of(path: Path, *, wants_bounds: bool = True) -> ModelFacts:
    """Read the facts of a model file; milliseconds, so call it where opening would be called.

    Args:
        path: the model file.
        wants_bounds: whether its run time matters; where it does not, the sizes of files say enough, and the library
            that parses models is not loaded.

    Raises:
        ModelInvalid: the file cannot be read.
    """
    try:
        n_bytes = path.stat().st_size
        is_alone = sum(file.is_file() for file in path.parent.iterdir()) == 1
    except OSError as exc:
        raise ModelInvalid(f"{path} cannot be read: {exc.strerror}", path=str(path)) from exc
    if is_tflite(path):
        return ModelFacts(n_bytes=n_bytes, is_bounded=False)  # no run of it ends early: never on the event loop
    if is_headed(path):
        return ModelFacts(n_bytes=sum(file.size for file in files_of_model(path)), is_bounded=False)
    if is_alone and n_bytes > _READ_BYTES:
        return ModelFacts(n_bytes=n_bytes, is_bounded=False)
    if not wants_bounds:
        return ModelFacts(n_bytes=sum(file.path.stat().st_size for file in files_of_model(path)), is_bounded=False)
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, DecodeError) as exc:
        raise ModelInvalid(f"{path} is no ONNX model: {exc}", path=str(path)) from exc
    return ModelFacts(n_bytes=n_bytes + _external_bytes(model), is_bounded=_is_bounded(model))


def _external_bytes(model: "onnx.ModelProto") -> int:
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length" and entry.value.isdigit()
    )


def _is_bounded(model: "onnx.ModelProto") -> bool:
    if model.functions:
        return False
    return all(node.domain in _STANDARD and node.op_type not in _UNBOUNDED for node in model.graph.node)
