"""Files that only their owner reads, written whole or not at all."""

import os
import secrets
from pathlib import Path

from hybrid.errors import StorageError


def write_once(path: Path, content: bytes) -> bytes:
    """Make a file of mode 0600 unless one is there, and return what then stands in it.

    Complete or absent at every moment; of two processes that start at once one wins, and both see its content.

    Raises:
        StorageError: the folder cannot be written or the file not read.
    """
    try:
        if not path.exists():
            _create(path, content)
        return path.read_bytes()
    except OSError as exc:
        raise StorageError(f"{path} cannot be made or read: {exc.strerror}; mend its rights", path=str(path)) from exc


def _create(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)  # unlike a rename, never replaces what another process wrote meanwhile
        except FileExistsError:
            return
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
