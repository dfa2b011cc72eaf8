"""Sealed files of samples and their index, within bounds of bytes, number and age; the oldest leave."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from edge_agent.disk import write_durably
from edge_agent.outbox.clock import ForwardClock
from edge_agent.outbox.database import BoxDatabase
from edge_agent.outbox.place import Place
from hybrid.errors import BadMessage, CorruptContent, HybridError, NotFound, OutboxFull, StorageError
from hybrid.fleet.sample import Sample, parse_sample

_SCRIPT: Final = """
CREATE TABLE IF NOT EXISTS sample (
  id INTEGER PRIMARY KEY, model TEXT NOT NULL, model_digest TEXT NOT NULL, variant TEXT NOT NULL, made_s REAL NOT NULL,
  at_s REAL NOT NULL, n_bytes INTEGER NOT NULL, is_labelled INTEGER NOT NULL, is_to_upload INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS sample_to_upload ON sample (id) WHERE is_to_upload;
CREATE TABLE IF NOT EXISTS top (id INTEGER NOT NULL)
"""
_SUFFIX: Final = ".sample"
_VACUUM_BYTES: Final = 256 << 10
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.agent.samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfLimits:
    """What is kept.

    Attributes:
        age_s: by a clock that only runs forward and does not see the time for which the box was off.
        reserve_bytes: left free on the disk for everything else.
    """

    n_bytes: int = 512 << 20
    n_items: int = 20_000
    age_s: float = 90 * 86_400.0
    reserve_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One sample, without its content."""

    id: str
    model: str
    model_digest: str
    variant: str
    made_s: float
    n_bytes: int
    is_labelled: bool
    is_to_upload: bool


class SampleShelf:
    """See the module; every method blocks and may be called from any thread."""

    def __init__(self, place: Place, limits: ShelfLimits) -> None:
        self._place = place
        self._files = place.folder / "files"
        self._limits = limits
        self._database = BoxDatabase(
            place.folder / "index.db", _SCRIPT, place.disk, connect=place.connect, wall_s=place.wall_s
        )
        self._clock: ForwardClock | None = None
        self._loop_s = 0.0
        self._top = 0
        self._is_open = False
        self._is_matched = False
        self._lock = threading.RLock()
        self._numbering = threading.Lock()  # of its own: who asks for a number must not wait for the disk
        self.n_items = 0
        self.n_bytes = 0
        self.n_to_upload = 0

    def open(self, loop_s: float) -> None:
        """Open the index, made anew from the files where it was lost; `loop_s` is the loop's clock."""
        with self._lock:
            self._loop_s = loop_s
            self._clock = ForwardClock(lambda: self._loop_s)
            self._is_open = True
            self._sound(lambda _: None)

    def close(self) -> None:
        """Close the index."""
        with self._lock:
            self._is_open = self._is_matched = False
            self._database.close()

    def next_id(self) -> str:
        """An id that no sample had before; does not block."""
        with self._numbering:
            self._top += 1
            return f"{self._top:012x}"

    def put(self, samples: Sequence[Sample], uploads: Collection[str], loop_s: float) -> None:
        """Keep samples, on the disk when this returns; the oldest leave for them.

        Raises:
            OutboxFull: the disk is nearly full; nothing was kept.
            StorageError: the disk refused; nothing was kept.
        """
        with self._lock:
            self._loop_s = max(self._loop_s, loop_s)
            disk = self._place.disk
            contents = {sample.id: sample.encoded() for sample in samples}
            n_bytes = sum(map(len, contents.values()))
            if disk.free_bytes(self._files) < self._limits.reserve_bytes + n_bytes:
                raise OutboxFull(
                    f"less than {self._limits.reserve_bytes} bytes are free on the disk; no sample is kept now",
                    retry_after_s=60.0,
                )
            disk.make_folder(self._files)
            try:
                for name, content in contents.items():
                    path = self._files / f"{name}{_SUFFIX}"
                    disk.append(path, self._place.vault.seal(content, name.encode()))
                    disk.sync(path)
                disk.sync(self._files)
                self._sound(lambda db: self._insert(db, samples, contents, uploads))
            except Exception:
                for name in contents:
                    with suppress(OSError):  # on a failing disk the first refusal is what is told
                        disk.remove(self._files / f"{name}{_SUFFIX}")
                raise
            self._sound(self._trim)

    def read(self, sample_id: str) -> bytes:
        """The content of a sample.

        Raises:
            NotFound: it is not here, or not any more. CorruptContent: the disk damaged it.
        """
        path = self._files / f"{_checked(sample_id)}{_SUFFIX}"
        try:
            return self._place.vault.unseal(self._place.disk.read(path), sample_id.encode())
        except FileNotFoundError as exc:
            raise NotFound(f"no sample {sample_id} on this box; the oldest leave when room is short") from exc

    def list(self, model: str, limit: int) -> Sequence[Kept]:
        """The newest, of one model or (empty) of all."""

        def rows_of(database: BoxDatabase) -> list[tuple[Any, ...]]:
            with database.reading() as db:
                return db.execute(
                    "SELECT id, model, model_digest, variant, made_s, n_bytes, is_labelled, is_to_upload FROM sample"
                    " WHERE ? IN ('', model) ORDER BY id DESC LIMIT ?",
                    (model, limit),
                ).fetchall()

        return [
            Kept(
                id=f"{row[0]:012x}",
                model=row[1],
                model_digest=row[2],
                variant=row[3],
                made_s=row[4],
                n_bytes=row[5],
                is_labelled=bool(row[6]),
                is_to_upload=bool(row[7]),
            )
            for row in self._sound(rows_of)
        ]

    def labelled(self, model: str, limit: int) -> Sequence[str]:
        """Ids of the newest samples of a model of which somebody said what was right, newest first."""

        def ids_of(database: BoxDatabase) -> list[str]:
            with database.reading() as db:
                rows = db.execute(
                    "SELECT id FROM sample WHERE model = ? AND is_labelled ORDER BY id DESC LIMIT ?", (model, limit)
                ).fetchall()
            return [f"{number:012x}" for (number,) in rows]

        return self._sound(ids_of)

    def label(self, sample_id: str, label: str) -> int:
        """Say what was right, in place of what was said before; the bytes that were written.

        Raises:
            NotFound: it is not here. CorruptContent: the disk damaged it. DiskFull, StorageError: nothing has changed.
        """
        with self._lock:
            sample = msgspec.structs.replace(parse_sample(self.read(sample_id)), label=label)
            content = sample.encoded()
            path = self._files / f"{sample_id}{_SUFFIX}"
            write_durably(self._place.disk, path, self._place.vault.seal(content, sample_id.encode()))

            def note(database: BoxDatabase) -> None:
                with database.writing() as db:
                    db.execute(
                        "UPDATE sample SET is_labelled = 1, n_bytes = ? WHERE id = ?",
                        (len(content), int(sample_id, 16)),
                    )
                self._count()

            self._sound(note)
            return len(content)

    def forget(self, sample_id: str) -> None:
        """Remove a sample. Raises `NotFound`."""
        number = int(_checked(sample_id), 16)

        def forget(database: BoxDatabase) -> None:
            with database.reading() as db:
                found = db.execute("SELECT 1 FROM sample WHERE id = ?", (number,)).fetchone()
            if found is None:
                raise NotFound(f"no sample {sample_id} on this box")
            self._remove([number])

        self._sound(forget)

    def to_upload(self, limit: int) -> Sequence[str]:
        """The oldest that are to be brought to the gateway."""

        def oldest(database: BoxDatabase) -> list[str]:
            with database.reading() as db:
                rows = db.execute("SELECT id FROM sample WHERE is_to_upload ORDER BY id LIMIT ?", (limit,)).fetchall()
            return [f"{number:012x}" for (number,) in rows]

        return self._sound(oldest)

    def uploaded(self, sample_ids: Sequence[str]) -> None:
        """These are in the outbox, or cannot be read."""

        def note(database: BoxDatabase) -> None:
            with database.writing() as db:
                for sample_id in sample_ids:
                    db.execute("UPDATE sample SET is_to_upload = 0 WHERE id = ?", (int(sample_id, 16),))
            self._count()

        self._sound(note)

    def _insert(
        self, database: BoxDatabase, samples: Sequence[Sample], contents: dict[str, bytes], uploads: Collection[str]
    ) -> None:
        with database.writing() as db:
            for sample in samples:
                self._row(db, sample, len(contents[sample.id]), is_to_upload=sample.id in uploads)
        self.n_items += len(samples)
        self.n_bytes += sum(map(len, contents.values()))
        self.n_to_upload += len(set(contents) & set(uploads))

    def _row(self, db: sqlite3.Connection, sample: Sample, n_bytes: int, *, is_to_upload: bool) -> None:
        db.execute(
            "INSERT OR REPLACE INTO sample VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (int(sample.id, 16), sample.model, sample.model_digest, sample.variant, sample.made_s, self._now_s(),
             n_bytes, bool(sample.label), is_to_upload),
        )  # fmt: skip

    def _trim(self, database: BoxDatabase) -> None:
        """Remove the oldest beyond the bounds."""
        while True:
            with database.reading() as db:
                rows = db.execute("SELECT id, n_bytes, at_s FROM sample ORDER BY id LIMIT 64").fetchall()
            gone: list[int] = []
            n_items, n_bytes = self.n_items, self.n_bytes
            for number, size, at_s in rows:
                is_old = at_s < self._now_s() - self._limits.age_s
                if not is_old and n_items <= self._limits.n_items and n_bytes <= self._limits.n_bytes:
                    break
                gone.append(number)
                n_items, n_bytes = n_items - 1, n_bytes - size
            if not gone:
                return
            self._remove(gone)

    def _remove(self, numbers: Sequence[int]) -> None:
        """Rows first: a file without a row is removed at the next start, a row without a file would be a lie."""
        with self._database.writing() as db:
            left = [
                db.execute("DELETE FROM sample WHERE id = ? RETURNING n_bytes, is_to_upload", (number,)).fetchone()
                for number in numbers
            ]
            db.execute("DELETE FROM top")
            db.execute("INSERT INTO top VALUES (?)", (self._top,))
        for number in numbers:
            self._place.disk.remove(self._files / f"{number:012x}{_SUFFIX}")
        self.n_items -= sum(row is not None for row in left)
        self.n_bytes -= sum(row[0] for row in left if row is not None)
        self.n_to_upload -= sum(row[1] for row in left if row is not None)
        self._database.give_back(_VACUUM_BYTES)

    def _count(self) -> None:
        with self._database.reading() as db:
            row = db.execute(
                "SELECT count(*), coalesce(sum(n_bytes), 0), coalesce(sum(is_to_upload), 0) FROM sample"
            ).fetchone()
        self.n_items, self.n_bytes, self.n_to_upload = row

    def _sound(self, work: Callable[[BoxDatabase], _T]) -> _T:
        """Do something with the index; where it turns out to be damaged, make it again and do it there."""
        with self._lock:
            if not self._is_open:
                raise StorageError("the samples are closed: the agent stops")
            try:
                if not self._is_matched:  # at the start, or the disk failed while the index was made again
                    self._match()
                return work(self._database)
            except CorruptContent as exc:
                self._is_matched = False
                self._database.set_aside(str(exc))
                self._match()
                found = work(self._database)
                self._count()
                return found

    def _match(self) -> None:
        self._database.open()
        self._match_files()
        self._count()
        self._is_matched = True

    def _match_files(self) -> None:
        """Rows and files belong together: strays leave, and a lost index is made again."""
        disk = self._place.disk
        names = {name for name in disk.names(self._files) if name.endswith(_SUFFIX)}
        numbers = {number for name in names if (number := _number(name)) is not None}
        with self._database.reading() as db:
            rows = {number for (number,) in db.execute("SELECT id FROM sample").fetchall()}
            (newest_s,) = db.execute("SELECT coalesce(max(at_s), 0.0) FROM sample").fetchone()
            (top,) = db.execute("SELECT coalesce(max(id), 0) FROM top").fetchone()
        if self._clock is not None:
            self._clock.go_on_from(newest_s)
        self._top = max(top, *rows, *numbers, 0)
        if rows - numbers:
            with self._database.writing() as db:
                for number in rows - numbers:
                    db.execute("DELETE FROM sample WHERE id = ?", (number,))
        if self._database.is_new and numbers:
            self._take_over(sorted(numbers))
        else:
            for number in numbers - rows:
                disk.remove(self._files / f"{number:012x}{_SUFFIX}")

    def _take_over(self, numbers: Sequence[int]) -> None:
        """Make rows of files again; what was to be uploaded is not known any more, and stays here."""
        n_taken = 0
        for number in numbers:
            try:
                content = self.read(f"{number:012x}")
                sample = parse_sample(content)
                with self._database.writing() as db:
                    self._row(db, sample, len(content), is_to_upload=False)
                n_taken += 1
            except StorageError as exc:
                if not isinstance(exc, CorruptContent):
                    raise
                self._place.disk.remove(self._files / f"{number:012x}{_SUFFIX}")
            except HybridError:
                self._place.disk.remove(self._files / f"{number:012x}{_SUFFIX}")
        _log.warning("samples.index_made_again n_taken_over=%d n_files=%d", n_taken, len(numbers))

    def _now_s(self) -> float:
        return self._clock.now_s() if self._clock is not None else 0.0


def _checked(sample_id: str) -> str:
    if len(sample_id) != 12 or not set(sample_id) <= set("0123456789abcdef"):
        raise BadMessage(f"sample {sample_id[:40]!r}: 12 hex digits are wanted")
    return sample_id


def _number(name: str) -> int | None:
    stem = name.removesuffix(_SUFFIX)
    return int(stem, 16) if len(stem) == 12 and set(stem) <= set("0123456789abcdef") else None
