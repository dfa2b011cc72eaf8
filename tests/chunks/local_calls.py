"""A gateway's answers about chunks without a network: the real service over a folder of files, and what it sent."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from cloud_gateway.chunk_service import ChunkService
from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.chunk_messages import IndexAnswer, IndexCall, RangesCall
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import ConnectionLost, NotFound


def entries(folder: Path) -> dict[str, FileEntry]:
    """The files of a folder as a manifest lists them."""
    return {
        path.relative_to(folder).as_posix(): FileEntry(sha256=fresh_sha256(path), size=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class LocalCalls:
    """`ChunkCalls` on a real `ChunkService`.

    Attributes:
        sent_bytes: of every request and answer, without HTTP.
        break_after: the connection breaks after so many more bytes of parts or blobs; None: never.
    """

    def __init__(self, notes: Path, *folders: Path) -> None:
        self.files = {entry.sha256: folder / name for folder in folders for name, entry in entries(folder).items()}
        self.service = ChunkService(self.files.get, notes)
        self.sent_bytes = 0
        self.n_index_calls = 0
        self.n_blob_calls = 0
        self.break_after: int | None = None

    async def chunk_index(self, call: IndexCall) -> IndexAnswer:
        self.n_index_calls += 1
        answer = self.service.index(call)
        self.sent_bytes += len(msgspec.msgpack.encode(call)) + len(msgspec.msgpack.encode(answer))
        return answer

    async def chunk_ranges(self, call: RangesCall) -> AsyncIterator[bytes]:
        self.sent_bytes += len(msgspec.msgpack.encode(call))
        n_bytes, blocks = self.service.ranges(call)
        for block in blocks:
            n_bytes -= len(block)
            yield self._sent(block)
        assert n_bytes == 0

    async def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        self.n_blob_calls += 1
        if sha256 not in self.files:
            raise NotFound("no such blob")
        data = self.files[sha256].read_bytes()
        for at in range(offset, len(data), 1 << 16):
            yield self._sent(data[at : at + (1 << 16)])

    def _sent(self, block: bytes) -> bytes:
        if self.break_after is not None:
            if self.break_after <= 0:
                raise ConnectionLost("broken on purpose")
            block = block[: self.break_after]
            self.break_after -= len(block)
        self.sent_bytes += len(block)
        return block
