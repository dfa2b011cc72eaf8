"""Bytes that items of boxes refer to: each box has a space of its own, so that none can ask for another's."""

import stat
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from cloud_gateway.blobs import BlobStore
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, NotFound, Overloaded

MAX_BLOB_BYTES: Final = 64 << 20
"""As the wire's largest message."""

MOST_BOX_BYTES: Final = 8 << 30
"""Of the files of one box: somewhat more than what its items of all kinds may have."""

COUNTED_S: Final = 300.0
"""So long a count of a box's files holds, with what came since."""

_FILE_BYTES: Final = 4096

_HEX: Final = frozenset("0123456789abcdef")


class BlobShelf(Protocol):
    """What ingest asks of the blobs of boxes."""

    def size(self, box_id: str, sha256: str) -> int:
        """Bytes of a finished blob; -1 where there is none."""
        ...

    def read(self, box_id: str, sha256: str, *, offset: int = 0, n_bytes: int = -1) -> bytes:
        """Its content, or (by `n_bytes`) a piece of it. Raises `NotFound`."""
        ...

    def put(self, box_id: str, sha256: str, content: bytes) -> None:
        """Keep a content under its digest, on the disk when this returns."""
        ...

    def remove(self, box_id: str, sha256: str) -> None:
        """Forget it; being gone already is fine."""
        ...


class FleetBlobs:
    """Folders `boxes/BOX/blobs` below one folder; every method may be called from any thread."""

    def __init__(self, folder: Path, *, most_box_bytes: int = MOST_BOX_BYTES) -> None:
        self._folder = folder / "boxes"
        self.most_box_bytes = most_box_bytes
        self._held: dict[str, tuple[int, float]] = {}
        self._stores: dict[str, BlobStore] = {}
        self._guard = threading.Lock()

    def store(self, box_id: str) -> BlobStore:
        """The space of one box."""
        if len(box_id) != 32 or not set(box_id) <= _HEX:
            raise BadMessage(f"box {box_id[:40]!r}: 32 hex digits are wanted")
        with self._guard:
            found = self._stores.get(box_id)
            if found is None:
                if len(self._stores) >= 1024:
                    self._stores.clear()
                found = self._stores[box_id] = BlobStore(self._folder / box_id, max_blob_bytes=MAX_BLOB_BYTES)
            return found

    def check_room(self, box_id: str, more_bytes: int) -> None:
        """Before a box brings a piece of a file; also what no item names is counted.

        Raises:
            Overloaded: its space is full.
        """
        now_s = time.monotonic()
        with self._guard:
            n_bytes, counted_s = self._held.get(box_id, (0, float("-inf")))
        if now_s - counted_s > COUNTED_S:
            n_bytes, counted_s = self._count(box_id), now_s
        if n_bytes + more_bytes > self.most_box_bytes:
            raise Overloaded(
                f"this box has {n_bytes} bytes of files here, and {self.most_box_bytes} are kept for one box; "
                "look at what it brings, remove what is done with",
                retry_after_s=COUNTED_S,
            )
        with self._guard:
            if len(self._held) >= 4096:
                self._held.clear()
            self._held[box_id] = n_bytes + more_bytes + _FILE_BYTES, counted_s

    def _count(self, box_id: str) -> int:
        """Bytes of a box's files, with what each takes beside its content."""
        n_bytes = 0
        for path in (self._folder / box_id).rglob("*"):
            with suppress(OSError):
                found = path.stat()
                n_bytes += found.st_size + _FILE_BYTES if stat.S_ISREG(found.st_mode) else 0
        return n_bytes

    def size(self, box_id: str, sha256: str) -> int:
        """See `BlobShelf`."""
        path = self._path(box_id, sha256)
        return path.stat().st_size if path.is_file() else -1

    def read(self, box_id: str, sha256: str, *, offset: int = 0, n_bytes: int = -1) -> bytes:
        """See `BlobShelf`."""
        try:
            with self._path(box_id, sha256).open("rb") as file:
                file.seek(offset)
                return file.read(n_bytes)
        except FileNotFoundError as exc:
            raise NotFound(f"blob {sha256[:16]}… of box {box_id} is gone") from exc

    def put(self, box_id: str, sha256: str, content: bytes) -> None:
        """See `BlobShelf`."""
        store = self.store(box_id)
        if store.find(sha256) is not None:
            return
        with store.begin(sha256, offset=store.offset(sha256), total_bytes=len(content)) as upload:
            upload.append(content[upload.offset :])
            upload.finish()

    def remove(self, box_id: str, sha256: str) -> None:
        """See `BlobShelf`."""
        self._path(box_id, sha256).unlink(missing_ok=True)

    def boxes(self) -> list[str]:
        """The boxes that have a space here."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if len(path.name) == 32)
        except FileNotFoundError:
            return []

    def older(self, box_id: str, age_s: float) -> list[str]:
        """Finished blobs of a box that came so long ago."""
        before_s = time.time() - age_s
        found = []
        for path in (self._folder / box_id / "blobs").glob("??/*"):
            with suppress(OSError):
                if len(path.name) == 64 and path.stat().st_mtime < before_s:
                    found.append(path.name)
        return found

    def _path(self, box_id: str, sha256: str) -> Path:
        check_digest(sha256)
        if len(box_id) != 32 or not set(box_id) <= _HEX:
            raise BadMessage(f"box {box_id[:40]!r}: 32 hex digits are wanted")
        return self._folder / box_id / "blobs" / sha256[:2] / sha256
