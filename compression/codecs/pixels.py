"""Float images as bytes: the layout that picture formats hold, and an affine map of each channel to 0..255.

Design: most images were bytes before they were normalised. Where a channel's values stand on a grid of at most 256
steps, the map is the one that made them, so that the picture is the photograph again: 5 % fewer bytes as JPEG than a
stretch from the least to the greatest value, which falls between the steps. Other values are stretched.
"""

import math
import struct
from typing import Final

import numpy as np

from compression.codecs import planes
from compression.errors import CorruptPayload, NotEncodable
from compression.tensor import NUMPY_OF

DATATYPES: Final = ("UINT8", "FP16", "FP32", "FP64")
N_CHANNELS: Final = (1, 3)

_MAX_PIXELS: Final = 1 << 26
"""Of one image: below what Pillow warns of, far above what a network takes."""

_LEAST_STEPS: Final = 128
"""A grid with fewer steps leaves too few grey levels for a lossy format; such channels are stretched."""

_SAMPLE: Final = 4096
_OFF_GRID: Final = 0.1
"""Of a step: what float16 leaves of a normalised byte lies within 0.06 of it."""

_RANGE: Final = struct.Struct("<dd")


def image_layout(datatype: str, shape: tuple[int, ...], most_side: int) -> planes.Layout | None:
    """The layout where a picture format can hold such a tensor, else None.

    Args:
        datatype: of the tensor.
        shape: `(n, c, h, w)` or `(n, h, w, c)`, with or without n, of 1 or 3 channels.
        most_side: pixels of the widest or highest picture.
    """
    if datatype not in DATATYPES or len(shape) not in (3, 4) or 0 in shape:
        return None
    where = planes.layout_of(shape)
    fits = where.n_channels in N_CHANNELS and max(where.height, where.width) <= most_side
    return where if fits and where.height * where.width <= _MAX_PIXELS else None


def to_pictures(values: np.ndarray, where: planes.Layout) -> tuple[bytes, np.ndarray]:
    """The channels' ranges as they travel, and the pictures, uint8 `(n, c, h, w)`.

    Raises:
        NotEncodable: a value that is not finite.
    """
    channels = planes.split_planes(values, where).reshape(where.n_images, where.n_channels, where.height, where.width)
    if channels.dtype == np.uint8:
        return _RANGE.pack(0.0, 255.0) * where.n_channels, channels
    ranges: list[bytes] = []
    pictures = np.empty(channels.shape, np.uint8)
    for index in range(where.n_channels):
        low, high = range_of(channels[:, index])
        ranges.append(_RANGE.pack(low, high))
        pictures[:, index] = _to_bytes(channels[:, index], low, high)
    return b"".join(ranges), pictures


def ranges_from(payload: memoryview, where: planes.Layout, name: str) -> tuple[list[tuple[float, float]], memoryview]:
    """The channels' ranges, and what follows them.

    Raises:
        CorruptPayload: the bytes end, or a range is no range.
    """
    if len(payload) < where.n_channels * _RANGE.size:
        raise CorruptPayload(f"{name}: {len(payload)} bytes end inside the channels' ranges")
    ranges = [_RANGE.unpack_from(payload, index * _RANGE.size) for index in range(where.n_channels)]
    if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in ranges):
        raise CorruptPayload(f"{name}: a channel's range is not finite or upside down: {ranges}")
    return ranges, payload[where.n_channels * _RANGE.size :]


def from_bytes(pixels: np.ndarray, low: float, high: float, datatype: str) -> np.ndarray:
    """`low + pixels * (high - low) / 255` by a table of 256; a value beyond the dtype's range saturates."""
    if datatype == "UINT8":
        return pixels
    dtype = NUMPY_OF[datatype]
    limit = float(np.finfo(dtype).max)
    table = (low + np.arange(256) * ((high - low) / 255.0)).clip(-limit, limit).astype(dtype)
    values: np.ndarray = table[pixels]
    return values


def range_of(channel: np.ndarray) -> tuple[float, float]:
    """What 0 and 255 stand for in a float channel: the grid that its values stand on, else their least and greatest.

    Raises:
        NotEncodable: a value that is not finite.
    """
    low, high = float(channel.min()), float(channel.max())
    if not (math.isfinite(low) and math.isfinite(high) and math.isfinite(high - low)):
        raise NotEncodable(f"pictures carry finite values, these reach from {low} to {high}; use 'lossless'")
    sample = np.unique(channel.reshape(-1)[:: max(1, channel.size // _SAMPLE)].astype(np.float64))
    n_steps = _n_steps(sample, low, high) if _LEAST_STEPS // 2 < sample.size <= 256 else None
    return low, high if n_steps is None else low + (high - low) * (255 / n_steps)


def _n_steps(sample: np.ndarray, low: float, high: float) -> int | None:
    """Steps of the grid from low to high on which all of the sample stands, as nearly as float16 can; else None."""
    most = round((high - low) / float(np.diff(sample).min()))
    counts = np.arange(max(_LEAST_STEPS, most * 4 // 5), min(255, most) + 1)
    if not counts.size:
        return None
    at = (sample - low) / (high - low) * counts[:, np.newaxis]
    apart = np.abs(at - np.rint(at)).max(axis=1)
    best = int(apart.argmin())
    return int(counts[best]) if apart[best] < _OFF_GRID else None


def _to_bytes(channel: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = 255.0 / (high - low) if high > low else 0.0
    if scale > np.finfo(np.float32).max:
        scale = 0.0  # a channel as good as flat
    wide = channel if channel.dtype == np.float64 else channel.astype(np.float32)
    scaled: np.ndarray = np.rint((wide - low) * scale).clip(0, 255)
    return scaled.astype(np.uint8)
