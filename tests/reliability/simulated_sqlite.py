"""SQLite on a simulated disk: the real database engine, whose unsynced writes a power cut drops or tears.

    with connecting(disk) as connect:            # a mount of simulated_disk.py
        connection = connect(path)               # behaves as sqlite3.connect(path, isolation_level=None)

Design: apsw hands every operation of SQLite's file border to Python, on the same image as the agent's other files.
Shared memory is no part of that border, so a database is locked by its one connection (`locking_mode=EXCLUSIVE`);
write-ahead log, its syncs and its recovery are as ever. A second connection to an open file is refused as busy.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import apsw

from tests.reliability.page_cache import File, Folder
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.virtual_loop import PowerCut

Connect = Callable[..., "Connection"]

_NUMBERS = count()
_CREATE, _DELETE_ON_CLOSE = 0x4, 0x8
_SYNCS_FOLDER = 0x800 | 0x80000
"""Rollback journals and write-ahead logs: their first sync brings their name to the disk, as on Unix."""


@contextmanager
def connecting(disk: SimulatedDisk) -> Iterator[Connect]:
    """A `connect` for the stores of one process; its connections are dead when the block ends."""
    vfs = _FileSystem(disk)

    def connect(path: str | Path, *_: Any, **__: Any) -> Connection:
        if disk.is_dead:
            raise PowerCut
        with _mapped():
            made = apsw.Connection(str(path), vfs=vfs.name)
            connection = Connection(made)
            made.execute("PRAGMA locking_mode=EXCLUSIVE")
        vfs.connections.append(connection)
        return connection

    try:
        yield connect
    finally:
        disk.is_dead = True
        for connection in vfs.connections:
            with suppress(sqlite3.Error, PowerCut):
                connection.close()
        vfs.unregister()


class Cursor:
    """What a statement gave; complete when it is made."""

    def __init__(self, rows: list, connection: apsw.Connection, columns: tuple | None = None) -> None:
        self._rows = iter(rows)
        self.lastrowid = connection.last_insert_rowid()
        self.rowcount = connection.changes()
        self.description = columns

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def fetchmany(self, size: int = 1) -> list[Any]:
        return [row for _, row in zip(range(size), self._rows, strict=False)]

    def close(self) -> None:
        self._rows = iter(())


class Connection:
    """The part of `sqlite3.Connection` that stores use, in autocommit mode."""

    isolation_level = None

    def __init__(self, made: apsw.Connection) -> None:
        self._made = made
        self.row_factory: Any = None

    def execute(self, statement: str, parameters: Any = ()) -> Cursor:
        with _mapped():
            cursor = self._made.cursor()
            done = cursor.execute(statement, parameters)
            if self.row_factory is None:
                return Cursor(list(done), self._made)
            columns = None
            with suppress(apsw.ExecutionCompleteError):
                columns = tuple((name, *[None] * 6) for name, *_ in cursor.get_description())
            told = Cursor([], self._made, columns)
            return Cursor([self.row_factory(told, row) for row in done], self._made, columns)

    def executemany(self, statement: str, rows: Any) -> Cursor:
        with _mapped():
            before = self._made.total_changes()
            self._made.cursor().executemany(statement, rows)
            cursor = Cursor([], self._made)
            cursor.rowcount = self._made.total_changes() - before
            return cursor

    def executescript(self, script: str) -> Cursor:
        return self.execute(script)

    def cursor(self) -> "Connection":
        return self

    @property
    def in_transaction(self) -> bool:
        return self._made.in_transaction

    @property
    def total_changes(self) -> int:
        return self._made.total_changes()

    def commit(self) -> None:
        if self.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        if self.in_transaction:
            self.execute("ROLLBACK")

    def close(self) -> None:
        with _mapped():
            self._made.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except apsw.Error as exc:
        if isinstance(exc, apsw.ConstraintError):
            kind = sqlite3.IntegrityError
        elif isinstance(exc, (apsw.CorruptError, apsw.NotADBError)):
            kind = sqlite3.DatabaseError
        elif isinstance(exc, (apsw.MisuseError, apsw.BindingsError, apsw.ConnectionClosedError)):
            kind = sqlite3.ProgrammingError
        else:
            kind = sqlite3.OperationalError
        told = kind(str(exc))
        told.sqlite_errorcode = getattr(exc, "result", 1)  # type: ignore[attr-defined]
        told.sqlite_errorname = type(exc).__name__  # type: ignore[attr-defined]
        raise told from exc


class _FileSystem(apsw.VFS):
    def __init__(self, disk: SimulatedDisk) -> None:
        self.name = f"simulated-{next(_NUMBERS)}"
        self.disk = disk
        self.rng = Random(disk.rng.random())
        self.connections: list[Connection] = []
        self.locked: dict[str, _OpenFile] = {}
        super().__init__(self.name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> "_OpenFile":  # noqa: N802 (SQLite's name)
        path = Path(name.filename() if isinstance(name, apsw.URIFilename) else name) if name else None
        flags[1] = flags[0]
        return _OpenFile(self, path, flags[0])

    def xDelete(self, name: str, syncs: bool) -> None:  # noqa: N802
        if self.disk.is_dead:
            return
        self.disk.step()
        path = Path(name)
        folder = self.disk.image.folder_of(path)
        if path.name not in folder.live:
            raise apsw.exception_for(apsw.SQLITE_IOERR)
        self.disk.image.unlink(folder, path.name)
        if syncs:
            folder.sync()

    def xAccess(self, name: str, _flags: int) -> bool:  # noqa: N802
        return self.disk.image.find(Path(name)) is not None

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return str(Path(name).absolute())

    def xRandomness(self, n_bytes: int) -> bytes:  # noqa: N802
        return self.rng.randbytes(n_bytes)

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return 212_000_000_000_000

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds


class _OpenFile:
    def __init__(self, vfs: _FileSystem, path: Path | None, flags: int) -> None:
        self._vfs, self._disk, self._path, self._flags = vfs, vfs.disk, path, flags
        self._is_new = False
        self._folder: Folder | None = None
        self._file = File()
        if path is None:
            return
        self._folder = self._disk.image.make_folder(path.parent)
        found = self._folder.live.get(path.name)
        if isinstance(found, Folder) or (found is None and not flags & _CREATE):
            raise apsw.exception_for(apsw.SQLITE_CANTOPEN)
        if isinstance(found, File):
            self._file = found
        else:
            self._disk.step()
            self._is_new = True
            self._disk.image.link(self._folder, path.name, self._file)

    def xRead(self, n_bytes: int, offset: int) -> bytes:  # noqa: N802
        self._refuse()
        return bytes(self._file.live[offset : offset + n_bytes])

    def xWrite(self, content: bytes, offset: int) -> None:  # noqa: N802
        if self._disk.is_dead:
            return
        if self._disk.is_last_step():
            self._file.write(offset, content[: self._disk.rng.randrange(len(content) + 1)])
        self._disk.step()
        self._refuse()
        wanted, granted = self._disk.room(self._file, offset + len(content))
        if granted < wanted:
            raise apsw.exception_for(apsw.SQLITE_FULL)
        self._disk.image.used_bytes += granted
        self._disk.image.written_bytes += len(content)
        self._file.write(offset, content)

    def xTruncate(self, n_bytes: int) -> None:  # noqa: N802
        if self._disk.is_dead:
            return
        self._disk.step()
        self._disk.image.used_bytes -= max(0, len(self._file.live) - n_bytes)
        self._file.truncate(n_bytes)

    def xSync(self, _flags: int) -> None:  # noqa: N802
        if self._disk.is_dead:
            return
        self._disk.step()
        try:
            self._refuse()
        except apsw.IOError:
            self._file.lose()
            raise
        self._file.sync()
        if self._is_new and self._flags & _SYNCS_FOLDER and self._folder is not None:
            self._is_new = False
            self._folder.sync()

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._file.live)

    def xLock(self, level: int) -> None:  # noqa: N802
        holder = self._vfs.locked.get(str(self._path))
        if holder not in (None, self):
            raise apsw.exception_for(apsw.SQLITE_BUSY)
        if level:
            self._vfs.locked[str(self._path)] = self

    def xUnlock(self, level: int) -> None:  # noqa: N802
        if not level and self._vfs.locked.get(str(self._path)) is self:
            del self._vfs.locked[str(self._path)]

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return str(self._path) in self._vfs.locked

    def xClose(self) -> None:  # noqa: N802
        self.xUnlock(0)
        if self._flags & _DELETE_ON_CLOSE and self._path and self._folder and not self._disk.is_dead:
            self._folder.live.pop(self._path.name, None)

    def xSectorSize(self) -> int:  # noqa: N802
        return 512

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE  # as SQLite itself says of Unix files; the image keeps to it

    def xFileControl(self, _operation: int, _pointer: int) -> bool:  # noqa: N802
        return False

    def _refuse(self) -> None:
        try:
            self._disk.refuse()
        except OSError as exc:
            raise apsw.exception_for(apsw.SQLITE_IOERR) from exc


__all__: Sequence[str] = ("Connect", "Connection", "connecting")
