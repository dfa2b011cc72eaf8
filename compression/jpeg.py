"""The codec `jpeg`: images as JPEG of quality 90 after an affine map of each channel to 0..255.

Design: the header of every JPEG is read by a short walk over its markers before a decoder sees it: dimensions, number
of components and baseline coding must be what the declared shape asks for, so that a small file can neither claim a
huge picture nor hide work in progressive scans. Colours are stored as YCbCr with halved chroma, as cameras do.
"""

import io
import math
import struct
from typing import Final

import numpy as np

from compression import planes, raw
from compression.codec import Payload
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import NUMPY_OF, TensorSpec

QUALITY: Final = 90
"""Fixed, so that a calibration made with this codec stays true."""

_DTYPES: Final = ("UINT8", "FP16", "FP32", "FP64")
_MODES: Final = {1: "L", 3: "RGB"}
_MAX_SIDE: Final = 65535
_MAX_PIXELS: Final = 1 << 26
"""Of one image: below what Pillow warns of, far above what a network takes."""
_LENGTH: Final = struct.Struct("<I")
_RANGE: Final = struct.Struct("<dd")
_MARKER: Final = struct.Struct(">H")
_FRAME: Final = struct.Struct(">BHHB")
_BASELINE: Final = 0xC0
_SCAN: Final = 0xDA
_ALLOWED: Final = frozenset({0xE0, 0xDB, 0xC4, 0xDD, _BASELINE})
"""Markers before the scan: JFIF, quantization tables, Huffman tables, restart interval, baseline frame."""


class JpegCodec:
    """Codec `jpeg`: `(n, c, h, w)` and `(n, h, w, c)`, with or without n, of 1 or 3 channels."""

    name: Final = "jpeg"
    lossy: Final = True

    def encode(self, array: np.ndarray) -> bytes:
        """Range of each channel, then length and JPEG of each image.

        Raises:
            NotEncodable: not an image of 1 or 3 channels, or a value that is not finite.
        """
        datatype, values = raw.canonical(array)
        where = _image_layout(datatype, values.shape)
        if where is None:
            raise NotEncodable(f"jpeg carries images of 1 or 3 channels, not {datatype} {list(values.shape)}")
        channels = planes.split_planes(values, where).reshape(
            where.n_images, where.n_channels, where.height, where.width
        )
        pieces: list[bytes] = []
        bytes_of = np.empty(channels.shape, np.uint8)
        for index in range(where.n_channels):
            low, high = _range_of(channels[:, index], datatype)
            pieces.append(_RANGE.pack(low, high))
            bytes_of[:, index] = _to_bytes(channels[:, index], low, high)
        for image in bytes_of:
            coded = _compress(image)
            pieces += (_LENGTH.pack(len(coded)), coded)
        return b"".join(pieces)

    def decode(self, payload: Payload, spec: TensorSpec) -> np.ndarray:
        """The images, mapped back to their channels' ranges."""
        shape = raw.known_shape(spec)
        where = _image_layout(spec.dtype, shape)
        if where is None:
            raise CorruptPayload(f"{spec.name}: jpeg carries images of 1 or 3 channels, not {spec.dtype} {list(shape)}")
        rest = memoryview(payload)
        if len(rest) < where.n_channels * _RANGE.size:
            raise CorruptPayload(f"{spec.name}: {len(rest)} bytes end inside the channels' ranges")
        ranges = [_RANGE.unpack_from(rest, index * _RANGE.size) for index in range(where.n_channels)]
        if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in ranges):
            raise CorruptPayload(f"{spec.name}: a channel's range is not finite or upside down: {ranges}")
        coded = _files(rest[where.n_channels * _RANGE.size :], where, spec.name)
        values = np.empty((where.n_images, where.n_channels, where.height, where.width), NUMPY_OF[spec.dtype])
        for out, file in zip(values, coded, strict=True):
            for channel, pixels, (low, high) in zip(out, _decompress(file, where, spec.name), ranges, strict=True):
                channel[:] = pixels if spec.dtype == "UINT8" else _from_bytes(pixels, low, high, channel.dtype)
        return planes.join_planes(values, where, shape)


def _image_layout(datatype: str, shape: tuple[int, ...]) -> planes.Layout | None:
    """The layout where JPEG can hold such a tensor, else None."""
    if datatype not in _DTYPES or len(shape) not in (3, 4) or 0 in shape:
        return None
    where = planes.layout_of(shape)
    fits = where.n_channels in _MODES and max(where.height, where.width) <= _MAX_SIDE
    fits = fits and where.height * where.width <= _MAX_PIXELS
    return where if fits else None


def _range_of(channel: np.ndarray, datatype: str) -> tuple[float, float]:
    if datatype == "UINT8":
        return 0.0, 255.0
    low, high = float(channel.min()), float(channel.max())
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low)):
        raise NotEncodable(f"jpeg carries finite values, these reach from {low} to {high}; use 'lossless'")
    return low, high


def _to_bytes(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    if channel.dtype == np.uint8:
        return channel
    scale = 255.0 / (high - low) if high > low else 0.0
    if scale > np.finfo(np.float32).max:
        scale = 0.0  # a channel as good as flat
    wide = channel if channel.dtype == np.float64 else channel.astype(np.float32)
    scaled: np.ndarray = np.rint((wide - low) * scale).clip(0, 255)
    return scaled.astype(np.uint8)


def _from_bytes(pixels: np.ndarray, low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """`low + pixels * (high - low) / 255` by a table of 256; a value beyond the dtype's range saturates."""
    limit = float(np.finfo(dtype).max)
    table = (low + np.arange(256) * ((high - low) / 255.0)).clip(-limit, limit).astype(dtype)
    values: np.ndarray = table[pixels]
    return values


def _compress(image: np.ndarray) -> bytes:
    """Baseline JPEG of uint8 `(c, h, w)`."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _files(rest: memoryview, where: planes.Layout, name: str) -> list[bytes]:
    """One JPEG an image, every header already found right."""
    files: list[bytes] = []
    for _ in range(where.n_images):
        length = _LENGTH.unpack_from(rest)[0] if len(rest) >= _LENGTH.size else 0
        if not length or length > len(rest) - _LENGTH.size:
            raise CorruptPayload(f"{name}: {len(rest)} bytes do not hold image {len(files)} of {where.n_images}")
        file = bytes(rest[_LENGTH.size : _LENGTH.size + length])
        _check_header(file, where, name)
        files.append(file)
        rest = rest[_LENGTH.size + length :]
    if len(rest):
        raise CorruptPayload(f"{name}: {len(rest)} bytes left over after {where.n_images} images")
    return files


def _check_header(file: bytes, where: planes.Layout, name: str) -> None:
    """Walks the markers up to the scan; there must be one baseline frame of the declared dimensions.

    Source: ITU-T T.81, annex B.
    """
    wanted = (8, where.height, where.width, where.n_channels)
    frames: list[tuple[int, ...]] = []
    at = 2 if file[:2] == b"\xff\xd8" else len(file)
    while at + 4 <= len(file) and file[at] == 0xFF:
        marker, length = file[at + 1], _MARKER.unpack_from(file, at + 2)[0]
        if marker == _SCAN:
            if frames != [wanted]:
                raise CorruptPayload(f"{name}: a JPEG of (bits, height, width, channels) {frames}, wanted {wanted}")
            return
        if marker not in _ALLOWED or length < 2:
            raise CorruptPayload(f"{name}: a JPEG with marker 0x{marker:02x}; only baseline JFIF is taken")
        if marker == _BASELINE and at + 4 + _FRAME.size <= len(file):
            frames.append(_FRAME.unpack_from(file, at + 4))
        at += 2 + length
    raise CorruptPayload(f"{name}: {len(file)} bytes are no JPEG with a scan")


def _decompress(file: bytes, where: planes.Layout, name: str) -> np.ndarray:
    """Uint8 `(c, h, w)` of a file whose header was checked."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            if image.size != (where.width, where.height) or image.mode != _MODES[where.n_channels]:
                raise CorruptPayload(f"{name}: a JPEG of {image.size} {image.mode} for {where.width} x {where.height}")
            pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, IndexError, KeyError, TypeError) as error:
        if isinstance(error, CorruptPayload):
            raise
        raise CorruptPayload(f"{name}: a JPEG that does not decode ({error})") from error
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
