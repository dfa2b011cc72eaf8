"""The folder of one prepared graph: its table of cuts, its graph, its one weights file, its heads and tails.

    CACHE/<model digest, 16 digits>/<shape key id>-<format>/
        table.json  graph.onnx  weights.bin  head-<cut id>.onnx  head-<cut id>-q<levels>.onnx  tail-<cut id>.onnx
        (of a TensorFlow Lite model: table.json  graph.tflite  head-<cut id>.tflite  tail-<cut id>.tflite)

A folder appears whole, by a rename, or not at all. What it should hold is written in `table.json`: a folder that holds
anything else is made again.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from hybrid.errors import DiskFull, StorageError
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.cut import CutTable, Side

FORMAT = 1
"""Raise it with each change of what a folder holds or of how cuts are found."""

TABLE_FILE = "table.json"
GRAPH_FILE = "graph.onnx"
_ABANDONED_AFTER_S = 3600.0
_NO_ROOM = frozenset({errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)})


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was written. While inode, size and time are those, its bytes are trusted without reading them."""

    size: int
    inode: int
    mtime_ns: int
    sha256: str


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What `table.json` says."""

    format: int
    engine: str
    model_digest: str
    shape_key: str
    files: dict[str, Stamp]
    table: CutTable
    graph: str = GRAPH_FILE


def folder_for(cache: Path, model_digest: str, shape_key: ShapeKey) -> Path:
    """Where this graph is kept; another format or engine version has a folder of its own."""
    import onnxruntime

    return cache / model_digest[:16] / f"{shape_key.id}-{FORMAT}-ort{onnxruntime.__version__}"


def read_record(folder: Path, model_digest: str, shape_key: ShapeKey) -> Record | None:
    """The record of this folder, or None where it is missing, damaged, or of something else."""
    try:
        record = msgspec.json.decode((folder / TABLE_FILE).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    if record.model_digest != model_digest or record.shape_key != shape_key.text or record.format != FORMAT:
        return None
    return record if all(_is_as_written(folder / name, stamp) for name, stamp in record.files.items()) else None


def settle(path: Path) -> Stamp:
    """Force a finished file to disk; its stamp."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    status = path.stat()
    return Stamp(size=status.st_size, inode=status.st_ino, mtime_ns=status.st_mtime_ns, sha256=_sha256(path))


def new_draft(folder: Path) -> Path:
    """A fresh folder beside `folder`, to be filled and then put in its place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent)
    return Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))


def publish(draft: Path, folder: Path) -> bool:
    """Put the draft in place; False where another process has put a folder there first."""
    try:
        draft.rename(folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True


def discard(folder: Path) -> None:
    """Take a folder out of its place at once, then delete it; another process may do the same."""
    grave = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    with contextlib.suppress(OSError):
        folder.rename(grave / "old")
    shutil.rmtree(grave, ignore_errors=True)


def piece_name(side: Side, cut_id: str, graph: str = GRAPH_FILE) -> str:
    """File name of a head or tail of a graph of this file name."""
    return f"{side}-{cut_id}{Path(graph).suffix}"


def quantizing_name(cut_id: str, n_levels: int) -> str:
    """File name of a head that also answers with levels of what crosses."""
    return f"head-{cut_id}-q{n_levels}.onnx"


def require_room(folder: Path, wanted_bytes: int) -> None:
    """See that the disk has room before anything is written.

    Raises:
        DiskFull: it has not.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes:
        raise DiskFull(
            f"{folder}: {wanted_bytes} bytes are needed and {free} are free; make room and try again",
            path=str(folder),
            wanted_bytes=wanted_bytes,
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name and move it into place, so that a reader sees all of it or nothing.

    It is not forced to disk, which takes 30 ms and more: after a power cut, `read_record` finds what is damaged.

    Raises:
        DiskFull: no room; nothing is left behind.
        StorageError: the folder cannot be written to.
    """
    draft = None
    try:
        descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(draft).replace(path)
    except OSError as exc:
        if draft is not None:
            Path(draft).unlink(missing_ok=True)
        raise storage_error(exc, path, len(content)) from exc


def storage_error(error: OSError, path: Path, wanted_bytes: int) -> StorageError:
    """The typed error for a write that the system refused."""
    if error.errno in _NO_ROOM:
        return DiskFull(
            f"{path}: no room for {wanted_bytes} bytes; make room and try again",
            path=str(path),
            wanted_bytes=wanted_bytes,
        )
    return StorageError(
        f"{path}: cannot be written ({error.strerror}); check the folder's owner and rights", path=str(path)
    )


def _sweep(parent: Path) -> None:
    """Delete drafts that a killed process left behind."""
    for draft in parent.glob(".draft-*"):
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _ABANDONED_AFTER_S:
                shutil.rmtree(draft, ignore_errors=True)


def _is_as_written(path: Path, stamp: Stamp) -> bool:
    try:
        status = path.stat()
        if status.st_size != stamp.size:
            return False
        if (status.st_ino, status.st_mtime_ns) == (stamp.inode, stamp.mtime_ns):
            return True
        return _sha256(path) == stamp.sha256  # the cache was copied or restored
    except OSError:
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_newest(folder: Path, n_kept: int, in_use: Collection[Path] = ()) -> None:
    """Removes the prepared folders of one model that were made longest ago, beyond a number; those in use stay."""
    try:
        folders = [made for made in folder.iterdir() if made.is_dir() and made not in in_use]
        folders.sort(key=lambda made: made.stat().st_mtime, reverse=True)
    except OSError:
        return  # another process removes them too
    for made in folders[n_kept:]:
        shutil.rmtree(made, ignore_errors=True)
