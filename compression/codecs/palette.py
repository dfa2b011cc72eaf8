"""Numbers that came from bytes: the at most 256 bit patterns of each plane, and which one every element is.

A photograph is 8 bits a value; after `(x / 255 - mean) / std` it is 32, of which 24 say nothing. Looking at bit
patterns instead of values keeps NaNs, negative zeros and every rounding exactly as they were.

Design: the upper 16 bits of a pattern address a table of 65,536 patterns. One scatter fills it, one gather checks that
every element has the very pattern that its upper half leads to; no sort, no search, no guess at mean and deviation.
Values on a grid of 1/255 differ in their upper halves in every usual normalisation; where two do not, the plane is not
taken for a palette and goes another way.
"""

import struct
from typing import Final

import numpy as np

from compression.codecs import entropy
from compression.codecs.planes import shuffled
from compression.errors import CorruptPayload

_MAX_LEVELS: Final = 256
_LENGTHS: Final = struct.Struct("<II")
_N_ADDRESSES: Final = 1 << 16
_SAMPLE: Final = 2048
_BLOCK: Final = 1 << 16
"""Elements that are worked on at once, so that their addresses (8 bytes each) stay in a core's own cache."""

_ADDRESSES: Final = np.arange(_N_ADDRESSES, dtype=np.uint16)


def find(planes: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]] | None:
    """Levels, uint8 `(p, h, w)`, and each plane's patterns (unsigned, in ascending order of value); or None.

    Args:
        planes: FP32 or FP16, `(p, h, w)`, C-contiguous.
    """
    patterns = planes.reshape(planes.shape[0], -1).view(f"<u{planes.itemsize}")
    if any(_hopeless(plane) for plane in patterns):
        return None
    levels = np.empty(patterns.shape, np.uint8)
    palettes: list[np.ndarray] = []
    for plane, out in zip(patterns, levels, strict=True):
        palette = _plane_levels(plane, planes.dtype, out)
        if palette is None:
            return None
        palettes.append(palette)
    return levels.reshape(planes.shape), palettes


def apply(levels: np.ndarray, palettes: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    """The planes of this dtype whose elements are `palette[level]`; a level beyond its palette gives zero bits."""
    patterns = np.empty(levels.shape, f"<u{dtype.itemsize}")
    table = np.empty(_MAX_LEVELS, patterns.dtype)
    for plane, palette, out in zip(levels, palettes, patterns, strict=True):
        table[: palette.size] = palette
        table[palette.size :] = 0
        flat, filled = plane.reshape(-1), out.reshape(-1)
        for at in range(0, flat.size, _BLOCK):
            block = slice(at, at + _BLOCK)
            np.take(table, flat[block].astype(np.intp), out=filled[block], mode="clip")
    return patterns.view(dtype)


def packed(palettes: list[np.ndarray]) -> bytes:
    """The palettes as they travel: number of patterns, length of a zstd frame, the frame (docs/codecs.md)."""
    sizes = bytes(one.size - 1 for one in palettes)
    deltas = np.concatenate([np.diff(one, prepend=one.dtype.type(0)) for one in palettes])
    table = entropy.squeeze(sizes + shuffled(deltas).tobytes())
    return _LENGTHS.pack(deltas.size, len(table)) + table


def unpacked(rest: memoryview, n_planes: int, dtype: np.dtype, name: str) -> tuple[list[np.ndarray], memoryview]:
    """The palettes of `packed`, and what follows them.

    Raises:
        CorruptPayload: not one palette for each plane.
    """
    n_patterns, length = _LENGTHS.unpack_from(rest) if len(rest) >= _LENGTHS.size else (0, len(rest) + 1)
    rest = rest[_LENGTHS.size :]
    if n_patterns > _MAX_LEVELS * n_planes or length > len(rest):
        raise CorruptPayload(f"{name}: {n_patterns} patterns in {length} bytes for {n_planes} planes")
    table = np.frombuffer(entropy.expand(rest[:length], n_planes + n_patterns * dtype.itemsize), np.uint8)
    sizes = table[:n_planes].astype(np.int64) + 1
    if int(sizes.sum()) != n_patterns:
        raise CorruptPayload(f"{name}: palettes of {int(sizes.sum())} patterns, {n_patterns} were announced")
    by_significance = table[n_planes:].reshape(dtype.itemsize, n_patterns)
    deltas = np.ascontiguousarray(by_significance.T).reshape(-1).view(f"<u{dtype.itemsize}")
    pieces = np.split(deltas, np.cumsum(sizes)[:-1])
    return [np.cumsum(piece, dtype=piece.dtype) for piece in pieces], rest[length:]


def _hopeless(patterns: np.ndarray) -> bool:
    """Whether a sparse sample already shows more patterns than fit."""
    step = max(1, patterns.size // _SAMPLE)
    return np.unique(patterns[::step]).size > _MAX_LEVELS


def _shift(patterns: np.ndarray) -> np.ndarray:
    """How far right the upper 16 bits are, as a number of the patterns' own dtype."""
    return np.array(8 * patterns.itemsize - 16, patterns.dtype)


def _plane_levels(patterns: np.ndarray, dtype: np.dtype, out: np.ndarray) -> np.ndarray | None:
    """Writes each element's level into `out`; returns the palette, or None where there is none."""
    n_halves = patterns.itemsize // 2
    halves = patterns.view("<u2")[n_halves - 1 :: n_halves]
    blocks = [slice(at, at + _BLOCK) for at in range(0, patterns.size, _BLOCK)]
    table = np.bitwise_not(_ADDRESSES).astype(patterns.dtype) << _shift(patterns)
    for block in blocks:
        table[halves[block].astype(np.intp)] = patterns[block]
    used = np.flatnonzero(table >> _shift(patterns) == _ADDRESSES)
    if used.size > _MAX_LEVELS:
        return None
    used = used[np.argsort(table[used].view(dtype), kind="stable")]
    level_of = np.zeros(_N_ADDRESSES, np.uint8)
    level_of[used] = np.arange(used.size, dtype=np.uint8)
    for block in blocks:
        address = halves[block].astype(np.intp)
        if not np.array_equal(table.take(address, mode="clip"), patterns[block]):
            return None
        np.take(level_of, address, out=out[block], mode="clip")
    palette: np.ndarray = table[used]
    return palette
