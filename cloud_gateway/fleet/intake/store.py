"""What boxes brought, on the disk: items once each in the order of their streams, and the numbers that prove it.

Design: one transaction holds a group of calls whole, synced before any of them is answered. The highest number of each
stream is kept for ever, so that no outbox is older than what is remembered; digests of the newest numbers tell a box
that was set back to an old image (other content under a known number) from one that only sends again.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Final

from cloud_gateway.fleet.intake.blobs import BlobShelf
from hybrid.fleet.messages import IngestAnswer, IngestCall, Item, Kind, Refused
from hybrid.hosting.database import Database

FILE_NAME: Final = "ingest.db"
N_SEEN: Final = 1000
"""Digests of a stream that are kept."""
_MOST_AGE_S: Final = 20 * 365 * 86_400.0
"""What claims to be older tells nothing of when it was made."""

MIGRATIONS: Final = (
    """
    CREATE TABLE stream (
      id INTEGER PRIMARY KEY, box TEXT NOT NULL, epoch TEXT NOT NULL, stream TEXT NOT NULL, seq INTEGER NOT NULL,
      n_skipped INTEGER NOT NULL, since_s REAL NOT NULL, UNIQUE (box, epoch, stream));
    CREATE TABLE seen (
      stream_id INTEGER NOT NULL, seq INTEGER NOT NULL, digest BLOB NOT NULL,
      PRIMARY KEY (stream_id, seq)) WITHOUT ROWID;
    CREATE TABLE item (
      id INTEGER PRIMARY KEY AUTOINCREMENT, box TEXT NOT NULL, kind TEXT NOT NULL, epoch TEXT NOT NULL,
      stream TEXT NOT NULL, seq INTEGER NOT NULL, made_s REAL, received_s REAL NOT NULL, digest TEXT NOT NULL,
      n_bytes INTEGER NOT NULL, blob TEXT NOT NULL, body BLOB NOT NULL);
    CREATE INDEX item_of_kind ON item (kind, id);
    CREATE INDEX item_of_box ON item (box, kind, id);
    CREATE INDEX item_of_sample ON item (box, digest) WHERE kind = 'sample';
    CREATE INDEX item_with_blob ON item (box, blob) WHERE blob <> '';
    CREATE TABLE held (
      box TEXT NOT NULL, kind TEXT NOT NULL, n_items INTEGER NOT NULL, n_bytes INTEGER NOT NULL,
      n_dropped INTEGER NOT NULL, PRIMARY KEY (box, kind)) WITHOUT ROWID;
    CREATE TABLE deferral (
      item_id INTEGER PRIMARY KEY, box TEXT NOT NULL, epoch TEXT NOT NULL, stream TEXT NOT NULL, seq INTEGER NOT NULL,
      is_done INTEGER NOT NULL, n_attempts INTEGER NOT NULL, code TEXT NOT NULL, detail TEXT NOT NULL,
      n_bytes INTEGER NOT NULL, blob TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (box, epoch, stream, seq));
    CREATE INDEX deferral_waiting ON deferral (box, item_id) WHERE is_done = 0;
    CREATE TABLE cursor (name TEXT PRIMARY KEY, item_id INTEGER NOT NULL) WITHOUT ROWID
    """,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """How much of a kind is kept for one box.

    Attributes:
        drops: beyond it the oldest leave; else the box is asked to wait, and people are told.
    """

    n_items: int
    n_bytes: int
    drops: bool


def _allowances() -> dict[Kind, Allowance]:
    return {
        "report": Allowance(n_items=10_000, n_bytes=16 << 20, drops=False),
        "result": Allowance(n_items=1_000_000, n_bytes=4 << 30, drops=False),
        "deferred": Allowance(n_items=10_000, n_bytes=1 << 30, drops=False),
        "sample": Allowance(n_items=100_000, n_bytes=2 << 30, drops=True),
        "telemetry": Allowance(n_items=100_000, n_bytes=64 << 20, drops=True),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestLimits:
    """What boxes may leave at this gateway.

    Attributes:
        n_streams: of one box, all its epochs together: their numbers are kept for ever.
        n_call_items, n_call_bytes: of one call.
        n_body_bytes: of one item's body; larger ones are blobs.
    """

    by_kind: dict[Kind, Allowance] = field(default_factory=_allowances)
    n_streams: int = 4096
    n_call_items: int = 1024
    n_call_bytes: int = 5 << 20
    n_body_bytes: int = 1 << 20


@dataclass(slots=True)
class _Stream:
    id: int
    seq: int
    n_skipped: int
    digests: dict[int, bytes] = field(default_factory=dict)
    verified: int | None = None
    """Up to which number this caller's things are those that are here, where that is less than `seq`."""

    @property
    def acked(self) -> int:
        return self.seq if self.verified is None else min(self.seq, self.verified)


@dataclass(slots=True)
class Stored:
    """What became of one call."""

    answer: IngestAnswer
    kinds: set[str] = field(default_factory=set)
    quota: set[str] = field(default_factory=set)
    unnamed: list[tuple[str, str]] = field(default_factory=list)


class IngestStore:
    """The database; every method blocks and may be called from any thread. Raises `StorageError`."""

    def __init__(
        self,
        folder: Path,
        blobs: BlobShelf,
        limits: IngestLimits,
        *,
        wall_s: Callable[[], float],
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        if connect is None:  # it holds what people's devices saw: nobody else on this machine may read it
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / FILE_NAME).touch(mode=0o600)
        self.database = Database(folder / FILE_NAME, MIGRATIONS, connect=connect)
        # Some file was set aside before, and this one is new: what boxes brought before is not in it.
        self.was_begun_anew = self.database.is_new and any(folder.glob(f"{FILE_NAME}.corrupt-*"))
        self.blobs = blobs
        self.limits = limits
        self._wall_s = wall_s

    def store(self, calls: Sequence[tuple[str, IngestCall]]) -> list[Stored]:
        """Store a group of calls in one transaction; their answers are true when this returns."""
        with self.database.writing() as db:
            found = [_Taking(self, db, box_id, call, self._wall_s()).take() for box_id, call in calls]
        for stored in found:
            self.forget_blobs(stored.unnamed)
        return found

    def forget_blobs(self, names: Sequence[tuple[str, str]]) -> None:
        """Remove blobs that no row names any more; none that a transaction under way has found and is about to name."""
        if not names:
            return
        with self.database.writing() as db:
            for box_id, blob in names:
                if not _is_named(db, box_id, blob):
                    self.blobs.remove(box_id, blob)

    def unnamed(self, box_id: str, blobs: Sequence[str]) -> list[str]:
        """Those of a box's blobs that no row names."""
        with self.database.reading() as db:
            return [blob for blob in blobs if not _is_named(db, box_id, blob)]


class _Taking:
    """One call inside the transaction."""

    def __init__(self, store: IngestStore, db: sqlite3.Connection, box_id: str, call: IngestCall, now_s: float) -> None:
        self._store, self._db, self._box, self._call, self._now_s = store, db, box_id, call, now_s
        self._streams: dict[str, _Stream] = {}
        self._blocked: dict[str, str] = {}
        self._refused: list[Refused] = []
        self._is_stale = False
        self._stored = Stored(IngestAnswer())

    def take(self) -> Stored:
        """Store what can be stored, and write the numbers."""
        for item in self._call.items:
            if item.stream in self._blocked:
                self._stream(item.stream)
            else:
                self._take(item)
        for name, stream in self._streams.items():
            self._write_down(name, stream)
        self._stored.answer = IngestAnswer(
            acked={name: stream.acked for name, stream in self._streams.items()},
            refused=tuple(self._refused),
            stale_epoch=self._is_stale,
            held=self._blocked,
        )
        return self._stored

    def _take(self, item: Item) -> None:
        stream = self._stream(item.stream)
        if item.stream in self._blocked:
            return  # one stream more than this box may have
        if item.seq <= stream.seq:
            self._recognise(item, stream)
        elif item.seq - item.skipped - 1 > stream.seq:
            self._blocked[item.stream] = "gap"
        elif self._is_here(item, self._call.epoch, item.seq):
            self._advance(item, stream)
        elif item.origin is not None and self._is_here(item, *item.origin):
            self._rename(item, *item.origin)
            self._advance(item, stream)
        elif item.kind == "sample" and self._has_sample(item):
            self._advance(item, stream)
        else:
            self._store_new(item, stream)

    def _recognise(self, item: Item, stream: _Stream) -> None:
        """A number that is known: the same thing again, or another box's life."""
        digest = stream.digests.get(item.seq)
        if digest is None and stream.id:
            row = self._db.execute(
                "SELECT digest FROM seen WHERE stream_id = ? AND seq = ?", (stream.id, item.seq)
            ).fetchone()
            digest = None if row is None else bytes(row[0])
        if digest == b"":
            self._refuse(item, "refused", "it was refused before")
        elif digest != _short(item.digest):
            # Also where the digest is not kept any more: no sound box sends that far back, one that was set back does.
            self._is_stale = True
            self._blocked[item.stream] = "stale_epoch"
            stream.verified = item.seq - 1

    def _is_here(self, item: Item, epoch: str, seq: int) -> bool:
        """Whether this thing is here under a number that it had, or that a clone gave it."""
        row = self._db.execute(
            "SELECT seen.digest FROM stream JOIN seen ON seen.stream_id = stream.id"
            " WHERE box = ? AND epoch = ? AND stream = ? AND seen.seq = ?",
            (self._box, epoch, item.stream, seq),
        ).fetchone()
        return row is not None and bytes(row[0]) == _short(item.digest)

    def _has_sample(self, item: Item) -> bool:
        """A sample names itself: its box, cut off between two of its disks' writes, may bring it twice."""
        found = self._db.execute(
            "SELECT 1 FROM item WHERE kind = 'sample' AND box = ? AND digest = ?", (self._box, item.digest)
        ).fetchone()
        return found is not None

    def _rename(self, item: Item, epoch: str, seq: int) -> None:
        """Its box knows a deferred request by its newest number."""
        self._db.execute(
            "UPDATE OR IGNORE deferral SET epoch = ?, seq = ? WHERE box = ? AND epoch = ? AND stream = ? AND seq = ?",
            (self._call.epoch, item.seq, self._box, epoch, item.stream, seq),
        )

    def _note_origin(self, item: Item, epoch: str, seq: int) -> None:
        """A clone may bring the same thing under that number."""
        key = (self._box, epoch, item.stream)
        if self._n_streams() >= self._store.limits.n_streams:
            return  # a box that asks for more than its share is not protected from itself
        self._db.execute(
            "INSERT OR IGNORE INTO stream (box, epoch, stream, seq, n_skipped, since_s) VALUES (?, ?, ?, -1, 0, ?)",
            (*key, self._now_s),
        )
        self._db.execute(
            "INSERT OR IGNORE INTO seen SELECT id, ?, ? FROM stream WHERE box = ? AND epoch = ? AND stream = ?",
            (seq, _short(item.digest), *key),
        )

    def _store_new(self, item: Item, stream: _Stream) -> None:
        allowance = self._store.limits.by_kind.get(item.kind)
        n_bytes = self._store.blobs.size(self._box, item.blob_sha256) if item.blob_sha256 else len(item.body)
        if n_bytes < 0:
            self._blocked[item.stream] = "blob_missing"
            return
        if (item.blob_sha256 or sha256(item.body).hexdigest()) != item.digest:
            self._blocked[item.stream] = "digest"  # sent again: a bad memory or a bad link may have done it
            return
        if allowance is None or n_bytes > allowance.n_bytes:
            self._refuse(item, "too_large", f"{n_bytes} bytes of a {item.kind} are more than one box may leave here")
            self._advance(item, stream, digest=b"")
            return
        if not self._has_room(item, allowance, n_bytes):
            self._blocked[item.stream] = "quota"
            self._stored.quota.add(item.kind)
            return
        made_s = self._now_s - item.age_s if 0 <= item.age_s <= _MOST_AGE_S else None
        cursor = self._db.execute(
            "INSERT INTO item (box, kind, epoch, stream, seq, made_s, received_s, digest, n_bytes, blob, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._box, item.kind, self._call.epoch, item.stream, item.seq, made_s, self._now_s, item.digest, n_bytes,
             item.blob_sha256, item.body),
        )  # fmt: skip
        if item.kind == "deferred":
            self._db.execute(
                "INSERT INTO deferral VALUES (?, ?, ?, ?, ?, 0, 0, '', '', 0, '', x'')",
                (cursor.lastrowid, self._box, self._call.epoch, item.stream, item.seq),
            )
        if item.origin is not None:
            self._note_origin(item, *item.origin)
        count(self._db, self._box, item.kind, 1, n_bytes)
        self._stored.kinds.add(item.kind)
        self._advance(item, stream)

    def _has_room(self, item: Item, allowance: Allowance, n_bytes: int) -> bool:
        """Whether an item fits what one box may leave; where the kind allows it, the oldest leave for it."""
        n_items, n_held_bytes = held(self._db, self._box, item.kind)
        while n_items >= allowance.n_items or n_held_bytes + n_bytes > allowance.n_bytes:
            if not allowance.drops:
                return False
            row = self._db.execute(
                "SELECT id, n_bytes, blob FROM item WHERE box = ? AND kind = ? ORDER BY id LIMIT 1",
                (self._box, item.kind),
            ).fetchone()
            if row is None:
                return False
            remove(self._db, self._box, item.kind, row[0], row[1], dropped=1)
            if row[2]:
                self._stored.unnamed.append((self._box, row[2]))
            n_items, n_held_bytes = n_items - 1, n_held_bytes - row[1]
        return True

    def _advance(self, item: Item, stream: _Stream, *, digest: bytes | None = None) -> None:
        stream.n_skipped += item.seq - stream.seq - 1
        stream.seq = item.seq
        stream.digests[item.seq] = _short(item.digest) if digest is None else digest

    def _refuse(self, item: Item, code: str, detail: str) -> None:
        self._refused.append(Refused(stream=item.stream, seq=item.seq, code=code, detail=detail))

    def _stream(self, name: str) -> _Stream:
        found = self._streams.get(name)
        if found is None:
            key = (self._box, self._call.epoch, name)
            row = self._db.execute(
                "SELECT id, seq, n_skipped FROM stream WHERE box = ? AND epoch = ? AND stream = ?", key
            ).fetchone()
            found = self._streams[name] = _Stream(0, -1, 0) if row is None else _Stream(*row)
            if row is None and self._n_streams() + len(self._streams) > self._store.limits.n_streams:
                self._blocked[name] = "quota"
                self._stored.quota.add("streams")
        return found

    def _n_streams(self) -> int:
        (n_streams,) = self._db.execute("SELECT count(*) FROM stream WHERE box = ?", (self._box,)).fetchone()
        return int(n_streams)

    def _write_down(self, name: str, stream: _Stream) -> None:
        if not stream.digests:
            return
        if stream.id:
            self._db.execute(
                "UPDATE stream SET seq = ?, n_skipped = ? WHERE id = ?", (stream.seq, stream.n_skipped, stream.id)
            )
        else:
            cursor = self._db.execute(
                "INSERT INTO stream (box, epoch, stream, seq, n_skipped, since_s) VALUES (?, ?, ?, ?, ?, ?)",
                (self._box, self._call.epoch, name, stream.seq, stream.n_skipped, self._now_s),
            )
            stream.id = cursor.lastrowid or 0
        for seq, digest in stream.digests.items():
            self._db.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (stream.id, seq, digest))
        self._db.execute("DELETE FROM seen WHERE stream_id = ? AND seq <= ?", (stream.id, stream.seq - N_SEEN))


def _is_named(db: sqlite3.Connection, box_id: str, blob: str) -> bool:
    """Whether a row speaks of a blob; each table is asked by an index."""
    return any(
        db.execute(f"SELECT 1 FROM {table} WHERE box = ? AND blob = ?", (box_id, blob)).fetchone()  # noqa: S608
        for table in ("item", "deferral")
    )


def held(db: sqlite3.Connection, box_id: str, kind: str) -> tuple[int, int]:
    """How many items of a kind, and how many bytes, are kept for a box."""
    row = db.execute("SELECT n_items, n_bytes FROM held WHERE box = ? AND kind = ?", (box_id, kind)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


def count(db: sqlite3.Connection, box_id: str, kind: str, n_items: int, n_bytes: int, *, dropped: int = 0) -> None:
    """Count items in, or out."""
    db.execute(
        "INSERT INTO held VALUES (?, ?, ?, ?, ?) ON CONFLICT (box, kind) DO UPDATE SET"
        " n_items = n_items + excluded.n_items, n_bytes = n_bytes + excluded.n_bytes,"
        " n_dropped = n_dropped + excluded.n_dropped",
        (box_id, kind, n_items, n_bytes, dropped),
    )


def remove(db: sqlite3.Connection, box_id: str, kind: str, item_id: int, n_bytes: int, *, dropped: int = 0) -> None:
    """Remove one item and count it out."""
    db.execute("DELETE FROM item WHERE id = ?", (item_id,))
    count(db, box_id, kind, -1, -n_bytes, dropped=dropped)


def _short(digest: str) -> bytes:
    """What is kept of a digest."""
    return bytes.fromhex(digest[:16])
