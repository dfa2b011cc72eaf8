"""What a person should look at, and the record of who did what in a fleet."""

import logging
import sqlite3
import threading
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from hybrid.errors import NotFound, StorageError
from hybrid.hosting.database import Database

_MOST_EVENTS: Final = 100_000
_MOST_ALARMS: Final = 10_000
_MOST_UNKEPT: Final = 1000
_AGAIN_WITHIN_S: Final = 3600.0
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

    What the disk refuses is told from memory, as number 0, until it takes it or the process ends.

    Attributes:
        n_open: alarms that nobody has acknowledged; from memory.
    """

    def __init__(self, database: Database, wall_s: Callable[[], float]) -> None:
        self._database = database
        self._wall_s = wall_s
        self._unkept: dict[tuple[str, str], Alarm] = {}
        self._guard = threading.Lock()
        self._n_kept = 0
        self._count()

    @property
    def n_open(self) -> int:
        """See the class."""
        return self._n_kept + len(self._unkept)

    def raise_alarm(self, kind: str, box_id: str, text: str) -> None:
        """Tell people; also in the log."""
        _log.warning("fleet.alarm kind=%s box=%s text=%s", kind, box_id, text)
        now_s = self._wall_s()
        with self._guard:
            before = self._unkept.pop((kind, box_id), None)
            first_s, n = (now_s, 0) if before is None else (before.first_s, before.n)
            self._unkept[kind, box_id] = Alarm(
                id=0, kind=kind, box_id=box_id, text=text[:_MAX_TEXT], first_s=first_s, last_s=now_s, n=n + 1
            )
            while len(self._unkept) > _MOST_UNKEPT:
                del self._unkept[next(iter(self._unkept))]
            try:
                with self._database.writing() as db:
                    self._bring(db)
            except StorageError as exc:
                _log.error("fleet.alarm_not_kept kind=%s box=%s error=%s", kind, box_id, exc)
                return
            self._unkept.clear()
        self._count()

    def lift(self, kind: str, box_id: str) -> None:
        """What an alarm told of is over: it counts as acknowledged, by the gateway.

        Raises:
            StorageError: it stands as before.
        """
        with self._guard:
            others = {key: alarm for key, alarm in self._unkept.items() if key != (kind, box_id)}
            with self._database.writing() as db:
                self._bring(db, others)
                db.execute(
                    "UPDATE alarm SET acked_s = ?, acked_by = 'gateway' "
                    "WHERE kind = ? AND box_id = ? AND acked_s IS NULL",
                    (self._wall_s(), kind, box_id),
                )
            self._unkept.clear()
        self._count()

    def _bring(self, db: sqlite3.Connection, unkept: Mapping[tuple[str, str], Alarm] | None = None) -> None:
        """What waits in memory, to the disk."""
        for alarm in (self._unkept if unkept is None else unkept).values():
            _add(db, alarm)

    def within(self, db: sqlite3.Connection, kind: str, box_id: str, text: str) -> None:
        """The same inside a transaction that is under way; `recount` after it."""
        now_s = self._wall_s()
        _add(db, Alarm(id=0, kind=kind, box_id=box_id, text=text[:_MAX_TEXT], first_s=now_s, last_s=now_s, n=1))

    def recount(self) -> None:
        """Look how many are open."""
        self._count()

    def listed(self, *, with_acked: bool) -> tuple[Alarm, ...]:
        """Alarms, oldest first."""
        where = "" if with_acked else "WHERE acked_s IS NULL"
        query = f"SELECT id, kind, box_id, text, first_s, last_s, n, acked_s, acked_by FROM alarm {where} ORDER BY id"  # noqa: S608 (fixed text)
        unkept = tuple(self._unkept.values())
        try:
            with self._database.reading() as db:
                rows = db.execute(query).fetchall()
        except StorageError:
            if not unkept:
                raise
            rows = []  # the disk that the alarm tells of
        names = ("id", "kind", "box_id", "text", "first_s", "last_s", "n", "acked_s", "acked_by")
        return (*(Alarm(**dict(zip(names, row, strict=True))) for row in rows), *unkept)

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
            (self._n_kept,) = db.execute("SELECT count(*) FROM alarm WHERE acked_s IS NULL").fetchone()


def _add(db: sqlite3.Connection, alarm: Alarm) -> None:
    """One row for all of a kind and box while it is open; what the gateway lifted a moment ago is open again."""
    row = db.execute(
        "SELECT id FROM alarm WHERE kind = ? AND box_id = ? "
        "AND (acked_s IS NULL OR acked_by = 'gateway' AND acked_s > ?) ORDER BY id DESC",
        (alarm.kind, alarm.box_id, alarm.last_s - _AGAIN_WITHIN_S),
    ).fetchone()
    if row is not None:
        db.execute(
            "UPDATE alarm SET n = n + ?, last_s = ?, text = ?, acked_s = NULL, acked_by = '' WHERE id = ?",
            (alarm.n, alarm.last_s, alarm.text, row[0]),
        )
        return
    db.execute(
        "INSERT INTO alarm (kind, box_id, text, first_s, last_s, n, acked_by) VALUES (?, ?, ?, ?, ?, ?, '')",
        (alarm.kind, alarm.box_id, alarm.text, alarm.first_s, alarm.last_s, alarm.n),
    )
    db.execute("DELETE FROM alarm WHERE id <= (SELECT max(id) FROM alarm) - ?", (_MOST_ALARMS,))


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
