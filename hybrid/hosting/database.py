"""SQLite as the gateway uses it: durable, shared by threads, and set aside when it cannot be read.

Design: a large file would keep a start waiting for minutes if all of it were read first. It is read beside the work;
damage that is found then, or met by a query, is noted in a file beside it, and the next start sets it aside.
"""

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hybrid.errors import DiskFull, StorageError

_BUSY_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 10.0
_CHECKED_BYTES: Final = 64 << 20
"""A file up to this size is read whole before it is used, a larger one beside it."""
_DAMAGED: Final = "-damaged"
"""Ends the name of the file that notes damage."""
_OF_DAMAGE: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_STEPS_BETWEEN_LOOKS: Final = 10_000
"""SQLite's steps (milliseconds) after which a check looks whether the database was closed."""
_OF_DISK: Final = frozenset({
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_INTERRUPT,
})  # fmt: skip
_log = logging.getLogger("hybrid.database")


class Database:
    """One SQLite file: write-ahead log, synchronous=FULL (acknowledged rows survive power cuts), a connection a thread.

    Attributes:
        is_new: the file was made by this call, because there was none or none that could be read.
    """

    def __init__(
        self,
        path: Path,
        migrations: Sequence[str],
        *,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """Open or make the file and bring it to the newest schema.

        Args:
            path: the file.
            migrations: scripts; script i leads from schema i to i + 1. Never edited once released.
            connect: makes a connection in place of SQLite on this machine's disk; its errors are sqlite3's.

        Raises:
            DiskFull, StorageError: it can neither be opened nor made.
        """
        self._path = path
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._idle = threading.Condition(self._guard)
        self._n_users = 0
        self._is_closed = False
        self._connect = connect or _connected
        self._note = path.with_name(path.name + _DAMAGED)
        self._is_real = connect is None
        self.is_new = not path.exists() or path.stat().st_size == 0
        if connect is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            is_checked = self._open_sound(migrations)
        except BaseException:
            self.close()
            raise
        if not is_checked:
            threading.Thread(target=self._check, name=f"check-{path.name}", daemon=True).start()

    def _open_sound(self, migrations: Sequence[str]) -> bool:
        """Bring the schema up to date; a file that is no sound database is set aside and begun anew.

        Returns:
            Whether all of the file was read.
        """
        to_check = not self._is_real or self._note.exists() or self._n_bytes() <= _CHECKED_BYTES
        try:
            self._migrate(migrations, to_check=to_check)
        except _Unreadable as exc:
            self._set_aside(str(exc))
            self.is_new = True
            self._migrate(migrations, to_check=True)
            to_check = True
        if to_check and self._is_real:
            with suppress(OSError):
                self._note.unlink(missing_ok=True)
        return to_check

    def _n_bytes(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0

    def _check(self) -> None:
        """Read all of a large file; ends when the database is closed."""
        try:
            with self.reading() as connection:
                connection.set_progress_handler(lambda: self._is_closed, _STEPS_BETWEEN_LOOKS)
                if connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",):
                    return
        except StorageError as exc:  # closed meanwhile, or noted already
            _log.info("database.not_checked path=%s reason=%s", self._path, exc)
            return
        self._note_damage("quick_check failed")

    def _note_damage(self, reason: str) -> None:
        """The next start looks at all of the file and sets it aside."""
        try:
            self._note.touch()
        except OSError as exc:
            reason += f"; not noted: {exc}"
        _log.error("database.damaged path=%s reason=%r advice='restart: it is set aside then'", self._path, reason)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, for reading.

        Raises:
            StorageError: the database refused.
        """
        with self._using() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: on the disk when the block ends, undone when it raises.

        Raises:
            DiskFull, StorageError: nothing was written.
        """
        with self._using() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections of all threads, once none is used any more; those still in use are left to the end."""
        with self._idle:
            self._is_closed = True
            if not self._idle.wait_for(lambda: not self._n_users, _CLOSE_TIMEOUT_S):
                _log.warning("database.still_used path=%s n_users=%d", self._path, self._n_users)
                return
            for connection in self._open:
                connection.close()
            self._open.clear()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection; `close` waits, for closing one under a statement that runs breaks the process."""
        with self._idle:
            if self._is_closed:
                raise StorageError(f"{self._path}: closed", path=str(self._path))
            self._n_users += 1
        try:
            with self._mapped():
                yield self._connection()
        finally:
            with self._idle:
                self._n_users -= 1
                self._idle.notify_all()

    def _connection(self) -> sqlite3.Connection:
        known: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if known is not None and not self._is_closed:
            return known
        connection = self._connect(self._path)
        with self._guard:
            if self._is_closed:
                connection.close()
                raise StorageError(f"{self._path}: closed", path=str(self._path))
            self._open.append(connection)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            _set(connection, pragma)
        self._local.connection = connection
        return connection

    def _migrate(self, migrations: Sequence[str], *, to_check: bool) -> None:
        try:
            connection = self._connection()
            if to_check and connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise _Unreadable("quick_check failed")
            connection.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)")
            connection.execute("DELETE FROM schema_version WHERE 0")  # a byte of the header may forbid to write
        except sqlite3.Error as exc:
            if self._is_of_disk(exc):
                raise _storage_error(self._path, exc) from exc
            raise _Unreadable(str(exc)) from exc
        with self.writing() as connection:
            row = connection.execute("SELECT max(version) FROM schema_version").fetchone()
            version = row[0] or 0
            if version > len(migrations):
                raise StorageError(
                    f"{self._path}: schema {version} is newer than this program's {len(migrations)}; upgrade hybrid",
                    path=str(self._path),
                )
            for script in migrations[version:]:
                for statement in filter(None, map(str.strip, script.split(";"))):
                    connection.execute(statement)
            if version < len(migrations):
                connection.execute("INSERT INTO schema_version VALUES (?)", (len(migrations),))

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            if self._is_real and (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF in _OF_DAMAGE:
                self._note_damage(str(exc))
            raise _storage_error(self._path, exc) from exc

    def _is_of_disk(self, exc: sqlite3.Error) -> bool:
        """Whether an error while opening speaks of the disk; anything else is what a changed byte makes SQLite say."""
        code = (getattr(exc, "sqlite_errorcode", None) or sqlite3.SQLITE_IOERR) & 0xFF
        if code != sqlite3.SQLITE_READONLY:
            return code in _OF_DISK
        return not os.access(self._path, os.W_OK)  # else it is a byte of the header that says so

    def set_aside(self, reason: str) -> None:
        """Close a file whose content turned out to be damaged and put it out of the way; this object is of no use then.

        Raises:
            StorageError: it could not be renamed.
        """
        self.close()
        try:
            self._set_aside(reason)
        except OSError as exc:
            raise StorageError(f"{self._path}: {exc.strerror or exc}", path=str(self._path)) from exc

    def _set_aside(self, reason: str) -> None:
        with self._guard:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._local = threading.local()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        aside = self._path.with_name(f"{self._path.name}.corrupt-{stamp}")
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                self._path.with_name(self._path.name + suffix).rename(aside.with_name(aside.name + suffix))
        _log.error("database.set_aside path=%s reason=%r", aside, reason)


def _connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)


def _set(connection: sqlite3.Connection, pragma: str) -> None:
    try:
        connection.execute(f"PRAGMA {pragma}")
    except UnicodeDecodeError as exc:  # SQLite's message about a damaged schema has the schema's bytes in it
        damaged = sqlite3.DatabaseError(f"the schema is damaged ({exc})")
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged from exc


class _Unreadable(Exception):
    """The file is no database, or a damaged one."""


def _storage_error(path: Path, exc: sqlite3.Error) -> StorageError:
    code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
    if code in _OF_DAMAGE:
        return StorageError(f"{path}: {exc}; restart: the file is set aside then", path=str(path))
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"{path}: no room; nothing was half-stored: make room and try again", path=str(path))
    return StorageError(f"{path}: {exc}; check the disk and its permissions", path=str(path))
