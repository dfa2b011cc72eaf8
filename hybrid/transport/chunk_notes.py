"""Indexes of unfinished downloads beside their parts, so that a restart does not fetch them again."""

from contextlib import suppress
from pathlib import Path

from hybrid.artifact.durable import write_atomically
from hybrid.errors import StorageError


class FolderNotes:
    """`Notes` in a folder, `SHA256.index` each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, sha256: str) -> bytes | None:
        """See `Notes`."""
        with suppress(OSError):
            return self._path(sha256).read_bytes()
        return None

    def save(self, sha256: str, data: bytes) -> None:
        """See `Notes`."""
        with suppress(StorageError):
            write_atomically(self._path(sha256), data)

    def forget(self, sha256: str) -> None:
        """See `Notes`."""
        with suppress(OSError):
            self._path(sha256).unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.index"
