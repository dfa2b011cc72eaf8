"""Which external files an ONNX model names, read from its encoding without loading a weight.

Design: `onnx.load` takes the whole file into memory and costs 150 ms to import; parsing fails above 2 GB. What is
wanted here are a few short strings, so the protobuf encoding itself is walked through a memory map: tags and lengths
are read, payloads that cannot hold a tensor are stepped over. The table of messages is onnx.proto's (a test compares it
with the descriptors of the onnx package).
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, overload

from devices.tflite_magic import is_tflite
from hybrid.errors import ModelInvalid

HOLDERS: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
        22: "SparseTensorProto", 23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
}  # fmt: skip
"""Message -> {field number: message}, for each field below which a tensor can lie (onnx.proto)."""

_MAX_DEPTH: Final = 100
_TENSOR_EXTERNAL_DATA: Final = 13
_TENSOR_DATA_LOCATION: Final = 14
_MODEL_IR_VERSION: Final = 1
_MODEL_GRAPH: Final = 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalData:
    """One tensor's place in an external file.

    Attributes:
        location: file name as the model gives it, relative to the model's folder.
        end_bytes: how long the file must at least be.
        n_bytes: how long the tensor is.
    """

    location: str
    end_bytes: int
    n_bytes: int = 0


class NotOnnx(Exception):
    """The bytes do not follow the encoding; the message says what was seen."""


class View(Protocol):
    """A file's bytes, of which few are read: a memory map, or one that reads pages."""

    def __len__(self) -> int:
        """Bytes in all."""
        ...

    @overload
    def __getitem__(self, at: int, /) -> int: ...

    @overload
    def __getitem__(self, at: slice, /) -> bytes: ...


def external_data(path: Path) -> tuple[ExternalData, ...]:
    """Every external place that the model file names, in the order of the file.

    Raises:
        ModelInvalid: the file is missing, empty, or no ONNX model; names the file.
    """
    if is_tflite(path):
        return ()  # one file holds it all
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return tuple(external_places(view))
    except NotOnnx as exc:
        raise ModelInvalid(
            f"{path}: not an ONNX model ({exc}); a file written by onnx.save or an exporter is wanted", path=str(path)
        ) from None
    except ValueError as exc:
        raise ModelInvalid(f"{path}: the file is empty; an ONNX model is wanted", path=str(path)) from exc
    except OSError as exc:
        reason = exc.strerror or "it cannot be read"
        raise ModelInvalid(f"{path}: {reason}; give the path of an ONNX model", path=str(path)) from exc


def external_places(view: View) -> Iterator[ExternalData]:
    """Every external place of a model whose bytes these are; raises `NotOnnx`."""
    for start, end in tensor_spans(view):
        yield from _external_of_tensor(view, start, end)


def tensor_spans(view: View) -> Iterator[tuple[int, int]]:
    """First and behind-last byte of every TensorProto, depth first over all messages that can hold some.

    Raises:
        NotOnnx: the bytes are no ONNX model.
    """
    seen: set[int] = set()
    stack: list[tuple[str, int, int, int]] = [("ModelProto", 0, len(view), 1)]
    while stack:
        kind, start, end, depth = stack.pop()
        if kind == "TensorProto":
            yield start, end
            continue
        children = HOLDERS[kind]
        for number, wire, low, high in fields(view, start, end):
            if depth == 1:
                seen.add(number)
            child = children.get(number)
            if child is None:
                continue
            if wire != _BYTES or depth >= _MAX_DEPTH:
                raise NotOnnx(f"field {number} of {kind} at byte {low} is malformed or nested too deep")
            stack.append((child, low, high, depth + 1))
    if not {_MODEL_IR_VERSION, _MODEL_GRAPH} <= seen:
        raise NotOnnx("it has no IR version or no graph")


def _external_of_tensor(view: View, start: int, end: int) -> Iterator[ExternalData]:
    entries: dict[bytes, bytes] = {}
    is_external = False
    for number, wire, low, high in fields(view, start, end):
        if number == _TENSOR_DATA_LOCATION and wire == _VARINT:
            is_external = low == 1
        elif number == _TENSOR_EXTERNAL_DATA and wire == _BYTES:
            entry = {n: view[a:b] for n, w, a, b in fields(view, low, high) if w == _BYTES and b - a <= 4096}
            entries[entry.get(1, b"")] = entry.get(2, b"")
    if not is_external:
        return
    try:
        location = entries[b"location"].decode()
        n_bytes = int(entries.get(b"length", b"0"))
        end_bytes = int(entries.get(b"offset", b"0")) + n_bytes
    except (KeyError, ValueError) as exc:
        raise NotOnnx(f"the external tensor at byte {start} has no sound location, offset and length") from exc
    yield ExternalData(location=location, end_bytes=end_bytes, n_bytes=n_bytes)


def fields(view: View, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Fields of one message: (number, wire type, start, end) of the payload; for a varint (number, 0, value, 0)."""
    at = start
    while at < end:
        tag, at = _varint(view, at, end)
        number, wire = tag >> 3, tag & 7
        low, high = at, at
        if wire == _VARINT:
            low, at = _varint(view, at, end)
        elif wire == _BYTES:
            size, low = _varint(view, at, end)
            high = at = low + size
        elif wire in (_FIXED64, _FIXED32):
            high = at = at + (8 if wire == _FIXED64 else 4)
        else:
            raise NotOnnx(f"byte {at - 1} holds a wire type that ONNX does not use")
        if number == 0 or at > end:
            raise NotOnnx(f"the field that ends at byte {at} does not fit into what holds it; cut off?")
        yield number, wire, low, high


def _varint(view: View, at: int, end: int) -> tuple[int, int]:
    """A base-128 number and the position after it."""
    value = shift = 0
    while at < end and shift < 70:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise NotOnnx(f"a number at byte {at} does not end")
