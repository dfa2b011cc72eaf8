"""Indexes of unfinished downloads on the agent's disk, so that a restart does not fetch them again."""

from contextlib import suppress
from pathlib import Path
from typing import Final

from edge_agent.disk import Disk
from hybrid.errors import StorageError

SUFFIX: Final = ".index"


class IndexNotes:
    """`Notes` beside the parts. Not synced: a damaged one is noticed and fetched again. Blocking."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        self._disk, self._folder = disk, folder

    def load(self, sha256: str) -> bytes | None:
        """See `Notes`."""
        with suppress(OSError, StorageError):
            return self._disk.read(self._path(sha256))
        return None

    def save(self, sha256: str, data: bytes) -> None:
        """See `Notes`."""
        with suppress(OSError, StorageError):
            self._disk.remove(self._path(sha256))
            self._disk.append(self._path(sha256), data)

    def forget(self, sha256: str) -> None:
        """See `Notes`."""
        with suppress(OSError, StorageError):
            self._disk.remove(self._path(sha256))

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{SUFFIX}"
