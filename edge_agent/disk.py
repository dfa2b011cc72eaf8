"""The disk as the agent uses it: a few operations whose order decides what a power cut may leave.

Design: everything that must survive a power cut is written through this border, so that the simulation can stand in for
the disk and cut the power between any two operations (ALICE, Pillai et al. 2014: a file's bytes, its name and its
folder's entry reach the disk in any order unless each is synced).
"""

import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from hybrid.artifact.chunk_view import read_at
from hybrid.artifact.durable import storing, sync_folder
from hybrid.errors import StorageError

_FICLONE: Final = 0x40049409
_BLOCK_BYTES: Final = 1 << 20


class Disk(Protocol):
    """A file system. Raises `DiskFull` and `StorageError`; `FileNotFoundError` where something is not there."""

    def read(self, path: Path) -> bytes:
        """The whole content of a file."""
        ...

    def read_at(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """So many bytes of a file from an offset on; fewer only at its end."""
        ...

    def append(self, path: Path, content: bytes) -> None:
        """Write at a file's end, making it (mode 0600) and its folders where they are missing; not synced."""
        ...

    def sync(self, path: Path) -> None:
        """A file's content, or a folder's entries, are on the disk when this returns."""
        ...

    def replace(self, source: Path, target: Path) -> None:
        """Rename over whatever is there; lasting only after `sync` of the target's folder."""
        ...

    def make_folder(self, path: Path) -> None:
        """Make a folder (mode 0700) and those above it, lasting when this returns; being there already is fine."""
        ...

    def remove(self, path: Path) -> None:
        """Remove a file or a folder with all that is in it; being gone already is fine."""
        ...

    def names(self, path: Path) -> Iterable[str]:
        """What lies in a folder, sorted; nothing where there is none."""
        ...

    def size(self, path: Path) -> int:
        """Bytes of a file; -1 where there is none."""
        ...

    def is_plain(self, path: Path) -> bool:
        """Whether there is a regular file with this one name: no link of either kind, no folder, no pipe."""
        ...

    def is_folder(self, path: Path) -> bool:
        """Whether there is a folder: a link to one is none."""
        ...

    def sha256(self, path: Path) -> str:
        """The digest of a file's content, read in pieces."""
        ...

    def copy(self, source: Path, target: Path) -> None:
        """Make `target` anew with the content of a file, sharing blocks where the file system can; not synced."""
        ...

    def free_bytes(self, path: Path) -> int:
        """Bytes that could still be written where a path lies."""
        ...


class RealDisk:
    """This machine's own."""

    def read(self, path: Path) -> bytes:
        """See `Disk`."""
        with _reading(path):
            return path.read_bytes()

    def read_at(self, path: Path, offset: int, n_bytes: int) -> bytes:
        """See `Disk`."""
        with _reading(path):
            return read_at(path, offset, n_bytes)

    def append(self, path: Path, content: bytes) -> None:
        """See `Disk`."""
        with storing(path, len(content)):
            _make_lasting_folder(path.parent)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)

    def sync(self, path: Path) -> None:
        """See `Disk`."""
        with storing(path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def replace(self, source: Path, target: Path) -> None:
        """See `Disk`."""
        with storing(target):
            source.replace(target)

    def make_folder(self, path: Path) -> None:
        """See `Disk`."""
        with storing(path):
            _make_lasting_folder(path)

    def remove(self, path: Path) -> None:
        """See `Disk`."""
        with storing(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def names(self, path: Path) -> Iterable[str]:
        """See `Disk`."""
        with _reading(path):
            return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else ()

    def size(self, path: Path) -> int:
        """See `Disk`."""
        with _reading(path):
            return path.stat().st_size if path.is_file() else -1

    def is_plain(self, path: Path) -> bool:
        """See `Disk`."""
        try:
            found = path.lstat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_nlink == 1

    def is_folder(self, path: Path) -> bool:
        """See `Disk`."""
        return path.is_dir() and not path.is_symlink()

    def sha256(self, path: Path) -> str:
        """See `Disk`."""
        with _reading(path), path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def copy(self, source: Path, target: Path) -> None:
        """See `Disk`."""
        with storing(target):
            _make_lasting_folder(target.parent)
            target.unlink(missing_ok=True)
            handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "wb") as copied, source.open("rb") as original:
                try:
                    fcntl.ioctl(copied.fileno(), _FICLONE, original.fileno())
                except OSError:  # another file system, or one that cannot share blocks
                    shutil.copyfileobj(original, copied, _BLOCK_BYTES)

    def free_bytes(self, path: Path) -> int:
        """See `Disk`."""
        with _reading(path):
            while not path.exists():
                path = path.parent
            return shutil.disk_usage(path).free


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Map what the operating system says while `path` is read; that it is not there stays what it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise StorageError(f"{path}: {exc.strerror or exc}; look at the disk's health", path=str(path)) from exc


def _make_lasting_folder(path: Path) -> None:
    """Make a folder and those above it; each new one's name is synced, or a power cut takes all that it holds."""
    if path.is_dir():
        return
    _make_lasting_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_folder(path.parent)


def write_durably(disk: Disk, path: Path, content: bytes) -> None:
    """Put a file in place, whole or not at all, and lasting when this returns."""
    draft = path.with_name(f".{path.name}.draft")
    disk.remove(draft)
    disk.append(draft, content)
    disk.sync(draft)
    disk.replace(draft, path)
    disk.sync(path.parent)
