"""A file as chunks that begin where its tensors do: cut, named by their content, written down compactly.

Design: saving a model again moves its tensors, so chunks of a fixed size find nothing again. Here each tensor is a
chunk of its own (a big one several, cut from its start), named by six bytes of its SHA-256; what lies between (names,
headers, nodes) is *glue* and stands in the index itself. Six bytes collide once in millions of updates; the digest of
the whole file, which its signed manifest gives, decides whether a rebuilt file is right. docs/chunks.md has the form.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from hybrid.artifact.chunk_extents import Extent
from hybrid.artifact.chunk_view import FileView
from hybrid.errors import BadMessage

SCHEMA: Final = 1
NAME_BYTES: Final = 6
MIN_PIECE_BYTES: Final = 256 << 10
MAX_PIECE_BYTES: Final = 16 << 20
MAX_GLUE_BYTES: Final = 8 << 20
MAX_CHUNKS: Final = 1 << 18
MAX_INDEX_BYTES: Final = 32 << 20
_PIECES_PER_FILE: Final = 4096
_GLUE_RUN_BYTES: Final = (1 << 20, 64 << 10, 1 << 10)
"""A longer run of glue is named like a tensor; the next smaller limit where all glue together is too much."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file: `name` is empty for glue, whose bytes the index holds."""

    offset: int
    size: int
    name: bytes
    glue: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkIndex:
    """A whole file as chunks in order, without gaps."""

    size: int
    piece_bytes: int
    chunks: tuple[Chunk, ...]


def piece_bytes_for(size: int) -> int:
    """How long a piece of a big tensor is in a file of that size: few enough pieces that the index stays small."""
    piece = MIN_PIECE_BYTES
    while piece * _PIECES_PER_FILE < size and piece < MAX_PIECE_BYTES:
        piece *= 2
    return piece


def name_of(content: bytes) -> bytes:
    """The name of a chunk with this content."""
    return hashlib.sha256(content).digest()[:NAME_BYTES]


def build(view: FileView, extents: list[Extent], piece_bytes: int) -> ChunkIndex:
    """The index of a file, by reading all of it, one chunk in memory at a time.

    Raises:
        StorageError: the file cannot be read, or became shorter.
    """
    return ChunkIndex(size=len(view), piece_bytes=piece_bytes, chunks=tuple(_chunks(view, extents, piece_bytes)))


def _chunks(view: FileView, extents: list[Extent], piece_bytes: int) -> Iterator[Chunk]:
    for offset, size, is_glue in _spans(len(view), extents, piece_bytes):
        content = view.read(offset, size)
        yield Chunk(offset, size, b"", content) if is_glue else Chunk(offset, size, name_of(content))


def _spans(size: int, extents: list[Extent], piece_bytes: int) -> list[tuple[int, int, bool]]:
    """Offset, length and whether it is glue, of all chunks in order."""
    runs = list(_runs(size, extents))
    for most in _GLUE_RUN_BYTES:
        if sum(length for _, length, is_glue in runs if is_glue and length <= most) <= MAX_GLUE_BYTES:
            break
    else:
        runs, most = [(0, size, False)] if size else [], 0
    spans: list[tuple[int, int, bool]] = []
    for start, length, is_glue in runs:
        if is_glue and length <= most:
            spans.append((start, length, True))
        else:
            spans.extend(
                (at, min(piece_bytes, start + length - at), False) for at in range(start, start + length, piece_bytes)
            )
    return spans


def _runs(size: int, extents: list[Extent]) -> Iterator[tuple[int, int, bool]]:
    at = 0
    for offset, length in extents:
        if offset > at:
            yield at, offset - at, True
        yield offset, length, False
        at = offset + length
    if at < size:
        yield at, size - at, True


def encode(index: ChunkIndex) -> bytes:
    """The form in which an index is compressed: the same index, the same bytes."""
    head = bytearray([SCHEMA])
    put_numbers(head, (index.piece_bytes, index.size, len(index.chunks)))
    put_numbers(head, (chunk.size << 1 | (not chunk.name) for chunk in index.chunks))
    names = b"".join(chunk.name for chunk in index.chunks)
    return bytes(head) + names + b"".join(chunk.glue for chunk in index.chunks)


def decode(data: bytes, size: int) -> ChunkIndex:
    """The index that these bytes say, of a file of that size.

    Raises:
        BadMessage: it is not one, or not of such a file; nothing large was allocated for it.
    """
    if not data or data[0] != SCHEMA:
        raise BadMessage("the index of chunks is of another schema")
    (piece_bytes, told_size, n_chunks), at = take_numbers(data, 1, 3)
    if told_size != size or n_chunks > min(MAX_CHUNKS, len(data)) or not 0 < piece_bytes <= MAX_PIECE_BYTES:
        raise BadMessage(f"the index is of a file of {told_size} bytes in {n_chunks} chunks; {size} bytes are wanted")
    lengths, at = take_numbers(data, at, n_chunks)
    n_named = sum(1 for length in lengths if not length & 1)
    n_glue_bytes = sum(length >> 1 for length in lengths if length & 1)
    if len(data) != at + n_named * NAME_BYTES + n_glue_bytes:
        raise BadMessage("the index of chunks is cut off, or longer than what it says")
    chunks: list[Chunk] = []
    offset, glue_at = 0, at + n_named * NAME_BYTES
    for length in lengths:
        n_bytes = length >> 1
        if n_bytes < 1 or n_bytes > size - offset or (not length & 1 and n_bytes > piece_bytes):
            raise BadMessage(f"the index has a chunk of {n_bytes} bytes at byte {offset} of {size}")
        if length & 1:
            chunks.append(Chunk(offset, n_bytes, b"", data[glue_at : glue_at + n_bytes]))
            glue_at += n_bytes
        else:
            chunks.append(Chunk(offset, n_bytes, data[at : at + NAME_BYTES]))
            at += NAME_BYTES
        offset += n_bytes
    if offset != size:
        raise BadMessage(f"the index covers {offset} of {size} bytes")
    return ChunkIndex(size=size, piece_bytes=piece_bytes, chunks=tuple(chunks))


def put_numbers(out: bytearray, numbers: Iterable[int]) -> None:
    """Append whole numbers, seven bits a byte, the lowest first."""
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)


def take_numbers(data: bytes, at: int, n_numbers: int) -> tuple[list[int], int]:
    """So many whole numbers, and where they end.

    Raises:
        BadMessage: they are cut off, or beyond 63 bits.
    """
    numbers: list[int] = []
    for _ in range(n_numbers):
        number = shift = 0
        while True:
            if at >= len(data) or shift > 56:
                raise BadMessage("a list of numbers is cut off, or one is too large")
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        numbers.append(number)
    return numbers, at
