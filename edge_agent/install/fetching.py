"""Files of a new version on their way here: parts that are resumed, whole files by digest, and room for them first."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol, cast

from edge_agent.disk import Disk
from edge_agent.install.index_notes import SUFFIX
from edge_agent.install.shelf import on_disk
from hybrid.artifact.manifest import FileEntry
from hybrid.errors import ConnectionLost, CorruptContent, DiskFull
from hybrid.fleet.calls import FleetCalls
from hybrid.transport.chunk_download import Base, ChunkedFiles, Notes

SYNC_BYTES: Final = 32 << 20
"""A power cut costs at most so much of a download, and the flash is not asked more often."""

_WRITE_BYTES: Final = 1 << 20
_ENTRY_BYTES: Final = 4096
"""What a file takes beside its bytes."""


class FileSource(Protocol):
    """Where the files of one version come from."""

    def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes of a file from an offset on; raises `LinkError`s where it may be asked again."""
        ...

    def distrust(self, sha256: str) -> None:
        """What came was not the file; give it another way the next time."""
        ...


class Files(Protocol):
    """Where versions come from."""

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """Exact bytes of a manifest, and its signature as text."""
        ...

    def source(self, wanted: Mapping[str, FileEntry], bases: Sequence[Base]) -> FileSource:
        """The files of a version; those of `bases` are here and need not travel."""
        ...


class GatewayFiles:
    """`Files` of the gateway, in chunks: only what differs from an installed version travels."""

    def __init__(self, calls: Callable[[], FleetCalls | None], disk: Disk, notes: Notes | None = None) -> None:
        self._calls, self._disk, self._notes = calls, disk, notes

    def _now(self) -> FleetCalls:
        calls = self._calls()
        if calls is None:
            raise ConnectionLost("this box has no gateway now; it goes on when there is one")
        return calls

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        """See `Files`."""
        return await self._now().manifest(name, version)

    def source(self, wanted: Mapping[str, FileEntry], bases: Sequence[Base]) -> FileSource:
        """See `Files`."""
        files = ChunkedFiles(self._now(), wanted, bases, notes=self._notes, read=self._disk.read_at)
        return cast(FileSource, files)


class Downloads:
    """`DATA/downloads`: `SHA256` is a whole, verified file, `SHA256.part` the beginning of one."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk, self.folder = disk, folder

    def whole(self, sha256: str) -> Path | None:
        """Where a file lies that was verified when it came."""
        path = self.folder / sha256
        return path if self._disk.is_plain(path) else None

    def missing_bytes(self, entries: Iterable[FileEntry]) -> int:
        """Room that these files still need."""
        wanted_bytes = 0
        for entry in entries:
            here = max(self._disk.size(self.folder / f"{entry.sha256}.part"), 0)
            is_whole = self._disk.size(self.folder / entry.sha256) == entry.size
            wanted_bytes += _ENTRY_BYTES + (0 if is_whole else max(entry.size - here, 0))
        return wanted_bytes

    def check_room(self, wanted_bytes: int, reserve_bytes: int) -> None:
        """Say before the first byte that the last one would not fit.

        Raises:
            DiskFull: with what is wanted and what is free.
        """
        free_bytes = self._disk.free_bytes(self.folder)
        if wanted_bytes and wanted_bytes + reserve_bytes > free_bytes:
            raise DiskFull(
                f"{self.folder}: {wanted_bytes} bytes are to come, {reserve_bytes} shall stay free, "
                f"{free_bytes} are free; make room, it is tried again by itself",
                path=str(self.folder),
                wanted_bytes=wanted_bytes,
            )

    async def complete(self, entry: FileEntry, source: FileSource, advance: Callable[[int], None]) -> Path:
        """Bring a file here, from where its part ends; verified and on the disk when this returns.

        Raises:
            LinkError, NotFound, Overloaded: the part stays for the next time.
            CorruptContent: what came twice was not what the manifest says.
            DiskFull, StorageError: as the disk says.
        """
        whole, part = self.folder / entry.sha256, self.folder / f"{entry.sha256}.part"
        if self._disk.is_plain(whole) and await on_disk(self._disk.sha256, whole) == entry.sha256:
            return whole
        for is_last in (False, True):
            await self._append(entry, part, source, advance)
            if await on_disk(self._finish, entry, part, whole):
                return whole
            source.distrust(entry.sha256)
            if is_last:
                break
        raise CorruptContent(
            f"a file of {entry.size} bytes came twice with another digest than {entry.sha256[:16]}…; "
            f"push the version anew"
        )

    async def _append(self, entry: FileEntry, part: Path, source: FileSource, advance: Callable[[int], None]) -> None:
        offset = await on_disk(self._begin, entry, part)
        advance(offset)
        if offset == entry.size:
            return
        unsynced_bytes, block = 0, bytearray()
        async with aclosing(source.blob(entry.sha256, offset)) as blocks:  # type: ignore[type-var]
            try:
                async for piece in blocks:
                    block += piece
                    advance(len(piece))
                    if offset + len(block) > entry.size:
                        del block[entry.size - offset :]
                        break
                    if len(block) >= _WRITE_BYTES:
                        unsynced_bytes += len(block)
                        is_due = unsynced_bytes >= SYNC_BYTES
                        await on_disk(self._write, part, bytes(block), is_due=is_due)
                        offset += len(block)
                        block.clear()
                        unsynced_bytes = 0 if is_due else unsynced_bytes
            finally:
                if block:
                    await on_disk(self._write, part, bytes(block), is_due=False)
        if self._disk.size(part) < entry.size:
            raise ConnectionLost("the file ended too early; it goes on from there")

    def _begin(self, entry: FileEntry, part: Path) -> int:
        if not self._disk.is_plain(part) or self._disk.size(part) > entry.size:
            self._disk.remove(part)
            self._disk.append(part, b"")
        return self._disk.size(part)

    def _write(self, part: Path, block: bytes, *, is_due: bool) -> None:
        self._disk.append(part, block)
        if is_due:
            self._disk.sync(part)

    def _finish(self, entry: FileEntry, part: Path, whole: Path) -> bool:
        """Name the part as the file that it is; False (and no part) where it is another."""
        if self._disk.sha256(part) != entry.sha256:
            self._disk.remove(part)
            return False
        self._disk.sync(part)
        self._disk.remove(whole)
        self._disk.replace(part, whole)
        self._disk.sync(self.folder)
        return True

    def clean(self, wanted: Iterable[str]) -> None:
        """Remove all but these digests' files and parts."""
        keep = {name for sha256 in wanted for name in (sha256, f"{sha256}.part", f"{sha256}{SUFFIX}")}
        for name in self._disk.names(self.folder):
            if name not in keep:
                self._disk.remove(self.folder / name)
