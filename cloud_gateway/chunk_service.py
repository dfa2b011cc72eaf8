"""Indexes and parts of the files that a gateway holds, so that a box fetches only what it lacks.

Design: every method is called in a thread and knows no transport. An index costs one reading of its file, so it is
kept, in memory and as a file of its own; a herd that asks for the same one waits for one reading.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from hybrid.artifact.chunk_extents import Extent
from hybrid.artifact.chunk_indexing import index_file, reduced
from hybrid.artifact.chunk_messages import (
    MAX_HAVE,
    MAX_MODELS,
    FileRef,
    IndexAnswer,
    IndexCall,
    RangesCall,
    compress,
    decompress,
    digest_of,
    take_ranges,
)
from hybrid.artifact.chunk_view import FileView
from hybrid.artifact.chunks import decode, piece_bytes_for
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, HybridError, NotFound

_KEPT_BYTES: Final = 64 << 20
_KEPT_FILES: Final = 512
_BLOCK_BYTES: Final = 256 << 10


class Kept:
    """What was made before, by key; the longest unused leave when all together are too much."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def find(self, key: str) -> bytes | None:
        """What was kept under a key."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def keep(self, key: str, data: bytes) -> None:
        """Keep it, and forget others for it."""
        with self._lock:
            self._n_bytes += len(data) - len(self._entries.pop(key, b""))
            self._entries[key] = data
            while self._n_bytes > self._most_bytes and len(self._entries) > 1:
                self._n_bytes -= len(self._entries.popitem(last=False)[1])


class ChunkService:
    """Answers for the files that `find` knows by their digest; any thread may call.

    Args:
        find: digest -> the file, if it is here.
        folder: where indexes are kept; they can be made again.
    """

    def __init__(self, find: Callable[[str], Path | None], folder: Path) -> None:
        self._find, self._folder = find, folder
        self._indexes = Kept(_KEPT_BYTES)
        self._reading = threading.Lock()

    def index(self, call: IndexCall) -> IndexAnswer:
        """The index of a file, written against that of the most similar file that both sides have.

        Raises:
            NotFound: the file is not here.
            BadMessage: names too much.
            StorageError: it cannot be read.
        """
        if len(call.have) > MAX_HAVE:
            raise BadMessage(f"{len(call.have)} files are named as being there; at most {MAX_HAVE} are compared")
        path = self._path(call.file.sha256)
        size = path.stat().st_size
        piece_bytes = piece_bytes_for(size)
        wanted = self._encoded(call.file, path, piece_bytes)
        best, most = b"", 0
        names = _names(wanted, size)
        for ref in call.have:
            base, base_size = self._base(ref, piece_bytes)
            n_shared = len(names & _names(base, base_size)) if base else 0
            if n_shared > most:
                best, most = base, n_shared
        return IndexAnswer(
            body=compress(wanted, best), digest=digest_of(wanted), dictionary=digest_of(best) if best else b""
        )

    def ranges(self, call: RangesCall) -> tuple[int, Iterator[bytes]]:
        """Bytes in all, and then the parts one after the other, in blocks.

        Raises:
            NotFound: the file is not here.
            BadMessage: ranges that are not of this file, or too many.
            StorageError: from the blocks; the file cannot be read.
        """
        path = self._path(call.sha256)
        size = path.stat().st_size
        wanted = take_ranges(call.ranges, size)
        return sum(length for _, length in wanted), _blocks(FileView(path, size), wanted)

    def _path(self, sha256: str) -> Path:
        path = self._find(check_digest(sha256))
        if path is None:
            raise NotFound("no such file on this gateway; its version may have been removed, ask for the state anew")
        return path

    def _base(self, ref: FileRef, piece_bytes: int) -> tuple[bytes, int]:
        """The index of a file that the caller has, and its size; nothing where this gateway cannot read it."""
        with suppress(HybridError, OSError):
            path = self._path(ref.sha256)
            return self._encoded(ref, path, piece_bytes), path.stat().st_size
        return b"", 0

    def _encoded(self, ref: FileRef, path: Path, piece_bytes: int) -> bytes:
        check_digest(ref.sha256)
        if len(ref.models) > MAX_MODELS:
            raise BadMessage(f"{len(ref.models)} models are named for one file; at most {MAX_MODELS} are looked at")
        if ref.models:  # names that lead to nothing must not make the same index again and again
            ref = reduced(ref, path.stat().st_size, find=self._model)
        key = _key(ref, piece_bytes)
        found = self._indexes.find(key)
        if found is None:
            with self._reading:  # one file is read at a time, and once
                found = self._indexes.find(key)
                if found is None:
                    found = self._noted(key, path) or self._made(key, ref, path, piece_bytes)
                    self._indexes.keep(key, found)
        return found

    def _made(self, key: str, ref: FileRef, path: Path, piece_bytes: int) -> bytes:
        data = index_file(ref, path, path.stat().st_size, piece_bytes, find=self._model)
        with suppress(HybridError, OSError):
            self._tidy()
            write_atomically(self._folder / f"{key}.chunks", digest_of(data) + compress(data))
        return data

    def _noted(self, key: str, path: Path) -> bytes | None:
        """The index that was written down at an earlier start, if it is sound."""
        try:
            note = (self._folder / f"{key}.chunks").read_bytes()
            data = decompress(note[8:])
            decode(data, path.stat().st_size)
        except (OSError, BadMessage):
            return None
        return data if digest_of(data) == note[:8] else None

    def _model(self, sha256: str) -> tuple[Path, int] | None:
        path = self._find(check_digest(sha256))
        return (path, path.stat().st_size) if path is not None else None

    def _tidy(self) -> None:
        """Forget the oldest notes when there are many."""
        notes = list(self._folder.glob("*.chunks"))
        if len(notes) >= _KEPT_FILES:
            for note in sorted(notes, key=lambda path: path.stat().st_mtime)[: _KEPT_FILES // 4]:
                note.unlink(missing_ok=True)


def _key(ref: FileRef, piece_bytes: int) -> str:
    facts = (ref.sha256, sorted(ref.models.items()), piece_bytes)
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def _names(index: bytes, size: int) -> frozenset[bytes]:
    return frozenset(chunk.name for chunk in decode(index, size).chunks if chunk.name)


def _blocks(view: FileView, ranges: list[Extent]) -> Iterator[bytes]:
    """The ranges' bytes; small ones are put together, so that a thousand of them are not a thousand steps."""
    gathered = bytearray()
    for offset, length in ranges:
        for at in range(offset, offset + length, _BLOCK_BYTES):
            gathered += view.read(at, min(_BLOCK_BYTES, offset + length - at))
            if len(gathered) >= _BLOCK_BYTES:
                yield bytes(gathered)
                gathered.clear()
    if gathered:
        yield bytes(gathered)
