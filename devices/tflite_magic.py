"""Tells a TensorFlow Lite model by its bytes, without loading any engine."""

from os import PathLike
from pathlib import Path
from typing import Final

MAGIC: Final = b"TFL3"
"""File identifier of the flatbuffer, at byte 4."""


def is_tflite(model: bytes | str | PathLike[str]) -> bool:
    """Whether these are a TensorFlow Lite model's bytes, or the file there begins with such; False for no file."""
    if isinstance(model, bytes):
        return model[4:8] == MAGIC
    try:
        with Path(model).open("rb") as file:
            return file.read(8)[4:8] == MAGIC
    except OSError:
        return False
