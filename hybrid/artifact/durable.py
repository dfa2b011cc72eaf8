"""Files that are there whole or not at all, also after a power cut, and the errors of a full disk."""

import errno
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hybrid.errors import DiskFull, StorageError

_NO_ROOM: Final = frozenset(
    number for name in ("ENOSPC", "EDQUOT", "EFBIG") if (number := getattr(errno, name, None)) is not None
)


@contextmanager
def storing(path: Path, wanted_bytes: int | None = None) -> Iterator[None]:
    """Map what the operating system says while `path` is written.

    Raises:
        DiskFull: no room, over quota, or over the process's file size limit.
        StorageError: anything else that the disk refused.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise DiskFull(
                f"{path}: no room ({exc.strerror}); nothing was half-stored: make room and try again",
                path=str(path),
                wanted_bytes=wanted_bytes,
            ) from exc
        raise StorageError(
            f"{path}: {exc.strerror or exc}; check the disk and its permissions", path=str(path)
        ) from exc


def write_atomically(path: Path, data: bytes, *, is_shown: bool = False) -> None:
    """Give `path` this content: written beside it, synced, renamed over it, folder synced.

    Args:
        path: where.
        data: what.
        is_shown: others may read it as far as the umask allows; else its owner alone.

    Raises:
        DiskFull: no room; `path` is what it was before.
        StorageError: the disk refused otherwise.
    """
    with storing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = _beside(path) if is_shown else tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _beside(path: Path) -> tuple[int, str]:
    """A new file beside a path with the modes that the umask leaves, as `open` makes it."""
    name = path.with_name(f".tmp-{uuid.uuid4().hex[:12]}")
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), str(name)


def sync_file(path: Path) -> None:
    """Bring a file's bytes onto the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring a folder's entries onto the disk, where the platform lets folders be opened."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Whether this open file is now locked for its holder alone; the lock ends with the handle or its process."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        locking, non_blocking = getattr(msvcrt, "locking"), getattr(msvcrt, "LK_NBLCK")  # noqa: B009 (Windows only)
        try:
            locking(handle, non_blocking, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
