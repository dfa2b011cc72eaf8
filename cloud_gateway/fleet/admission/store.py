"""The database of who belongs to a fleet: its schema, and how it is opened."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cloud_gateway.fleet.admission.boxes import Boxes
from cloud_gateway.fleet.admission.registry_copy import RegistryCopy, restored
from hybrid.errors import CorruptContent, StorageError
from hybrid.hosting.database import Database

FILE_NAME: Final = "fleet.db"

_MIGRATIONS: Final = (
    """
    CREATE TABLE token (
        id         TEXT PRIMARY KEY,
        key        BLOB NOT NULL,
        name       TEXT NOT NULL,
        n_allowed  INTEGER NOT NULL,
        expires_s  REAL NOT NULL,
        tags       TEXT NOT NULL,
        approve    INTEGER NOT NULL,
        has_root   INTEGER NOT NULL,
        created_s  REAL NOT NULL,
        created_by TEXT NOT NULL,
        revoked_s  REAL
    ) STRICT;
    CREATE TABLE box (
        id         TEXT PRIMARY KEY,
        key        BLOB NOT NULL,
        name       TEXT NOT NULL UNIQUE,
        tags       TEXT NOT NULL,
        admission  TEXT NOT NULL,
        reason     TEXT NOT NULL,
        token_id   TEXT NOT NULL,
        enrolled_s REAL NOT NULL,
        epoch      TEXT NOT NULL,
        run        TEXT NOT NULL,
        since_s    REAL NOT NULL,
        pardoned   INTEGER NOT NULL,
        seen_s     REAL NOT NULL,
        software   TEXT NOT NULL,
        machine    TEXT NOT NULL
    ) STRICT;
    CREATE TABLE enrolment (
        token_id TEXT NOT NULL,
        box_id   TEXT NOT NULL,
        at_s     REAL NOT NULL,
        PRIMARY KEY (token_id, box_id)
    ) STRICT;
    CREATE TABLE life (
        id     INTEGER PRIMARY KEY,
        box_id TEXT NOT NULL,
        epoch  TEXT NOT NULL,
        run    TEXT NOT NULL,
        at_s   REAL NOT NULL
    ) STRICT;
    CREATE INDEX life_of_box ON life (box_id, id);
    CREATE TABLE access (
        token_id  TEXT PRIMARY KEY,
        key       BLOB NOT NULL,
        box_id    TEXT NOT NULL,
        expires_s REAL NOT NULL
    ) STRICT;
    CREATE INDEX access_of_box ON access (box_id);
    CREATE TABLE alarm (
        id      INTEGER PRIMARY KEY,
        kind    TEXT NOT NULL,
        box_id  TEXT NOT NULL,
        text    TEXT NOT NULL,
        first_s REAL NOT NULL,
        last_s  REAL NOT NULL,
        n       INTEGER NOT NULL,
        acked_s REAL,
        acked_by TEXT NOT NULL
    ) STRICT;
    CREATE TABLE event (
        id     INTEGER PRIMARY KEY,
        at_s   REAL NOT NULL,
        who    TEXT NOT NULL,
        what   TEXT NOT NULL,
        box_id TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT;
    CREATE INDEX event_of_box ON event (box_id, id);
    CREATE TABLE trust (
        sequence INTEGER PRIMARY KEY,
        root     BLOB NOT NULL,
        envelope BLOB NOT NULL,
        set_s    REAL NOT NULL
    ) STRICT
    """,
)


def open_store(
    folder: Path, connect: Callable[[Path], sqlite3.Connection] | None = None
) -> tuple[Database, RegistryCopy, bool]:
    """The database in the fleet's folder, its copy, and whether it had to be restored from that.

    Raises:
        DiskFull, StorageError: it can neither be opened nor made.
    """
    path = folder / FILE_NAME
    database = Database(path, _MIGRATIONS, connect=connect)
    was_restored = False
    if connect is None:
        if not database.is_new and not _is_readable(database):
            database.set_aside("a row is damaged")
            was_restored = restored(path)
        elif database.is_new:
            database.close()
            was_restored = restored(path)
        if was_restored or database.is_new or not path.exists():
            database.close()
            database = Database(path, _MIGRATIONS)
    return database, RegistryCopy(database, path), was_restored


def _is_readable(database: Database) -> bool:
    """Whether what it holds of boxes is what somebody wrote."""
    try:
        Boxes(database)
    except (CorruptContent, StorageError):
        return False
    return True
