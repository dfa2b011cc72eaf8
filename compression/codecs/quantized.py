"""The codecs `q8`, `q8z`, `q4` and `q4z`: floats as 256 or 16 levels per channel, with or without an entropy stage.

Design: one payload for all four; the names differ in the number of levels, which a calibration belongs to, and in
whether the encoder tries zstd, which costs time that only some links pay back: so both are candidates of their own.
zstd's first level is a Huffman coder here, since levels hardly repeat: lower levels leave literals as they are, higher
ones were measured to take longer and save nothing. Two levels of 4 bit make a byte, so that its code sees pairs.
"""

import struct
from typing import Final

import numpy as np

from compression.codecs import affine, entropy, raw
from compression.codecs.affine import Levels
from compression.codecs.codec import Payload
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import NUMPY_OF, TensorSpec

_FLOATS: Final = ("FP16", "FP32", "FP64")
_WHOLE: Final = 255
"""Where the axis stands: the tensor is one channel."""

_PLAIN: Final = 0
_SQUEEZED: Final = 1
_HEADER_BYTES: Final = 4
_CHANNEL_BYTES: Final = 2
_TOP: Final = struct.Struct("<H")
_SCALE_SHIFT: Final = 19
"""A positive float32 of 5 bits, shifted right by this, is a number of 12 bits that ascends with it."""

_MOST_CODE: Final = 0xFE0
"""Codes from here on are infinities and NaNs."""

_NIBBLE: Final = 16
_MOST_BELOW: Final = 255


class QuantizedCodec:
    """One of `q8`, `q8z`, `q4`, `q4z`.

    Args:
        name: how the wire names it.
        n_levels: 256 or 16.
        squeezes: whether the encoder tries the entropy stage.
    """

    lossy: Final = True

    def __init__(self, name: str, n_levels: int, *, squeezes: bool) -> None:
        self.name: Final = name
        self.n_levels: Final = n_levels
        self.squeezes: Final = squeezes

    def encode(self, array: np.ndarray) -> bytes:
        """Scales and zero points of the channels, then the levels.

        Raises:
            NotEncodable: not a float tensor, or a value that is not finite or beyond 1e33.
        """
        datatype, values = raw.canonical(array)
        if datatype not in _FLOATS:
            raise NotEncodable(f"{self.name} carries {', '.join(_FLOATS)}, not {datatype}; use 'lossless'")
        with np.errstate(over="ignore", invalid="ignore"):
            return self.pack(affine.quantized(values.astype(np.float32, copy=False), self.n_levels))

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The values that the levels stand for, in the declared float datatype."""
        found = self.unpack(payload, spec)
        return affine.restored(found, NUMPY_OF[spec.dtype])

    def pack(self, found: Levels) -> bytes:
        """The payload of levels that were computed elsewhere (in a graph), as `encode` would have made it.

        Raises:
            NotEncodable: a scale that `affine.quantized` would not give: the values held a NaN or an infinity.
        """
        scales = np.ascontiguousarray(found.scales, "<f4")
        codes = scales.view("<u4") >> _SCALE_SHIFT
        top = int(codes.max())
        if (
            top >= _MOST_CODE
            or top - int(codes.min()) > _MOST_BELOW
            or (codes << _SCALE_SHIFT != scales.view("<u4")).any()
        ):
            raise NotEncodable(f"{self.name} carries finite values, a scale is {scales.max()}; use 'lossless'")
        levels = np.ascontiguousarray(found.levels).reshape(-1)
        channels = np.concatenate(((top - codes).astype(np.uint8), found.zeros))
        body = np.concatenate((channels, levels if self.n_levels > _NIBBLE else _paired(levels))).data
        form = _PLAIN
        if self.squeezes:
            frame = entropy.squeeze(body)
            if len(frame) < len(body):
                form, body = _SQUEEZED, memoryview(frame)
        axis = _WHOLE if found.axis is None else found.axis
        return b"".join((bytes((form, axis)), _TOP.pack(top), body))

    def unpack(self, payload: Payload, spec: TensorSpec) -> Levels:
        """The levels of a payload, without the values; raises as `decode` does.

        Raises:
            CorruptPayload: bytes that are not exactly one tensor of this spec.
        """
        shape = raw.known_shape(spec)
        if spec.dtype not in _FLOATS:
            raise CorruptPayload(f"{spec.name}: {self.name} carries {', '.join(_FLOATS)}, not {spec.dtype}")
        if len(payload) < _HEADER_BYTES:
            raise CorruptPayload(f"{spec.name}: {len(payload)} bytes; {self.name} begins with its form and axis")
        form, axis = payload[0], payload[1]
        if form not in (_PLAIN, _SQUEEZED) or (axis != _WHOLE and axis >= len(shape)):
            raise CorruptPayload(f"{spec.name}: form {form} with channels on axis {axis} of {list(shape)}")
        n_channels = 1 if axis == _WHOLE else shape[axis]
        body = self._body(memoryview(payload)[_HEADER_BYTES:], spec, n_channels, squeezed=form == _SQUEEZED)
        codes = _TOP.unpack_from(payload, 2)[0] - body[:n_channels].astype(np.int64)
        zeros = body[n_channels : 2 * n_channels]
        if (codes <= 0).any() or (codes >= _MOST_CODE).any() or (zeros >= self.n_levels).any():
            raise CorruptPayload(f"{spec.name}: a scale is no positive number, or a zero point is beyond the levels")
        levels = body[2 * n_channels :]
        if self.n_levels <= _NIBBLE:
            levels = _unpaired(levels)
            if levels[spec.n_elements :].any():
                raise CorruptPayload(f"{spec.name}: the half byte behind the last level is not 0")
        return Levels(
            levels=levels[: spec.n_elements].reshape(shape),
            scales=(codes.astype(np.uint32) << _SCALE_SHIFT).view(np.float32),
            zeros=zeros,
            axis=None if axis == _WHOLE else axis,
        )

    def _body(self, rest: memoryview, spec: TensorSpec, n_channels: int, *, squeezed: bool) -> np.ndarray:
        """The bytes of scales, zero points and levels, once it is known that there are as many as there should be."""
        n_elements = spec.n_elements or 0
        n_bytes = _CHANNEL_BYTES * n_channels + (n_elements if self.n_levels > _NIBBLE else (n_elements + 1) // 2)
        if not squeezed and len(rest) != n_bytes:
            raise CorruptPayload(f"{spec.name}: {len(rest)} bytes where {n_channels} channels take {n_bytes}")
        return np.frombuffer(entropy.expand(rest, n_bytes) if squeezed else rest, np.uint8)


def _paired(levels: np.ndarray) -> np.ndarray:
    """Two levels a byte, the first in the lower half; whole-array operations on pairs, which strides would slow."""
    if levels.size % 2:
        levels = np.append(levels, np.uint8(0))
    pairs = levels.view("<u2")
    packed: np.ndarray = (pairs | (pairs >> 4)).astype(np.uint8)
    return packed


def _unpaired(pairs: np.ndarray) -> np.ndarray:
    """The levels of `_paired`, with the one that filled up the last byte."""
    wide = pairs.astype("<u2")
    wide |= wide << 4
    wide &= 0x0F0F
    return wide.view(np.uint8)
