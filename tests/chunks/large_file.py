"""A program of a test: index and fetch a file of 500 MB under a limit on memory."""

import asyncio
import hashlib
import resource
import sys
from pathlib import Path

import psutil

from hybrid.artifact.manifest import FileEntry
from hybrid.transport.chunk_download import Base, ChunkedFiles
from tests.chunks.local_calls import LocalCalls

SIZE = 500_000_000
MOST_BYTES = 320 << 20


def write(path: Path, mark: bytes) -> FileEntry:
    """A sparse file with a mark in it; its digest."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        file.seek(490_000_000)
        file.write(mark)
    return FileEntry(sha256=hashlib.sha256(mark).hexdigest(), size=SIZE)


async def update(room: Path) -> None:
    """Fetch the changed file from where most of it is here."""
    entries = {}
    for name in ("old", "new"):
        (room / name).mkdir()
        entries[name] = write(room / name / "w.data", name.encode())
    calls = LocalCalls(room / "kept")
    calls.files[entries["new"].sha256] = room / "new" / "w.data"
    base = Base(folder=room / "old", files={"w.data": entries["old"]})
    files = ChunkedFiles(calls, {"w.data": entries["new"]}, [base])
    at = SIZE * 9 // 10
    seen = at
    async for block in files.blob(entries["new"].sha256, at):
        place = 490_000_000 - seen
        if 0 <= place < len(block):
            assert block[place : place + 3] == b"new"
        seen += len(block)
    assert seen == SIZE
    assert calls.n_blob_calls == 0
    assert 0 < calls.sent_bytes < 4 << 20, calls.sent_bytes


limit = psutil.Process().memory_info().vms + MOST_BYTES
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
asyncio.run(update(Path(sys.argv[1])))
