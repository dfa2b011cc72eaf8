"""Every element as a small integer times the scale of its block, rounded stochastically.

Rounding up with the probability of the fraction makes the mean of many devices right even where every single element is
smaller than a step. Blocks end with their tensor, since tensors differ in size by orders of magnitude, and after
`block_elements`, so that one large element costs only its neighbours their precision.
"""

import struct
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from compression.codecs.entropy import expand, squeeze
from compression.errors import CorruptPayload
from hybrid.errors import BadMessage
from hybrid.federated.coding.form import Encoded, refuse_longer, target
from hybrid.federated.layout import Layout

_HEADER: Final = struct.Struct("<BB")
_STORED, _SQUEEZED = 0, 1


class _Blocks(NamedTuple):
    """Where each block begins in the vector, and how long it is; int64 (n_blocks,)."""

    starts: np.ndarray
    lengths: np.ndarray

    def spread(self, scales: np.ndarray) -> np.ndarray:
        """The scale of each element."""
        return np.repeat(scales, self.lengths)


@lru_cache(maxsize=8)
def _blocks_of(sizes: tuple[int, ...], block_elements: int) -> _Blocks:
    """Of tensors of these sizes; computed once, for each update of a round asks twice."""
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = np.concatenate(
        [np.arange(end - size, end, block_elements) for end, size in zip(ends.tolist(), sizes, strict=True)]
    )
    return _Blocks(starts, np.diff(starts, append=ends[-1]))


class Quantized:
    """Header (bits, stage), float32 scales, integers; the integers through zstd where that is smaller.

    int8 stands as signed bytes -127 to 127; int4 as -7 to 7, two in a byte, the first in the low half.
    """

    def __init__(self, *, n_bits: int, block_elements: int) -> None:
        self._n_bits = n_bits
        self._top = (1 << (n_bits - 1)) - 1
        self._block_elements = block_elements
        self.name = f"int{n_bits}"

    def max_bytes(self, layout: Layout) -> int:
        """Header, scales and integers without the zstd stage."""
        return _HEADER.size + 4 * len(self._blocks(layout).starts) + self._n_level_bytes(layout)

    def encode(
        self, vector: np.ndarray, layout: Layout, rng: np.random.Generator, residual: np.ndarray | None = None
    ) -> Encoded:
        """Within one step of each element, and right in the mean."""
        wanted = target(vector, layout, residual)
        blocks = self._blocks(layout)
        scales = (np.maximum.reduceat(np.abs(wanted), blocks.starts) / np.float32(self._top)).astype(np.float32)
        steps = blocks.spread(np.where(scales > 0, scales, np.float32(1)))
        with np.errstate(over="ignore"):
            scaled = wanted / steps
        levels = np.floor(scaled + rng.random(layout.n_elements, dtype=np.float32))
        levels = np.clip(levels, -self._top, self._top).astype(np.int8)
        plain = self._packed(levels)
        squeezed = squeeze(plain)
        stage, body = (_SQUEEZED, squeezed) if len(squeezed) < len(plain) else (_STORED, plain)
        content = _HEADER.pack(self._n_bits, stage) + scales.astype("<f4").tobytes() + body
        said = levels.astype(np.float32) * blocks.spread(scales)
        return Encoded(content, wanted - said)

    def decode(self, content: bytes | memoryview, layout: Layout) -> np.ndarray:
        """Raises `BadMessage` for another length, a scale that is no finite number ≥ 0, or a level out of range."""
        refuse_longer(content, self, layout)
        blocks = self._blocks(layout)
        n_scales = len(blocks.starts)
        n_before = _HEADER.size + 4 * n_scales
        if len(content) < n_before:
            raise BadMessage(f"an {self.name} content of {len(content)} bytes ends before its scales")
        n_bits, stage = _HEADER.unpack_from(content)
        if n_bits != self._n_bits or stage not in {_STORED, _SQUEEZED}:
            raise BadMessage(f"a content begins with {n_bits}, {stage}: {self.name} was to be read")
        scales = np.frombuffer(content, "<f4", count=n_scales, offset=_HEADER.size).astype(np.float32)
        largest = np.finfo(np.float32).max / np.float32(self._top)
        if not ((scales >= 0) & (scales <= largest)).all():
            raise BadMessage(f"an {self.name} content has a scale that is no finite number from 0 to {largest:.3g}")
        levels = self._unpacked(self._level_bytes(memoryview(content)[n_before:], stage, layout), layout)
        vector: np.ndarray = levels.astype(np.float32) * blocks.spread(scales)
        return vector

    def _level_bytes(self, body: memoryview, stage: int, layout: Layout) -> bytes:
        n_bytes = self._n_level_bytes(layout)
        if stage == _SQUEEZED:
            try:
                return expand(body, n_bytes)
            except CorruptPayload as error:
                raise BadMessage(f"the levels of an {self.name} content: {error}") from error
        if len(body) != n_bytes:
            raise BadMessage(f"an {self.name} content holds {len(body)} bytes of levels, the layout needs {n_bytes}")
        return bytes(body)

    def _blocks(self, layout: Layout) -> "_Blocks":
        return _blocks_of(layout.sizes, self._block_elements)

    def _n_level_bytes(self, layout: Layout) -> int:
        return (layout.n_elements * self._n_bits + 7) // 8

    def _packed(self, levels: np.ndarray) -> bytes:
        if self._n_bits == 8:
            return levels.tobytes()
        halves = np.append(levels, np.zeros(len(levels) % 2, np.int8)).astype(np.uint8) & 0x0F
        return (halves[0::2] | halves[1::2] << 4).tobytes()

    def _unpacked(self, data: bytes, layout: Layout) -> np.ndarray:
        if self._n_bits == 8:
            levels = np.frombuffer(data, np.int8)
        else:
            packed = np.frombuffer(data, np.uint8)
            halves = np.stack([packed & 0x0F, packed >> 4], axis=1).reshape(-1)
            if layout.n_elements % 2 and halves[-1]:
                raise BadMessage(f"an {self.name} content goes on behind its last element")
            levels = (halves[: layout.n_elements] ^ 8).astype(np.int8) - np.int8(8)
        if levels.min() < -self._top:
            raise BadMessage(f"an {self.name} content has level {levels.min()}: {-self._top} is the lowest")
        return levels
