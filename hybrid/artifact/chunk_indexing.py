"""The encoded index of a file on this machine, the same on every machine that holds these bytes."""

from collections.abc import Callable
from pathlib import Path

from hybrid.artifact.chunk_extents import Extent, extents_of, external_extents
from hybrid.artifact.chunk_messages import FileRef
from hybrid.artifact.chunk_view import FileView, ReadAt, read_at
from hybrid.artifact.chunks import build, encode

Find = Callable[[str], tuple[Path, int] | None]
"""Digest -> a file with these bytes, and its size."""


def index_file(ref: FileRef, path: Path, size: int, piece_bytes: int, *, find: Find, read: ReadAt = read_at) -> bytes:
    """Read the whole file, a chunk at a time, and write its index.

    Args:
        ref: which file it is, and which models may lay tensors into it.
        path: where it lies.
        size: how long it is.
        piece_bytes: how long pieces of big tensors are.
        find: the models of `ref`; one that is not here is passed over.
        read: how files are read.

    Raises:
        StorageError: it cannot be read, or changed.
    """
    view = FileView(path, size, read)
    return encode(build(view, _laid_out(ref, size, find, read)[1] or extents_of(view), piece_bytes))


def reduced(ref: FileRef, size: int, *, find: Find, read: ReadAt = read_at) -> FileRef:
    """The same file with the one model that says where its tensors lie, or none: what an index really depends on."""
    return FileRef(sha256=ref.sha256, models=_laid_out(ref, size, find, read)[0])


def _laid_out(ref: FileRef, size: int, find: Find, read: ReadAt) -> tuple[dict[str, str], list[Extent]]:
    for sha256, location in sorted(ref.models.items()):
        found = find(sha256)
        if found is not None:
            extents = external_extents(FileView(*found, read), location, size)
            if extents:
                return {sha256: location}, extents
    return {}, []
