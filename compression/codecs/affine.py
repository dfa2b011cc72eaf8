"""Floats as a few levels per channel: which axis holds the channels, their scales and zero points, there and back.

A level is `round(x / scale) + zero`, a value is `(level - zero) * scale`: ONNX's QuantizeLinear and DequantizeLinear
word for word, so that an engine may compute either side. Every channel's range holds 0, so that 0 (a ReLU's rest, a
padded border) comes back as exactly 0, and |decoded - x| <= scale / 2 (and one rounding of float32).

Design: scales keep 5 bits of their mantissa, rounded up by 3 % in the mean, and span 16 octaves at most: so each is
one byte on the wire, and no level can lie beyond the last one, so that neither side needs to clip. The least and the
greatest value span the levels. Clipping them (Banner, Nahshan, Soudry, ACIQ, NeurIPS 2019; and the clip of least
square error) was tried on the cuts of a trained convnet at 16 levels: up to 2 dB better, 3 to 10 % more bytes after the
entropy stage, and no more of the answers right. Neither did corrected means, centroids or error diffusion help.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from compression.errors import NotEncodable

LEAST_PER_CHANNEL: Final = 16
"""Elements below which a channel of its own is not worth the two bytes that it costs."""

HEADROOM: Final = 1.032
"""Over the exact scale, before its mantissa is cut to 5 bits, which may take away a thirty-second."""

SPREAD: Final = 2.0**-15
"""The least scale over the greatest; a channel that is smaller still is coarser than it need be."""

LEAST_SCALE: Final = 2.0**-100
"""A channel whose values all lie this close to 0 is 0."""

SPLITTER: Final = 2.0**19 + 1
"""`c - (c - s)` with `c = s * SPLITTER` rounds a float32 to 5 bits (Veltkamp, 1968; Dekker, 1971)."""

MOST_RANGE: Final = 1e32
"""Beyond it, splitting a scale would overflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """A quantized tensor.

    Attributes:
        levels: uint8, of the tensor's shape.
        scales: float32 `(c,)`, positive, of 5 bits; c is 1 where there is no channel axis.
        zeros: uint8 `(c,)`, the level that stands for 0.
        axis: of the channels; None where the whole tensor is one.
    """

    levels: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    axis: int | None


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """The axis whose indices get a scale each, or None: a function of the shape alone.

    1 for four dimensions and more (n, c, h, w), but 3 for (n, h, w, c) with h = w; the last for two and three (tokens
    of features). None where a channel would have fewer than `LEAST_PER_CHANNEL` elements.
    """
    rank = len(shape)
    if rank < 2 or 0 in shape:
        return None
    axis = 1 if rank >= 4 else rank - 1
    if rank == 4 and shape[1] == shape[2] != shape[3]:
        axis = 3
    n_elements = int(np.prod(shape, dtype=np.int64))
    return axis if n_elements // shape[axis] >= LEAST_PER_CHANNEL else None


def quantized(values: np.ndarray, n_levels: int) -> Levels:
    """The levels of a float tensor.

    Args:
        values: float32 of any shape.
        n_levels: 2 to 256.

    Raises:
        NotEncodable: a NaN, an infinity, or values of such a magnitude that scales overflow.
    """
    axis = channel_axis(values.shape)
    if not values.size:
        return Levels(levels=np.zeros(values.shape, np.uint8), scales=_ONE, zeros=np.zeros(1, np.uint8), axis=None)
    others = None if axis is None else tuple(index for index in range(values.ndim) if index != axis)
    low = np.minimum(values.min(axis=others).reshape(-1), np.float32(0))
    high = np.maximum(values.max(axis=others).reshape(-1), np.float32(0))
    span = high - low
    if not (span < MOST_RANGE).all():  # also where a NaN or an infinity is among the values
        raise NotEncodable(f"levels carry finite values below {MOST_RANGE:g}; use 'lossless'")
    scales = span * np.float32(HEADROOM / (n_levels - 1))
    scales = np.maximum(scales, max(scales.max() * np.float32(SPREAD), np.float32(LEAST_SCALE)))
    split = scales * np.float32(SPLITTER)
    scales = split - (split - scales)
    zeros = np.rint(-low / scales)
    steps = np.empty(values.shape, np.float32)
    np.divide(values, _along(scales, values.ndim, axis), out=steps)
    np.rint(steps, out=steps)
    steps += _along(zeros, values.ndim, axis)
    return Levels(levels=steps.astype(np.uint8), scales=scales, zeros=zeros.astype(np.uint8), axis=axis)


def restored(found: Levels, dtype: np.dtype) -> np.ndarray:
    """The values that the levels stand for; those beyond the dtype's range (a rounded-up float16) saturate."""
    rank = found.levels.ndim
    values = found.levels.astype(np.float32)
    values -= _along(found.zeros.astype(np.float32), rank, found.axis)
    with np.errstate(over="ignore"):
        values *= _along(found.scales, rank, found.axis)
    limit = min(float(np.finfo(dtype).max), float(np.finfo(np.float32).max))
    if float(found.scales.max(initial=0.0)) * 256 >= limit:
        np.clip(values, -limit, limit, out=values)
    return values.astype(dtype, copy=False)


_ONE: Final = np.ones(1, np.float32)


def _along(per_channel: np.ndarray, rank: int, axis: int | None) -> np.ndarray:
    """One number a channel, shaped so that it meets its channel."""
    if axis is None:
        return per_channel.reshape(())
    return per_channel.reshape([-1 if index == axis else 1 for index in range(rank)])
