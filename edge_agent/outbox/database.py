"""One SQLite file of the box: durable, held by one process, set aside when it cannot be read, now or while it runs.

Design: write-ahead log with synchronous=FULL, for NORMAL loses acknowledged rows at a power cut (measured: 258 of 400
cuts; FULL none). The lock is exclusive, so that there is no shared-memory file which a full disk could tear away below
us. Pages are small, for a commit writes whole pages, and a flash card has only so many writes in it. One connection
behind a lock: writers come in groups, and a connection a thread would cost memory that a small box has not.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from edge_agent.disk import Disk
from hybrid.errors import CorruptContent, DiskFull, StorageError

Connect = Callable[[Path], sqlite3.Connection]

PAGE_BYTES: Final = 1024
_PRAGMAS: Final = (
    f"page_size={PAGE_BYTES}",
    "auto_vacuum=INCREMENTAL",
    "locking_mode=EXCLUSIVE",
    "journal_mode=WAL",
    "synchronous=FULL",
    "wal_autocheckpoint=1024",
    "cache_size=-512",
)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_DISK: Final = frozenset({
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_INTERRUPT,
})  # fmt: skip
"""What opening a sound file may meet; anything else, such as a changed byte of its header, is damage."""

_WORDS_OF_DAMAGE: Final = ("Could not decode to UTF-8", "no such column", "no such table", "has no column named")
"""In errors without a code of damage: text whose bytes are none, names in a schema; no check of pages sees those."""

_VACUUM_PAGES: Final = 16 << 10
"""Given back at once, lest others wait for it; the rest follows."""

_CHECKED_BYTES: Final = 16 << 20
"""Up to this size a file is checked whole when it is opened; a larger one as it is read, for a start must be quick."""

_log = logging.getLogger("hybrid.agent.database")


class BoxDatabase:
    """One file; every method may be called from any thread.

    Args:
        path: of the file.
        script: statements that make its tables, divided by semicolons; each must bear being said again.
        disk: for the folder and for setting the file aside.
        connect: opens the file; the simulation's has a disk of its own below it.
        wall_s: names what is set aside.

    Attributes:
        is_new: the file was made by the last `open`.
        aside: where the last damaged file was put; None while there was none.
    """

    def __init__(
        self,
        path: Path,
        script: str,
        disk: Disk,
        *,
        connect: Connect | None = None,
        wall_s: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.is_new = False
        self.aside: Path | None = None
        self._script = script
        self._disk = disk
        self._connect = connect or _connect
        self._wall_s = wall_s
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()

    def open(self) -> None:
        """Open or make the file; one that cannot be read is set aside and begun anew.

        Raises:
            DiskFull, StorageError: it can neither be opened nor made.
        """
        with self._lock:
            if self._connection is not None:
                return
            try:
                self._open()
            except CorruptContent as exc:
                self.set_aside(str(exc))
                self._open()

    def close(self) -> None:
        """Close the file; saying it twice changes nothing."""
        with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                with suppress(sqlite3.Error):
                    connection.close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for reading.

        Raises:
            CorruptContent: the file is damaged; the owner calls `set_aside` and opens it again.
            StorageError: it refused otherwise.
        """
        with self._lock, self._mapped():
            yield self._opened()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One write transaction: on the disk when the block ends, undone when it raises.

        Raises:
            DiskFull, StorageError, CorruptContent: nothing was written.
        """
        with self._lock, self._mapped():
            connection = self._opened()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    def give_back(self, least_bytes: int) -> None:
        """Return free pages to the file system where there are at least so many bytes of them."""
        with self.reading() as connection:
            (n_free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if n_free == 0 or n_free * PAGE_BYTES < least_bytes:
            return
        with self.writing() as connection:
            goal = max(0, n_free - _VACUUM_PAGES)
            while n_free > goal:
                # A page a call: Python's module takes but one step of a statement that gives no rows.
                connection.execute("PRAGMA incremental_vacuum")
                (left,) = connection.execute("PRAGMA freelist_count").fetchone()
                if left >= n_free:
                    break
                n_free = left
        self.checkpoint()

    def checkpoint(self) -> None:
        """Bring the log into the file, so that its room is used again."""
        with self.reading() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def set_aside(self, reason: str, *, word: str = "corrupt") -> Path:
        """Close the file and rename it to NAME.WORD-TIME; the next `open` makes a new one."""
        with self._lock:
            self.close()
            stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self._wall_s()))
            aside = self.path.with_name(f"{self.path.name}.{word}-{stamp}")
            n = 1
            while self._disk.size(aside) >= 0:
                n += 1
                aside = self.path.with_name(f"{self.path.name}.{word}-{stamp}-{n}")
            for suffix in ("-wal", ""):
                source = self.path.with_name(self.path.name + suffix)
                if self._disk.size(source) >= 0:
                    self._disk.replace(source, aside.with_name(aside.name + suffix))
            self._disk.sync(self.path.parent)
            self.aside = aside
            _log.error("database.set_aside path=%s reason=%r", aside, reason)
            return aside

    def _open(self) -> None:
        self._disk.make_folder(self.path.parent)
        if self._disk.size(self.path) < 0:
            self._disk.append(self.path, b"")  # nobody else may read it
        with self._mapped(is_opening=True):
            connection = self._connect(self.path)
            try:
                for pragma in _PRAGMAS:
                    connection.execute(f"PRAGMA {pragma}").fetchall()
                (n_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                (n_pages,) = connection.execute("PRAGMA page_count").fetchone()
                if n_pages * PAGE_BYTES <= _CHECKED_BYTES:
                    found = connection.execute("PRAGMA quick_check(1)").fetchone()
                    if found[0] != "ok":
                        raise CorruptContent(f"{self.path}: {found[0]}", path=str(self.path))
                connection.execute("BEGIN IMMEDIATE")
                for statement in filter(None, map(str.strip, self._script.split(";"))):
                    connection.execute(statement)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    connection.close()
                raise
        # The file's name must outlast a power cut as its rows do; SQLite syncs the folder for its log only.
        self._disk.sync(self.path.parent)
        self.is_new = n_tables == 0
        self._connection = connection

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError(f"{self.path} is closed", path=str(self.path))
        return self._connection

    def _says_read_only(self, code: int) -> bool:
        """Whether the file's header alone forbids writing: SQLite then takes it for a newer version's."""
        if code != sqlite3.SQLITE_READONLY:
            return False
        try:
            self._disk.append(self.path, b"")
        except OSError:
            return False
        return True

    @contextmanager
    def _mapped(self, *, is_opening: bool = False) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as exc:
            if not is_opening:
                raise
            # SQLite's message about a damaged schema has the schema's bytes in it.
            raise CorruptContent(f"{self.path}: the schema is damaged ({exc})", path=str(self.path)) from exc
        except sqlite3.Error as exc:
            code = (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF
            if code == sqlite3.SQLITE_FULL:
                raise DiskFull(f"{self.path}: no room; nothing was half-stored", path=str(self.path)) from exc
            is_damage = code in _DAMAGED or any(words in str(exc) for words in _WORDS_OF_DAMAGE)
            if is_damage or (is_opening and (code not in _DISK or self._says_read_only(code))):
                raise CorruptContent(f"{self.path}: {exc}", path=str(self.path)) from exc
            raise StorageError(f"{self.path}: {exc}; check the disk and its permissions", path=str(self.path)) from exc


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
