"""Tells by a model's bytes which engine it is for, without loading any."""

from os import PathLike
from pathlib import Path
from typing import Final, Literal

MAGIC: Final = b"TFL3"
"""File identifier of a TensorFlow Lite flatbuffer, at byte 4."""

HEADED: Final = "hybrid.tflite-head"
"""Producer of an ONNX file whose body is a TensorFlow Lite file; no engine opens such a file by itself."""

EngineWord = Literal["onnxruntime", "tflite", "tflite-head"]

_LONGEST: Final = 64
_PRODUCER: Final = b"\x12" + bytes([len(HEADED)]) + HEADED.encode()
"""Field 2 of an ONNX file, which follows the two bytes of its first."""


def is_tflite(model: bytes | str | PathLike[str]) -> bool:
    """Whether these are a TensorFlow Lite model's bytes, or the file there begins with such; False for no file."""
    return _beginning(model)[4:8] == MAGIC


def is_headed(model: bytes | str | PathLike[str]) -> bool:
    """Whether this is an ONNX file whose body is a TensorFlow Lite file (docs/artifact.md); False for no file."""
    return _beginning(model)[2:].startswith(_PRODUCER)


def is_lite(model: bytes | str | PathLike[str]) -> bool:
    """Whether a TensorFlow Lite engine computes it, whole or all but its head."""
    begins = _beginning(model)
    return begins[4:8] == MAGIC or begins[2:].startswith(_PRODUCER)


def engine_of(model: bytes | str | PathLike[str]) -> EngineWord:
    """What a manifest calls the engine of this model; onnxruntime's where nothing says otherwise."""
    if is_tflite(model):
        return "tflite"
    return "tflite-head" if is_headed(model) else "onnxruntime"


def _beginning(model: bytes | str | PathLike[str]) -> bytes:
    if isinstance(model, bytes):
        return model[:_LONGEST]
    try:
        with Path(model).open("rb") as file:
            return file.read(_LONGEST)
    except OSError:
        return b""
