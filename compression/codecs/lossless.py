"""The codec `lossless`: exactly the same bits back, in as few bytes as a few milliseconds allow.

Forms, each a first byte: raw; strings through zstd; uint8 planes predicted from their neighbours; float planes of at
most 256 bit patterns as palettes and predicted levels; byte planes, each through zstd where that pays.
"""

import struct
from typing import Final

import numpy as np

from compression.codecs import entropy, palette, planes, raw
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload
from compression.tensor import BYTES, NUMPY_OF, TensorSpec

_RAW: Final = 0
_STRINGS: Final = 1
_BYTE_PLANES: Final = 2
_IMAGE: Final = 3
_PALETTE: Final = 4

_LENGTH: Final = struct.Struct("<I")
_SMALL_BYTES: Final = 64
"""Below this no form is smaller than raw."""

_MIN_PALETTE: Final = 4096
"""Elements below which the palette's tables cost more time than they are worth."""

_SAMPLE_BYTES: Final = 1 << 15
_PAYS_RATIO: Final = 0.97
_MAX_EXPANSION: Final = 256
"""Strings may grow by this factor when decoded; their raw size is not in the tensor's spec, so a limit bounds it."""


class LosslessCodec:
    """Codec `lossless`."""

    name: Final = "lossless"
    lossy: Final = False

    def encode(self, array: np.ndarray) -> bytes:
        """The smallest form that is quickly found; at worst raw and one byte."""
        datatype, values = raw.canonical(array)
        plain: Payload = raw.raw_bytes(values) if datatype == BYTES else raw.byte_view(values).data
        form = None
        if len(plain) > _SMALL_BYTES:
            if datatype == BYTES:
                form = _squeezed_strings(plain)
            elif datatype == "UINT8":
                form = _image(values)
            elif datatype in ("FP32", "FP16"):
                form = (_palette_image(values) if values.size >= _MIN_PALETTE else None) or _byte_planes(values)
            else:
                form = _byte_planes(values)
        if form is None or len(form) > len(plain):
            return b"".join((bytes([_RAW]), plain))
        return form

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The very tensor that was encoded."""
        shape = raw.known_shape(spec)
        if not len(payload):
            raise CorruptPayload(f"{spec.name}: no bytes; a lossless payload begins with its form")
        form, rest = payload[0], memoryview(payload)[1:]
        if form == _RAW:
            return raw.from_raw(rest, spec)
        if form == _STRINGS and spec.dtype == BYTES:
            return _from_squeezed_strings(rest, spec)
        if spec.dtype == BYTES or not spec.n_bytes:
            raise CorruptPayload(f"{spec.name}: form {form} cannot hold {spec.dtype} {list(shape)}")
        if form == _BYTE_PLANES:
            return raw.checked(_from_byte_planes(rest, spec, shape), spec)
        if form == _IMAGE and spec.dtype == "UINT8":
            return _from_image(rest, shape)
        if form == _PALETTE and spec.dtype in ("FP32", "FP16"):
            return _from_palette_image(rest, spec, shape)
        raise CorruptPayload(f"{spec.name}: unknown form {form} for {spec.dtype}")


def _squeezed_strings(plain: Payload) -> bytes | None:
    frame = entropy.squeeze(plain)
    if len(plain) > _MAX_EXPANSION * len(frame):
        return None
    return bytes([_STRINGS]) + _LENGTH.pack(len(plain)) + frame if len(plain) <= 0xFFFFFFFF else None


def _from_squeezed_strings(rest: memoryview, spec: TensorSpec) -> np.ndarray:
    n_bytes, frame = _prefixed(rest)
    if n_bytes > _MAX_EXPANSION * len(frame):
        raise CorruptPayload(
            f"{spec.name}: {len(frame)} bytes claim to hold {n_bytes}, over {_MAX_EXPANSION} times more"
        )
    return raw.from_raw(entropy.expand(frame, n_bytes), spec)


def _byte_planes(values: np.ndarray) -> bytes | None:
    """Byte planes of wider numbers, each as it is or through zstd; None where a sample shows that none pays."""
    sample = planes.shuffled(values.reshape(-1)[:_SAMPLE_BYTES])
    pays = [len(entropy.squeeze(plane.data)) < _PAYS_RATIO * plane.size for plane in sample]
    if not any(pays):
        return None
    head, body = [bytes([_BYTE_PLANES])], []
    for plane, worth in zip(planes.shuffled(values), pays, strict=True):
        piece = entropy.squeeze(plane.data) if worth else plane.data
        worth = worth and len(piece) < plane.size
        piece = piece if worth else plane.data
        head.append(_LENGTH.pack(len(piece) if worth else 0))
        body.append(piece)
    return b"".join(head + body)


def _from_byte_planes(rest: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(shape, NUMPY_OF[spec.dtype])
    by_element = raw.byte_view(array).reshape(-1, array.itemsize)
    lengths: list[int] = []
    for _ in range(array.itemsize):
        length, rest = _prefixed(rest)
        lengths.append(length)
    if len(rest) != sum(length or array.size for length in lengths):
        raise CorruptPayload(f"{spec.name}: byte planes of {lengths} bytes do not fill the {len(rest)} that came")
    for index, length in enumerate(lengths):
        piece, rest = rest[: length or array.size], rest[length or array.size :]
        by_element[:, index] = np.frombuffer(entropy.expand(piece, array.size) if length else piece, np.uint8)
    return array


def _image(values: np.ndarray) -> bytes:
    where = planes.coding_layout(values.shape)
    return bytes([_IMAGE]) + _coded(planes.split_planes(values, where), where)


def _from_image(rest: memoryview, shape: tuple[int, ...]) -> np.ndarray:
    where = planes.coding_layout(shape)
    return planes.join_planes(_decoded(rest, where), where, shape)


def _palette_image(values: np.ndarray) -> bytes | None:
    where = planes.coding_layout(values.shape)
    found = palette.find(planes.split_planes(values, where))
    if found is None:
        return None
    levels, palettes = found
    return bytes([_PALETTE]) + palette.packed(palettes) + _coded(levels, where)


def _from_palette_image(rest: memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    where = planes.coding_layout(shape)
    dtype = NUMPY_OF[spec.dtype]
    palettes, rest = palette.unpacked(rest, where.n_planes, dtype, spec.name)
    return planes.join_planes(palette.apply(_decoded(rest, where), palettes, dtype), where, shape)


def _coded(levels: np.ndarray, where: planes.Layout) -> bytes:
    """Predictor and zstd frame of uint8 planes; the predictor is the one that a few rows compress best with."""
    sample = planes.sample_rows(levels)
    sizes = {
        predictor: len(entropy.squeeze(planes.predicted(sample, predictor, where.n_channels).data))
        for predictor in planes.predictors(where.n_channels)
    }
    best = min(sizes, key=sizes.__getitem__)
    return bytes([best]) + entropy.squeeze(planes.predicted(levels, best, where.n_channels).data)


def _decoded(rest: memoryview, where: planes.Layout) -> np.ndarray:
    if not len(rest) or rest[0] not in planes.predictors(where.n_channels):
        raise CorruptPayload(f"a predictor of {planes.predictors(where.n_channels)} was expected")
    n_bytes = where.n_planes * where.height * where.width
    levels = np.frombuffer(bytearray(entropy.expand(rest[1:], n_bytes)), np.uint8)
    return planes.unpredicted(levels.reshape(where.n_planes, where.height, where.width), rest[0], where.n_channels)


def _prefixed(rest: memoryview) -> tuple[int, memoryview]:
    """A 4-byte length and what follows it."""
    if len(rest) < _LENGTH.size:
        raise CorruptPayload(f"{len(rest)} bytes end inside a length of {_LENGTH.size}")
    return _LENGTH.unpack_from(rest)[0], rest[_LENGTH.size :]
