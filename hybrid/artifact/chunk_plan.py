"""Which chunks of a file are here, and which are asked of the gateway next."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from hybrid.artifact.chunk_extents import Extent
from hybrid.artifact.chunk_messages import MAX_RANGES, MAX_RANGES_BYTES
from hybrid.artifact.chunks import Chunk

Places = dict[tuple[bytes, int], tuple[Path, int]]
"""Name and size of a chunk -> a file that has it, and where."""

_MOST_COPIED_BYTES: Final = 256 << 20
"""How much may be copied here while an answer of the gateway waits to be read."""


def next_batch(
    chunks: Iterable[Chunk], here: Mapping[tuple[bytes, int], object], offset: int
) -> tuple[int, list[Extent]]:
    """How many of these chunks are made next, and what to ask of the gateway for them.

    Args:
        chunks: what is still to be made, in order.
        here: chunks that this machine has.
        offset: nothing before it is wanted.
    """
    ranges: list[Extent] = []
    asked_bytes = copied_bytes = n_chunks = 0
    for chunk in chunks:
        if chunk.name and (chunk.name, chunk.size) not in here:
            start = max(offset, chunk.offset)
            length = chunk.offset + chunk.size - start
            follows = bool(ranges) and ranges[-1][0] + ranges[-1][1] == start
            if asked_bytes + length > MAX_RANGES_BYTES or (not follows and len(ranges) == MAX_RANGES):
                break
            asked_bytes += length
            if follows:
                ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
            else:
                ranges.append((start, length))
        elif ranges:
            copied_bytes += chunk.size
            if copied_bytes > _MOST_COPIED_BYTES:
                break
        n_chunks += 1
    return n_chunks, ranges
