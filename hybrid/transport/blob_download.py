"""One blob on its way from a gateway into a part file: resumed after any break, verified, one writer at a time."""

import asyncio
import os
import shutil
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.durable import storing, try_lock
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import BadMessage, Conflict, CorruptContent, DiskFull, LinkError, Overloaded
from hybrid.transport.chunk_download import ChunkedFiles
from hybrid.transport.patience import Meter, Patience
from hybrid.transport.registry_client import RegistryClient

_RESERVE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Who is told of each step forward, and how long none may come."""

    advance: Callable[[int], None]
    patience_s: float


class Download:
    """One blob on its way into a part file that only one process at a time writes."""

    def __init__(
        self, client: RegistryClient, files: ChunkedFiles, entry: FileEntry, parts: Path, progress: Progress
    ) -> None:
        self._client, self._files, self._entry = client, files, entry
        self._meter = Meter(progress.advance)
        self._patience = Patience(progress.patience_s)
        self.path = parts / f"{entry.sha256}.part"

    async def run(self) -> None:
        """Bring the part to its full size and the right digest."""
        was_corrupt = False
        while True:
            try:
                handle = await asyncio.to_thread(self._hold)
                try:
                    await self._fill(handle)
                    if await asyncio.to_thread(fresh_sha256, self.path) == self._entry.sha256:
                        await asyncio.to_thread(self._files.done, self._entry.sha256)
                        return
                    os.ftruncate(handle, 0)
                    self._files.distrust(self._entry.sha256)
                finally:
                    os.close(handle)
                if was_corrupt:
                    raise CorruptContent(f"{self._client.url}: blob {self._entry.sha256} came damaged twice")
                was_corrupt = True
            except (LinkError, Overloaded, Conflict) as exc:
                await self._patience.wait(exc)

    def _hold(self) -> int:
        with storing(self.path, self._entry.size):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            here_bytes = self.path.stat().st_size if self.path.exists() else 0
            _check_room(self.path, self._entry.size - here_bytes)
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o600)
        if not try_lock(handle):
            os.close(handle)
            raise Conflict(f"{self.path}: another process is downloading it")
        return handle

    async def _fill(self, handle: int) -> None:
        offset = os.fstat(handle).st_size
        if offset > self._entry.size:
            os.ftruncate(handle, 0)
            offset = 0
        self._meter.reach(offset)
        if offset == self._entry.size:
            return
        async with aclosing(self._files.blob(self._entry.sha256, offset)) as blocks:
            async for block in blocks:
                offset += len(block)
                if offset > self._entry.size:
                    raise BadMessage(f"{self._client.url}: blob {self._entry.sha256} is longer than its manifest says")
                await asyncio.to_thread(self._write, handle, block)
                self._meter.reach(offset)
                self._patience.moved()

    def _write(self, handle: int, block: bytes) -> None:
        with storing(self.path, self._entry.size):
            rest = memoryview(block)
            while rest:
                rest = rest[os.write(handle, rest) :]


def _check_room(path: Path, wanted_bytes: int) -> None:
    """Say before the first byte that the last one would not fit."""
    free_bytes = shutil.disk_usage(path.parent).free
    if wanted_bytes + _RESERVE_BYTES > free_bytes:
        raise DiskFull(
            f"{path.parent}: {wanted_bytes} bytes are to come and {free_bytes} are free; make room and try again",
            path=str(path),
            wanted_bytes=wanted_bytes,
        )
