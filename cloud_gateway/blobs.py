"""The blob store: files by their SHA-256, uploaded in pieces that survive a break on either side.

Design: a part is one file under an exclusive `flock`, so that one writer at a time holds it, in any process, and
a killed writer lets go by itself. A blob gets its name by a rename after its bytes were read back, hashed and
synced; so a name in the store is a promise, and whatever breaks before leaves a part or nothing.
"""

import hashlib
import logging
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from hybrid.artifact.durable import storing, sync_folder, try_lock
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, Conflict, CorruptContent, DiskFull, TooLarge

PART_LIFETIME_S: Final = 86_400.0
"""An unfinished upload is removed this long after its last byte."""
MAX_BLOB_BYTES: Final = 64 << 30
RESERVE_BYTES: Final = 1 << 20
"""What an upload leaves free, for the database and the logs."""
_SWEEP_EVERY_S: Final = 3_600.0
_log = logging.getLogger("hybrid.blobs")


class BlobStore:
    """Content-addressed files below `folder`; every method may be called from any thread."""

    def __init__(self, folder: Path, *, max_blob_bytes: int = MAX_BLOB_BYTES) -> None:
        self._blobs = folder / "blobs"
        self._parts = folder / "parts"
        self._max_blob_bytes = max_blob_bytes
        self._swept_s = float("-inf")
        self._sweeping = threading.Lock()
        with storing(folder):
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._parts.mkdir(exist_ok=True)
        self._sweep_now_and_then()

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would."""
        check_digest(sha256)
        return self._blobs / sha256[:2] / sha256

    def find(self, sha256: str) -> Path | None:
        """The finished blob, if it is here."""
        path = self.path(sha256)
        return path if path.is_file() else None

    def offset(self, sha256: str) -> int:
        """How many bytes of an unfinished upload are here."""
        try:
            return self._part(sha256).stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, sha256: str, *, offset: int, total_bytes: int) -> "Upload":
        """Go on with an upload, or start it at offset 0; the caller closes it.

        Raises:
            Conflict: another writer has it, or the offset is not where it ends (`fields`: upload_offset).
            DiskFull: the rest would not fit; nothing was written.
            TooLarge: beyond the store's limit for one blob.
            BadMessage: a negative size, or an offset beyond it.
        """
        if not 0 <= offset <= total_bytes:
            raise BadMessage(f"offset {offset} of {total_bytes} bytes is refused: 0 <= offset <= length is wanted")
        if total_bytes > self._max_blob_bytes:
            raise TooLarge(f"a file of {total_bytes} bytes is refused: {self._max_blob_bytes} are allowed here")
        self._sweep_now_and_then()
        part = self._part(sha256)
        with storing(part, total_bytes):
            self._check_room(total_bytes - offset)
            upload = Upload(part, self.path(sha256), total_bytes)
        if upload.offset > total_bytes:
            upload.drop()
        if upload.offset != offset:
            seen = upload.offset
            upload.close()
            raise Conflict(f"the upload stands at byte {seen}, not at {offset}; go on from there", upload_offset=seen)
        return upload

    def sweep(self, *, older_than_s: float = PART_LIFETIME_S) -> int:
        """Remove unfinished uploads without a new byte for that long; how many were removed."""
        removed = 0
        for part in self._parts.glob("*.part"):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > older_than_s:
                    part.unlink()
                    removed += 1
        if removed:
            _log.info("blobs.swept n_parts=%d", removed)
        return removed

    def _sweep_now_and_then(self) -> None:
        with self._sweeping:
            if time.monotonic() - self._swept_s < _SWEEP_EVERY_S:
                return
            self._swept_s = time.monotonic()
        self.sweep()

    def _part(self, sha256: str) -> Path:
        return self._parts / f"{check_digest(sha256)}.part"

    def _check_room(self, wanted_bytes: int) -> None:
        free_bytes = shutil.disk_usage(self._parts).free
        if wanted_bytes + RESERVE_BYTES > free_bytes:
            raise DiskFull(
                f"{wanted_bytes} bytes are to come and {free_bytes} are free on the gateway; make room and push again",
                wanted_bytes=wanted_bytes,
            )


class Upload:
    """One writer's hold on the part of a blob; close it, or use it as a context.

    A writer that was cancelled may still have a call running in a thread: closing waits for that.
    """

    def __init__(self, part: Path, blob: Path, total_bytes: int) -> None:
        self._busy = threading.Lock()
        self._part, self._blob, self._total_bytes = part, blob, total_bytes
        self._handle = os.open(part, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.offset = os.fstat(self._handle).st_size
        """Bytes that are here."""
        if not try_lock(self._handle) or not self._is_ours():
            os.close(self._handle)
            raise Conflict("another upload of this file is under way; try again", upload_offset=self.offset)
        self.offset = os.fstat(self._handle).st_size
        if blob.exists():  # a rival finished between our caller's look and our lock
            self.drop()
            self.close()
            raise Conflict("this file is here already", upload_offset=total_bytes)

    def append(self, data: bytes) -> None:
        """Write the next bytes.

        Raises:
            DiskFull: no room; the part is dropped, so that it does not keep the disk full.
            BadMessage: more bytes than were announced.
            Conflict: the upload was closed.
        """
        with self._busy:
            self._check_open()
            self._append(data)

    def _append(self, data: bytes) -> None:
        if self.offset + len(data) > self._total_bytes:
            raise BadMessage(f"more than the announced {self._total_bytes} bytes came")
        try:
            with storing(self._part, self._total_bytes):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._handle, rest) :]
        except DiskFull:
            self.drop()
            raise
        self.offset += len(data)

    @property
    def is_complete(self) -> bool:
        """Whether all announced bytes are here."""
        return self.offset == self._total_bytes

    def finish(self) -> Path:
        """Read back, compare the digest, sync, and give the blob its name.

        Raises:
            CorruptContent: another digest; the part is dropped.
            DiskFull, StorageError: the disk refused.
            Conflict: the upload was closed.
        """
        with self._busy:
            self._check_open()
            return self._finish()

    def _finish(self) -> Path:
        with storing(self._part, self._total_bytes):
            with open(self._handle, "rb", closefd=False) as file:
                file.seek(0)
                seen = hashlib.file_digest(file, "sha256").hexdigest()
            if seen != self._blob.name:
                self.drop()
                raise CorruptContent(
                    f"{self._total_bytes} bytes came whose digest is {seen}, not {self._blob.name}; they are dropped, "
                    "send the file again"
                )
            os.fsync(self._handle)
            if not self._blob.parent.is_dir():
                self._blob.parent.mkdir(exist_ok=True)
                sync_folder(self._blob.parent.parent)
            self._part.rename(self._blob)
            sync_folder(self._blob.parent)
        return self._blob

    def drop(self) -> None:
        """Forget all bytes; the upload starts anew."""
        with suppress(OSError):
            os.ftruncate(self._handle, 0)
        self.offset = 0

    def close(self) -> None:
        """Sync what came and let go, once a running call ended; an upload without a byte leaves nothing."""
        with self._busy:
            if self._handle >= 0:
                self._close()

    def _close(self) -> None:
        try:
            with storing(self._part):
                if self.offset:
                    os.fsync(self._handle)
                elif self._is_ours():
                    self._part.unlink(missing_ok=True)
        finally:
            os.close(self._handle)
            self._handle = -1

    def _check_open(self) -> None:
        if self._handle < 0:
            raise Conflict("this upload was given up; go on from its end", upload_offset=self.offset)

    def _is_ours(self) -> bool:
        try:
            return self._part.stat().st_ino == os.fstat(self._handle).st_ino
        except OSError:
            return False

    def __enter__(self) -> "Upload":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
