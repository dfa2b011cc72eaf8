"""Bytes that items of boxes refer to: each box has a space of its own, so that none can ask for another's."""

import threading
from pathlib import Path
from typing import Final, Protocol

from cloud_gateway.blobs import BlobStore
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, NotFound

MAX_BLOB_BYTES: Final = 64 << 20
"""As the wire's largest message."""

_HEX: Final = frozenset("0123456789abcdef")


class BlobShelf(Protocol):
    """What ingest asks of the blobs of boxes."""

    def size(self, box_id: str, sha256: str) -> int:
        """Bytes of a finished blob; -1 where there is none."""
        ...

    def read(self, box_id: str, sha256: str) -> bytes:
        """Its content. Raises `NotFound`."""
        ...

    def put(self, box_id: str, sha256: str, content: bytes) -> None:
        """Keep a content under its digest, on the disk when this returns."""
        ...

    def remove(self, box_id: str, sha256: str) -> None:
        """Forget it; being gone already is fine."""
        ...


class FleetBlobs:
    """Folders `boxes/BOX/blobs` below one folder; every method may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "boxes"
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

    def size(self, box_id: str, sha256: str) -> int:
        """See `BlobShelf`."""
        path = self._path(box_id, sha256)
        return path.stat().st_size if path.is_file() else -1

    def read(self, box_id: str, sha256: str) -> bytes:
        """See `BlobShelf`."""
        try:
            return self._path(box_id, sha256).read_bytes()
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

    def _path(self, box_id: str, sha256: str) -> Path:
        check_digest(sha256)
        if len(box_id) != 32 or not set(box_id) <= _HEX:
            raise BadMessage(f"box {box_id[:40]!r}: 32 hex digits are wanted")
        return self._folder / box_id / "blobs" / sha256[:2] / sha256
