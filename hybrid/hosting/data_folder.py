"""A service's data folder: made private, and held by one service at a time."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from hybrid.errors import Conflict, StorageError


class DataFolder:
    """A context manager that holds the folder; the lock ends with the process, however it ends."""

    def __init__(self, path: Path, service: str = "gateway") -> None:
        self.path = path
        self._service = service
        self._descriptor = -1

    def __enter__(self) -> Self:
        """Make the folder (mode 0700) and take its lock.

        Raises:
            Conflict: another service of this kind holds it.
            StorageError: it cannot be made or written.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(
                self.path / f"{self._service}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as exc:
            raise StorageError(
                f"data folder {self.path} cannot be used: {exc.strerror}; give another with --data", path=str(self.path)
            ) from exc
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            holder = os.pread(self._descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise Conflict(
                f"data folder {self.path} is held by another {self._service} (process {holder or 'unknown'}); "
                "end that one or give another folder with --data"
            ) from exc
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
