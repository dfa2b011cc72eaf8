"""Assignments, rollouts and what boxes told, on the gateway's disk.

Design: assignments are written twice, into the database and into a plain file beside it. Of all that is kept here they
alone say what boxes should run; without them a gateway would tell every box to remove its models. Lost with a database
that cannot be read: rollouts that ran (their boxes go back to what is assigned), histories, and the last words of
boxes, which each tells again with its next call. Not lost: assignments, boxes, tags, models.
"""

import hashlib
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud_gateway.fleet.assignments import Assignment
from cloud_gateway.fleet.rollouts.figures import Figures, figures_of
from cloud_gateway.fleet.rollouts.rollout import ENDED, Course, Member, Plan
from cloud_gateway.fleet.steering.desired import Rollout
from cloud_gateway.fleet.steering.reports import BoxState
from hybrid.artifact.durable import write_atomically
from hybrid.hosting.database import Database

RECORD_NAME: Final = "assignments.record"
ENDED_KEPT: Final = 200
"""So many rollouts that ended are kept; in memory only how many of their boxes came how far."""
_MIGRATIONS: Final = (
    """
    CREATE TABLE assignment (id INTEGER PRIMARY KEY, body BLOB NOT NULL);
    CREATE TABLE rollout (id TEXT PRIMARY KEY, plan BLOB NOT NULL, course BLOB NOT NULL, made_s REAL NOT NULL);
    CREATE TABLE member (
      rollout TEXT NOT NULL, box_id TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (rollout, box_id));
    CREATE TABLE history (
      id INTEGER PRIMARY KEY AUTOINCREMENT, rollout TEXT NOT NULL, at_s REAL NOT NULL, clock_s REAL NOT NULL,
      kind TEXT NOT NULL, text TEXT NOT NULL, who TEXT NOT NULL);
    CREATE INDEX history_of ON history (rollout, id);
    CREATE TABLE box_state (box_id TEXT PRIMARY KEY, body BLOB NOT NULL)
    """,
    "ALTER TABLE rollout ADD COLUMN figures BLOB NOT NULL DEFAULT x''",
)
_HISTORY: Final = ("rollout", "at_s", "clock_s", "kind", "text", "who")
_json = msgspec.json.Encoder()
_log = logging.getLogger("hybrid.gateway.fleet")


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happened in a rollout; `at_s` by this machine's clock, `clock_s` by the rollout's."""

    rollout: str
    at_s: float
    clock_s: float
    kind: str
    text: str
    who: str = "gateway"


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """The file beside the database."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What one transaction writes, encoded.

    Attributes:
        assignments: all of them, or None where they stay.
        rollouts: id, plan, course, when it was made, figures (empty before its end).
        members: rollout, box, content.
        boxes: box, last words.
    """

    assignments: tuple[Assignment, ...] | None = None
    rollouts: tuple[tuple[str, bytes, bytes, float, bytes], ...] = ()
    members: tuple[tuple[str, str, bytes], ...] = ()
    boxes: tuple[tuple[str, bytes], ...] = ()
    history: tuple[HistoryEntry, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing to write."""
        return self.assignments is None and not (self.rollouts or self.members or self.boxes or self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a start finds. `lost` says in words what a damaged disk took; `is_blind`: it took the assignments too."""

    assignments: tuple[Assignment, ...]
    rollouts: tuple[Rollout, ...]
    boxes: dict[str, BoxState]
    lost: str = ""
    is_blind: bool = False


class RolloutStore:
    """One database and one plain file. Methods block; one writes at a time."""

    def __init__(self, path: Path, connect: Callable[[Path], sqlite3.Connection] | None = None) -> None:
        """Open or make it; a database that cannot be read is set aside.

        Args:
            path: of the database; the file of assignments lies beside it.
            connect: in place of SQLite on this machine's disk; there is no file of assignments then.

        Raises:
            DiskFull, StorageError: the disk refused.
        """
        self._record = path.with_name(RECORD_NAME) if connect is None else None
        self._database = Database(path, _MIGRATIONS, connect=connect)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def load(self) -> Kept:
        """Everything, at a start."""
        self._forget_old()
        with self._database.reading() as db:
            assignments = tuple(
                msgspec.json.decode(body, type=Assignment)
                for (body,) in db.execute("SELECT body FROM assignment ORDER BY id")
            )
            rollouts = tuple(
                _loaded(db, *row)
                for row in db.execute("SELECT id, plan, course, figures FROM rollout ORDER BY made_s, id").fetchall()
            )
            boxes = {
                box_id: msgspec.msgpack.decode(body, type=BoxState)
                for box_id, body in db.execute("SELECT box_id, body FROM box_state")
            }
        kept = Kept(assignments=assignments, rollouts=rollouts, boxes=boxes)
        if self._database.is_new:
            kept = self._restored(kept)
        if kept.lost:
            _log.error("fleet.rollouts_lost text=%r", kept.lost)
        return kept

    def _forget_old(self) -> None:
        """Drop rollouts that ended long ago, boxes and histories with them."""
        with self._database.writing() as db:
            rows = db.execute("SELECT id, course FROM rollout ORDER BY made_s DESC, id").fetchall()
            ended = [key for key, course in rows if msgspec.json.decode(course, type=Course).state in ENDED]
            for table, column in (("rollout", "id"), ("member", "rollout"), ("history", "rollout")):
                db.executemany(
                    f"DELETE FROM {table} WHERE {column} = ?",  # noqa: S608 (names are ours)
                    [(key,) for key in ended[ENDED_KEPT:]],
                )

    def _restored(self, kept: Kept) -> Kept:
        """What the plain file still knows, where the database is new."""
        if self._record is None:
            return kept
        try:
            data = self._record.read_bytes()
        except FileNotFoundError:
            return kept
        record = _read_record(data)
        if record is None:
            lost = f"{self._record} and the database of rollouts cannot be read: what boxes should run is not known"
            return Kept(assignments=(), rollouts=(), boxes={}, lost=lost, is_blind=True)
        self.write(Changes(assignments=record.assignments))
        lost = (
            "the database of rollouts could not be read and was set aside. Lost: running rollouts (their boxes go back "
            f"to what is assigned) and histories. Kept: {len(record.assignments)} assignments, boxes, tags, models"
        )
        return Kept(assignments=record.assignments, rollouts=(), boxes={}, lost=lost)

    def write(self, changes: Changes) -> None:
        """One transaction, on the disk when this returns.

        Raises:
            DiskFull, StorageError: nothing was written.
        """
        with self._database.writing() as db:
            if changes.assignments is not None:
                db.execute("DELETE FROM assignment")
                db.executemany(
                    "INSERT INTO assignment VALUES (?, ?)", [(a.id, _json.encode(a)) for a in changes.assignments]
                )
            db.executemany(
                "INSERT INTO rollout (id, plan, course, made_s, figures) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET course = excluded.course, figures = excluded.figures",
                changes.rollouts,
            )
            db.executemany("INSERT OR REPLACE INTO member VALUES (?, ?, ?)", changes.members)
            db.executemany("INSERT OR REPLACE INTO box_state VALUES (?, ?)", changes.boxes)
            db.executemany(
                "INSERT INTO history (rollout, at_s, clock_s, kind, text, who) VALUES (?, ?, ?, ?, ?, ?)",
                [(e.rollout, e.at_s, e.clock_s, e.kind, e.text, e.who) for e in changes.history],
            )
        if changes.assignments is not None and self._record is not None:
            write_atomically(self._record, _written_record(changes.assignments))

    def members(self, rollout_id: str) -> dict[str, Member]:
        """The boxes of a rollout as they were last written."""
        with self._database.reading() as db:
            return _members(db, rollout_id)

    def history(self, rollout_id: str, n_most: int = 1000) -> tuple[HistoryEntry, ...]:
        """What happened in a rollout, oldest first."""
        with self._database.reading() as db:
            rows = db.execute(
                f"SELECT {', '.join(_HISTORY)} FROM history WHERE rollout = ? ORDER BY id DESC LIMIT ?",  # noqa: S608
                (rollout_id, n_most),
            ).fetchall()
        return tuple(HistoryEntry(**dict(zip(_HISTORY, row, strict=True))) for row in reversed(rows))


def _loaded(db: sqlite3.Connection, rollout_id: str, plan: bytes, course: bytes, figures: bytes) -> Rollout:
    """A rollout with its boxes, or with what is kept of one that ended."""
    found = Rollout(plan=msgspec.json.decode(plan, type=Plan), course=msgspec.json.decode(course, type=Course))
    if found.course.state not in ENDED:
        found.members = _members(db, rollout_id)
    elif figures:
        found.figures = msgspec.json.decode(figures, type=Figures)
    else:  # it ended under a program that wrote none
        found.figures = figures_of(found.plan, _members(db, rollout_id).values())
    return found


def _members(db: sqlite3.Connection, rollout_id: str) -> dict[str, Member]:
    rows = db.execute("SELECT box_id, body FROM member WHERE rollout = ?", (rollout_id,))
    return {box_id: msgspec.msgpack.decode(body, type=Member) for box_id, body in rows}


def _written_record(assignments: tuple[Assignment, ...]) -> bytes:
    """The plain file: the digest of its second line, and that."""
    body = _json.encode(_Record(assignments=assignments))
    return f"{hashlib.sha256(body).hexdigest()}\n".encode() + body


def _read_record(data: bytes) -> _Record | None:
    """What the plain file says, None where one bit of it is not what was written."""
    digest, _, body = data.partition(b"\n")
    if digest.decode("ascii", "replace") != hashlib.sha256(body).hexdigest():
        return None
    try:
        return msgspec.json.decode(body, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
