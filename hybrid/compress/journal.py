"""What a search has done so far, on a disk: each finished piece of work in a folder named by all that it depends on.

Design: a piece is written beside its place and renamed into it, so it is there whole or not at all. What it depends on
(model, data, recipe, seed, versions) is in its name: nothing has to be told apart later, and other jobs may share the
folder. A piece whose bytes are not those that its note says, or whose note says another name, is put aside, not used.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import msgspec

from hybrid.artifact.cache import fresh_sha256
from hybrid.artifact.durable import storing, sync_file, sync_folder, try_lock
from hybrid.artifact.plain_file import read_plain
from hybrid.errors import Conflict, HybridError

NOTE: Final = "entry.json"
ASIDE: Final = "set-aside"
SPLITS: Final = "splits"
"""Of what bottlenecks are learned with."""

BASE: Final = "base"
"""Of a model that was exported, beside the pieces."""

_LOCK: Final = "lock"
_MOST_NOTE_BYTES: Final = 8 << 20
_SCHEMA: Final = 1


class _Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int
    digest: str
    content: msgspec.Raw
    sha256: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A finished piece of work: its JSON, and where its files lie."""

    content: bytes
    folder: Path

    def path(self, name: str) -> Path:
        """Where a file of it lies."""
        return self.folder / name


class Journal:
    """The pieces of one job; a context manager that holds the folder for itself.

    Args:
        folder: where they lie; made.
        facts: all that every piece depends on.
        again: nothing that lies there counts.

    Raises:
        Conflict: another process works in the folder.
        DiskFull, StorageError: it cannot be made.
    """

    def __init__(self, folder: Path, facts: Sequence[object], *, again: bool = False) -> None:
        self.folder = folder
        self.n_known = 0
        self.n_kept = 0
        self.n_aside = 0
        self._facts = msgspec.json.encode(facts)
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        if not try_lock(self._handle):
            os.close(self._handle)
            raise Conflict(f"{folder} is in use by another process; wait for it, or name another --out")
        for left in folder.glob(".tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        if again:
            for entry in self._entries():
                shutil.rmtree(entry, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets the folder go; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    @property
    def is_gone_on_with(self) -> bool:
        """Whether an earlier call's pieces were found, and none had to be made so far."""
        return self.n_known > 0 and self.n_kept == 0

    def find(self, key: object) -> Kept | None:
        """What is kept for a key (anything that JSON can say); None for nothing, or nothing sound."""
        digest = self._digest(key)
        folder = self.folder / digest
        if not folder.exists():
            return None
        try:
            note = msgspec.json.decode(read_plain(folder / NOTE, _MOST_NOTE_BYTES), type=_Note)
            said = (note.schema, note.digest, note.sha256)
            is_sound = said == (_SCHEMA, digest, hashlib.sha256(bytes(note.content)).hexdigest()) and all(
                "/" not in name and fresh_sha256(folder / name) == sha256 for name, sha256 in note.files.items()
            )
        except (HybridError, OSError, msgspec.MsgspecError, RecursionError):
            is_sound = False
        if not is_sound:
            self._set_aside(folder)
            return None
        self.n_known += 1
        return Kept(content=bytes(note.content), folder=folder)

    def keep(self, key: object, content: object, files: Mapping[str, bytes | Path] | None = None) -> Kept:
        """Keeps a piece of work.

        Args:
            key: as for `find`; besides the facts, all that it depends on.
            content: what JSON can say.
            files: bytes, or files that are copied, by plain names.

        Raises:
            DiskFull, StorageError: nothing is half-kept.
        """
        self.n_kept += 1
        digest, encoded = self._digest(key), msgspec.json.encode(content)
        place = self.folder / digest
        with storing(place):
            staging = Path(tempfile.mkdtemp(dir=self.folder, prefix=".tmp-"))
            try:
                sums = {name: _put(staging / name, given) for name, given in (files or {}).items()}
                note = _Note(
                    schema=_SCHEMA,
                    digest=digest,
                    content=msgspec.Raw(encoded),
                    sha256=hashlib.sha256(encoded).hexdigest(),
                    files=sums,
                )
                _put(staging / NOTE, msgspec.json.encode(note))
                sync_folder(staging)
                if place.exists():
                    shutil.rmtree(place)
                staging.rename(place)
                sync_folder(self.folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)
        return Kept(content=encoded, folder=place)

    def _digest(self, key: object) -> str:
        return hashlib.sha256(self._facts + b"\n" + msgspec.json.encode(key, order="sorted")).hexdigest()[:40]

    def _entries(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.is_dir() and path.name not in (ASIDE, BASE, SPLITS)]

    def _set_aside(self, folder: Path) -> None:
        self.n_aside += 1
        with storing(folder):
            (self.folder / ASIDE).mkdir(exist_ok=True)
            for number in range(1000):
                target = self.folder / ASIDE / f"{folder.name}-{number}"
                if not target.exists():
                    folder.rename(target)
                    return


def _put(path: Path, given: bytes | Path) -> str:
    """Writes a file to the disk; its SHA-256."""
    if isinstance(given, Path):
        shutil.copyfile(given, path)
        sync_file(path)
        return fresh_sha256(path)
    with path.open("wb") as file:
        file.write(given)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(given).hexdigest()
