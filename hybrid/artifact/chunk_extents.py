"""Where the tensors of a model file lie: the places at which its chunks begin."""

from collections.abc import Iterator
from typing import Final

from hybrid.artifact.external_data import NotOnnx, View, external_places, fields, tensor_spans

Extent = tuple[int, int]
"""Offset and length of a tensor's bytes."""

MIN_TENSOR_BYTES: Final = 64
"""A smaller one costs less to send than to name."""
MAX_EXTENTS: Final = 1 << 17
_PAYLOADS: Final = frozenset({4, 5, 7, 9, 10, 11})
"""Fields of TensorProto that hold numbers: float, int32, int64, raw, double, uint64 (a test compares with onnx)."""
_BYTES: Final = 2
_TFLITE_MAGIC: Final = b"TFL3"
_BUFFERS_SLOT: Final = 4
_DATA_SLOT, _OFFSET_SLOT, _SIZE_SLOT = 0, 1, 2


def extents_of(view: View) -> list[Extent]:
    """The tensors inside an ONNX or TFLite file, sorted and apart from one another; nothing for any other file."""
    size = len(view)
    try:
        if size >= 8 and view[4:8] == _TFLITE_MAGIC:
            return apart(_buffers(view), size)
        return apart(_payloads(view), size)
    except (NotOnnx, IndexError):
        return []


def external_extents(model: View, location: str, size: int) -> list[Extent]:
    """Where the tensors of an ONNX model lie in an external file that it names so; nothing if it names none there."""
    try:
        places = [(p.end_bytes - p.n_bytes, p.n_bytes) for p in external_places(model) if p.location == location]
    except NotOnnx:
        return []
    return apart(iter(places), size)


def apart(found: Iterator[Extent], size: int) -> list[Extent]:
    """Sorted, inside the file, none overlapping one before it; a file with far too many has none."""
    kept: list[Extent] = []
    for extent in found:
        kept.append(extent)
        if len(kept) > MAX_EXTENTS:
            return []
    extents: list[Extent] = []
    end = 0
    for offset, length in sorted(kept):
        if length >= MIN_TENSOR_BYTES and offset >= end and offset + length <= size:
            extents.append((offset, length))
            end = offset + length
    return extents


def _payloads(view: View) -> Iterator[Extent]:
    for start, end in tensor_spans(view):
        for number, wire, low, high in fields(view, start, end):
            if wire == _BYTES and number in _PAYLOADS:
                yield low, high - low


def _buffers(view: View) -> Iterator[Extent]:
    """Buffers of a TFLite flatbuffer, those inside and those that lie behind it by offset."""
    model = _number(view, 0, 4)
    at = _slot(view, model, _BUFFERS_SLOT)
    if not at:
        return
    vector = at + _number(view, at, 4)
    n_buffers = _number(view, vector, 4)
    for index in range(min(n_buffers, MAX_EXTENTS + 1)):
        place = vector + 4 + 4 * index
        buffer = place + _number(view, place, 4)
        data = _slot(view, buffer, _DATA_SLOT)
        if data:
            start = data + _number(view, data, 4)
            yield start + 4, _number(view, start, 4)
        offset, size = _slot(view, buffer, _OFFSET_SLOT), _slot(view, buffer, _SIZE_SLOT)
        if offset and size:
            yield _number(view, offset, 8), _number(view, size, 8)


def _slot(view: View, table: int, slot: int) -> int:
    """Where a field of a flatbuffer's table lies; 0 when it is not set."""
    vtable = table - int.from_bytes(_some(view, table, 4), "little", signed=True)
    if vtable < 0:
        raise IndexError(vtable)
    entry = 4 + 2 * slot
    if entry + 2 > _number(view, vtable, 2):
        return 0
    place = _number(view, vtable + entry, 2)
    return table + place if place else 0


def _number(view: View, at: int, n_bytes: int) -> int:
    return int.from_bytes(_some(view, at, n_bytes), "little")


def _some(view: View, at: int, n_bytes: int) -> bytes:
    if not 0 <= at <= len(view) - n_bytes:
        raise IndexError(at)
    return bytes([view[at + index] for index in range(n_bytes)])
