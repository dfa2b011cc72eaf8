"""What a person should look at, and the record of who did what in a fleet."""

import logging
import sqlite3
from collections.abc import Callable
from typing import Final

import msgspec

from hybrid.errors import NotFound
from hybrid.hosting.database import Database

_MOST_EVENTS: Final = 100_000
_MOST_ALARMS: Final = 10_000
_MAX_TEXT: Final = 500
_log = logging.getLogger("hybrid.gateway.fleet")


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to look at; the same once more, before a person said that it was seen, is counted.

    Attributes:
        kind: one word.
        box_id: whom it is about; empty for nobody.
        n: how often it was raised.
        acked_s: when a person said that it was seen, None while nobody did.
    """

    id: int
    kind: str
    box_id: str
    text: str
    first_s: float
    last_s: float
    n: int = 1
    acked_s: float | None = None
    acked_by: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, and who did it: a token's id, `box`, or `gateway`."""

    at_s: float
    who: str
    what: str
    box_id: str = ""
    detail: str = ""


class Alarms:
    """Alarms of a fleet; every method is one short look at the disk.

    Attributes:
        n_open: alarms that nobody has acknowledged; from memory.
    """

    def __init__(self, database: Database, wall_s: Callable[[], float]) -> None:
        self._database = database
        self._wall_s = wall_s
        self.n_open = 0
        self._count()

    def raise_alarm(self, kind: str, box_id: str, text: str) -> None:
        """Tell people; also in the log.

        Raises:
            StorageError: it could not be kept; the log has it.
        """
        _log.warning("fleet.alarm kind=%s box=%s text=%s", kind, box_id, text)
        with self._database.writing() as db:
            self.within(db, kind, box_id, text)
        self._count()

    def within(self, db: sqlite3.Connection, kind: str, box_id: str, text: str) -> None:
        """The same inside a transaction that is under way; `recount` after it."""
        now_s, text = self._wall_s(), text[:_MAX_TEXT]
        row = db.execute(
            "SELECT id FROM alarm WHERE kind = ? AND box_id = ? AND acked_s IS NULL", (kind, box_id)
        ).fetchone()
        if row is not None:
            db.execute("UPDATE alarm SET n = n + 1, last_s = ?, text = ? WHERE id = ?", (now_s, text, row[0]))
            return
        db.execute(
            "INSERT INTO alarm (kind, box_id, text, first_s, last_s, n, acked_by) VALUES (?, ?, ?, ?, ?, 1, '')",
            (kind, box_id, text, now_s, now_s),
        )
        db.execute("DELETE FROM alarm WHERE id <= (SELECT max(id) FROM alarm) - ?", (_MOST_ALARMS,))

    def recount(self) -> None:
        """Look how many are open."""
        self._count()

    def listed(self, *, with_acked: bool) -> tuple[Alarm, ...]:
        """Alarms, oldest first."""
        where = "" if with_acked else "WHERE acked_s IS NULL"
        query = f"SELECT id, kind, box_id, text, first_s, last_s, n, acked_s, acked_by FROM alarm {where} ORDER BY id"  # noqa: S608 (fixed text)
        with self._database.reading() as db:
            rows = db.execute(query).fetchall()
        names = ("id", "kind", "box_id", "text", "first_s", "last_s", "n", "acked_s", "acked_by")
        return tuple(Alarm(**dict(zip(names, row, strict=True))) for row in rows)

    def acknowledge(self, alarm_id: int, who: str) -> None:
        """A person has seen it; saying it twice changes nothing.

        Raises:
            NotFound: there is no such alarm.
        """
        with self._database.writing() as db:
            if db.execute("SELECT 1 FROM alarm WHERE id = ?", (alarm_id,)).fetchone() is None:
                raise NotFound(
                    f"no alarm {alarm_id} here; `hybrid fleet alarms ls` lists them",
                    advice="List the alarms: hybrid fleet alarms ls.",
                )
            db.execute(
                "UPDATE alarm SET acked_s = ?, acked_by = ? WHERE id = ? AND acked_s IS NULL",
                (self._wall_s(), who, alarm_id),
            )
        self._count()

    def _count(self) -> None:
        with self._database.reading() as db:
            (self.n_open,) = db.execute("SELECT count(*) FROM alarm WHERE acked_s IS NULL").fetchone()


class AuditLog:
    """Who did what, bounded."""

    def __init__(self, database: Database, wall_s: Callable[[], float]) -> None:
        self._database = database
        self._wall_s = wall_s

    def note(self, who: str, what: str, *, box_id: str = "", detail: str = "") -> None:
        """Keep one event of its own."""
        with self._database.writing() as db:
            self.within(db, who, what, box_id=box_id, detail=detail)

    def within(self, db: sqlite3.Connection, who: str, what: str, *, box_id: str = "", detail: str = "") -> None:
        """Keep one event in the transaction that did it."""
        db.execute(
            "INSERT INTO event (at_s, who, what, box_id, detail) VALUES (?, ?, ?, ?, ?)",
            (self._wall_s(), who, what, box_id, detail[:_MAX_TEXT]),
        )
        db.execute("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - ?", (_MOST_EVENTS,))
        _log.info("fleet.%s who=%s box=%s detail=%s", what, who, box_id, detail[:_MAX_TEXT])

    def of_box(self, box_id: str, n_most: int = 20) -> tuple[Event, ...]:
        """The last events of a box, newest first."""
        with self._database.reading() as db:
            rows = db.execute(
                "SELECT at_s, who, what, box_id, detail FROM event WHERE box_id = ? ORDER BY id DESC LIMIT ?",
                (box_id, n_most),
            ).fetchall()
        return tuple(Event(at_s=r[0], who=r[1], what=r[2], box_id=r[3], detail=r[4]) for r in rows)
