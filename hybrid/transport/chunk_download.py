"""Files of an artifact, put together from what this machine has and what only the gateway has.

Design: `ChunkedFiles.blob` gives the bytes of a file in their order, from any offset on, as a plain download does. So a
part file is always the beginning of its file, whatever was interrupted, and goes on from its length; what does not work
out ends in the plain download. The digest of the whole file decides: who writes the part compares it.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final, Protocol

from hybrid.artifact.chunk_indexing import index_file
from hybrid.artifact.chunk_messages import (
    MAX_HAVE,
    FileRef,
    IndexAnswer,
    IndexCall,
    RangesCall,
    compress,
    decompress,
    digest_of,
    put_ranges,
    refs_of,
)
from hybrid.artifact.chunk_plan import Places, next_batch
from hybrid.artifact.chunk_view import ReadAt, read_at
from hybrid.artifact.chunks import Chunk, ChunkIndex, decode, name_of, piece_bytes_for
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import (
    BadMessage,
    ConnectionLost,
    DeadlinePassed,
    HybridError,
    LinkError,
    Overloaded,
    Unauthenticated,
)

MIN_FILE_BYTES: Final = 32 << 10
"""A smaller file is fetched whole: asking about it would cost as much."""
_MOST_READ_BYTES: Final = 16 << 30
_PASSING: Final = (LinkError, Overloaded, Unauthenticated, DeadlinePassed)
"""What the caller tries again; anything else ends in the plain download."""


class ChunkCalls(Protocol):
    """What is asked of the gateway. Each raises `HybridError`s only, and may be made again."""

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        """The index of a file."""
        ...

    def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        """Parts of a file, one after the other."""
        ...

    def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """Bytes of a file from an offset on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An artifact on this machine: its folder, and the files that its manifest lists."""

    folder: Path
    files: Mapping[str, FileEntry]

    def path(self, name: str) -> Path:
        """Where a file lies."""
        return self.folder / PurePosixPath(name)


class Notes(Protocol):
    """Where the indexes of unfinished downloads are kept over a restart; called in threads."""

    def load(self, sha256: str) -> bytes | None:
        """What was saved for a file."""
        ...

    def save(self, sha256: str, data: bytes) -> None:
        """Keep it; a note that cannot be kept costs fetching it again."""
        ...

    def forget(self, sha256: str) -> None:
        """The file is complete, or the note was of no use."""
        ...


@dataclass(slots=True)
class Traffic:
    """Bytes so far: what indexes and ranges brought, what came by the plain download, what was here already."""

    index_bytes: int = 0
    range_bytes: int = 0
    whole_bytes: int = 0
    reused_bytes: int = 0

    @property
    def fetched_bytes(self) -> int:
        """All that came."""
        return self.index_bytes + self.range_bytes + self.whole_bytes


@dataclass(frozen=True, slots=True)
class _Local:
    """A file of a base."""

    ref: FileRef
    path: Path
    size: int


class ChunkedFiles:
    """The files of one artifact; `blob` has the shape of a plain download.

    Args:
        calls: the gateway.
        wanted: the files of the artifact's manifest.
        bases: artifacts on this machine, the most similar first.
        notes: keeps indexes over a restart; None keeps them in memory.
        read: how files of the bases are read.
        traffic: counts what comes and what was here; by default one of its own.
    """

    def __init__(
        self,
        calls: ChunkCalls,
        wanted: Mapping[str, FileEntry],
        bases: Sequence[Base],
        *,
        notes: Notes | None = None,
        read: ReadAt = read_at,
        traffic: Traffic | None = None,
    ) -> None:
        self._calls, self._notes, self._read = calls, notes, read
        self._sizes = {entry.sha256: entry.size for entry in wanted.values()}
        self._refs = {ref.sha256: (name, ref) for name, ref in refs_of(wanted).items()}
        self._here = list(_locals(bases))
        self._encoded: dict[tuple[str, str, int], bytes] = {}
        self._plain: set[str] = set()
        self.traffic = traffic or Traffic()

    def distrust(self, sha256: str) -> None:
        """What was put together is not the file: from now on it is downloaded whole."""
        self._plain.add(sha256)

    def done(self, sha256: str) -> None:
        """The file is complete and right: what was kept for going on with it is not needed any more. Blocking."""
        if self._notes is not None:
            self._notes.forget(sha256)

    async def blob(self, sha256: str, offset: int) -> AsyncGenerator[bytes]:
        """The bytes of a file from `offset` on, in blocks.

        Raises:
            LinkError, Overloaded, Unauthenticated: go on later from where the bytes ended.
            NotFound: the gateway does not hold the file.
        """
        index = await self._index(sha256)
        at = offset
        if index is not None:
            try:
                async with aclosing(self._joined(sha256, index, offset)) as joined:
                    async for block in joined:
                        yield block
                        at += len(block)
            except _PASSING:
                raise
            except HybridError:
                self.distrust(sha256)
            else:
                return
        async for block in self._calls.blob(sha256, at):
            self.traffic.whole_bytes += len(block)
            yield block

    # The index.

    async def _index(self, sha256: str) -> ChunkIndex | None:
        """The file's index; None where the plain download is better, or all that there is."""
        size = self._sizes.get(sha256, 0)
        if sha256 in self._plain:
            await asyncio.to_thread(self.done, sha256)  # what was noted led to nothing
            return None
        if size < MIN_FILE_BYTES or not self._here:
            return None
        noted = await asyncio.to_thread(self._noted, sha256, size)
        if noted is not None:
            return noted
        try:
            data = await self._asked(sha256, size)
            index = await asyncio.to_thread(decode, data, size)
            if index.piece_bytes != piece_bytes_for(size):  # tiny pieces would cut what is here into millions of them
                raise BadMessage(f"the index of chunks has pieces of {index.piece_bytes} bytes")
        except _PASSING:
            raise
        except HybridError:
            self.distrust(sha256)
            return None
        await asyncio.to_thread(self._note, sha256, data)
        return index

    def _noted(self, sha256: str, size: int) -> ChunkIndex | None:
        """The index that was noted before; a damaged note costs fetching it again."""
        saved = self._notes.load(sha256) if self._notes is not None else None
        try:
            return decode(decompress(saved), size) if saved is not None else None
        except BadMessage:
            return None

    def _note(self, sha256: str, data: bytes) -> None:
        if self._notes is not None:
            self._notes.save(sha256, compress(data))

    async def _asked(self, sha256: str, size: int) -> bytes:
        """The encoded index, as the gateway has it; without a comparison where that leads to nothing."""
        name, ref = self._refs[sha256]
        similar = sorted(self._here, key=lambda local: _unlikeness(local, name, size))[:MAX_HAVE]
        have = tuple(local.ref for local in similar)
        answer = await self._calls.chunk_index(IndexCall(file=ref, have=have))
        self.traffic.index_bytes += len(answer.body)
        data = await self._unpacked(answer, similar, piece_bytes_for(size))
        if data is None:
            answer = await self._calls.chunk_index(IndexCall(file=ref))
            self.traffic.index_bytes += len(answer.body)
            data = await asyncio.to_thread(decompress, answer.body)
        if digest_of(data) != answer.digest:
            raise BadMessage("the index of chunks is not what its digest says")
        return data

    async def _unpacked(self, answer: IndexAnswer, similar: list[_Local], piece_bytes: int) -> bytes | None:
        """None: it was written against an index that this machine makes otherwise."""
        if not answer.dictionary:
            return await asyncio.to_thread(decompress, answer.body)
        for local in similar:
            base = await asyncio.to_thread(self._encoded_of, local, piece_bytes)
            if base and digest_of(base) == answer.dictionary:
                try:
                    data = await asyncio.to_thread(decompress, answer.body, base)
                except BadMessage:
                    return None
                return data if digest_of(data) == answer.digest else None
        return None

    def _encoded_of(self, local: _Local, piece_bytes: int) -> bytes:
        """The index of a local file; nothing where it cannot be read, or changes."""
        key = (str(local.path), local.ref.sha256, piece_bytes)
        if key not in self._encoded:
            try:
                data = index_file(local.ref, local.path, local.size, piece_bytes, find=self._model, read=self._read)
            except (HybridError, OSError):
                data = b""
            self._encoded[key] = data
        return self._encoded[key]

    def _model(self, sha256: str) -> tuple[Path, int] | None:
        return next(((local.path, local.size) for local in self._here if local.ref.sha256 == sha256), None)

    # Putting it together.

    async def _joined(self, sha256: str, index: ChunkIndex, offset: int) -> AsyncGenerator[bytes]:
        here = await asyncio.to_thread(self._found, index)
        rest = [chunk for chunk in index.chunks if chunk.offset + chunk.size > offset]
        at = 0
        while at < len(rest):
            n_chunks, ranges = next_batch(islice(rest, at, None), here, offset)
            stream = (
                _Exactly(self._calls.chunk_ranges(RangesCall(sha256=sha256, ranges=put_ranges(ranges))))
                if ranges
                else None
            )
            try:
                for chunk in islice(rest, at, at + n_chunks):
                    skipped = max(0, offset - chunk.offset)
                    async for block in self._chunk(sha256, chunk, skipped, here, stream):
                        yield block
            finally:
                if stream is not None:
                    await stream.close()
            at += n_chunks

    async def _chunk(
        self, sha256: str, chunk: Chunk, skipped: int, here: Places, stream: "_Exactly | None"
    ) -> AsyncIterator[bytes]:
        """The bytes of one chunk but for the first `skipped`."""
        if not chunk.name:
            self.traffic.reused_bytes += chunk.size - skipped
            yield chunk.glue[skipped:]
            return
        place = here.get((chunk.name, chunk.size))
        if place is not None:
            content = await asyncio.to_thread(self._copied, place, chunk)
            if content is not None:
                self.traffic.reused_bytes += chunk.size - skipped
                yield content[skipped:]
                return
            wanted = [(chunk.offset + skipped, chunk.size - skipped)]
            stream = _Exactly(self._calls.chunk_ranges(RangesCall(sha256=sha256, ranges=put_ranges(wanted))))
        assert stream is not None
        try:
            async for block in stream.take(chunk.size - skipped):
                self.traffic.range_bytes += len(block)
                yield block
        finally:
            if place is not None:
                await stream.close()

    def _found(self, index: ChunkIndex) -> Places:
        """Where this machine has the chunks of an index; reads local files until there is nothing to look for."""
        missing = {(chunk.name, chunk.size) for chunk in index.chunks if chunk.name}
        places: Places = {}
        read_bytes = 0
        for local in self._here:
            if not missing or read_bytes > _MOST_READ_BYTES:
                break
            data = self._encoded_of(local, index.piece_bytes)
            read_bytes += local.size
            for chunk in decode(data, local.size).chunks if data else ():
                key = (chunk.name, chunk.size)
                if key in missing:
                    missing.discard(key)
                    places[key] = (local.path, chunk.offset)
        return places

    def _copied(self, place: tuple[Path, int], chunk: Chunk) -> bytes | None:
        """The chunk's bytes from here, if they still are what they were."""
        path, offset = place
        try:
            content = self._read(path, offset, chunk.size)
        except (HybridError, OSError):
            return None
        return content if len(content) == chunk.size and name_of(content) == chunk.name else None


class _Exactly:
    """A stream from which exactly so many bytes are taken at a time."""

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks
        self._left = b""

    async def take(self, n_bytes: int) -> AsyncIterator[bytes]:
        """The next bytes, in blocks.

        Raises:
            ConnectionLost: the stream ends before.
        """
        while n_bytes:
            if not self._left:
                self._left = await anext(self._blocks, b"")
                if not self._left:
                    raise ConnectionLost(f"the answer ended {n_bytes} bytes early; go on from there")
            block, self._left = self._left[:n_bytes], self._left[n_bytes:]
            n_bytes -= len(block)
            yield block

    async def close(self) -> None:
        """Let go of it."""
        if isinstance(self._blocks, AsyncGenerator):
            await self._blocks.aclose()


def _locals(bases: Sequence[Base]) -> Iterator[_Local]:
    """Every file of the bases that is worth looking at, once."""
    seen: set[str] = set()
    for base in bases:
        for name, ref in refs_of(base.files).items():
            size = base.files[name].size
            if size and ref.sha256 not in seen:
                seen.add(ref.sha256)
                yield _Local(ref, base.path(name), size)


def _unlikeness(local: _Local, name: str, size: int) -> tuple[bool, bool, int]:
    """How little a local file promises to be like a wanted one; ties are broken by the order of the bases."""
    wanted = PurePosixPath(name)
    return local.path.name != wanted.name, local.path.suffix != wanted.suffix, abs(local.size - size)
