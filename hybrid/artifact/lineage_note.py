"""How a model came to be, as an ONNX file carries it in its metadata until a publisher's manifest takes it over."""

import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hybrid.artifact.external_data import NotOnnx, View, fields
from hybrid.artifact.manifest import LineageStep
from hybrid.errors import ModelInvalid

LINEAGE_KEY: Final = "hybrid.lineage"
"""Of the entry in `metadata_props`: JSON, the steps as a manifest has them, the oldest first."""

_METADATA, _KEY, _VALUE = 14, 1, 2
_BYTES: Final = 2
_MOST_BYTES: Final = 256 << 10


def lineage_note(steps: Sequence[LineageStep]) -> str:
    """The value of that entry."""
    return msgspec.json.encode(steps).decode()


def noted_lineage(path: Path) -> tuple[LineageStep, ...]:
    """What an ONNX file says of how it came to be; empty where it says nothing. No weight is read.

    Raises:
        ModelInvalid: it says something that is no lineage, or is no ONNX model.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            said = _said(view)
        return msgspec.json.decode(said, type=tuple[LineageStep, ...]) if said else ()
    except (NotOnnx, ValueError) as exc:  # msgspec's errors among them
        raise ModelInvalid(
            f"{path}: its metadata entry {LINEAGE_KEY} is no lineage ({exc}); remove the entry, or export it again",
            path=str(path),
        ) from exc
    except OSError as exc:
        raise ModelInvalid(f"{path}: {exc.strerror or exc}; give the path of an ONNX model", path=str(path)) from exc


def _said(view: View) -> bytes:
    for number, wire, low, high in fields(view, 0, len(view)):
        if number == _METADATA and wire == _BYTES and high - low <= _MOST_BYTES:
            entry = {inner: view[start:end] for inner, kind, start, end in fields(view, low, high) if kind == _BYTES}
            if entry.get(_KEY) == LINEAGE_KEY.encode():
                return bytes(entry.get(_VALUE, b""))
    return b""
