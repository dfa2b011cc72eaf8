"""Tokens on disk: one small SQLite file, shared by the running gateway and the token commands."""

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hybrid.errors import Conflict, CorruptContent, DiskFull, StorageError
from hybrid.hosting.identity import Identity, Role

FILE_NAME: Final = "tokens.sqlite"
_FORMAT: Final = 1
_BUSY_S: Final = 5.0
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS token (
    id          TEXT PRIMARY KEY,
    role        TEXT NOT NULL CHECK (role IN ('admin', 'publisher', 'device')),
    name        TEXT NOT NULL,
    key         BLOB NOT NULL CHECK (length(key) = 32),
    created_s   REAL NOT NULL,
    revoked_s   REAL,
    last_used_s REAL
) STRICT
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRecord:
    """What the gateway keeps of a token.

    Attributes:
        id: the public part.
        role: what it was made for.
        name: what its maker called it.
        key: SHA-256 of the secret (32 bytes), never shown by `repr`.
        created_s: seconds since 1970, as the two below.
        revoked_s: None while the token is good.
        last_used_s: None if never; written once a minute.
    """

    id: str
    role: Role
    name: str
    key: bytes = field(repr=False)
    created_s: float
    revoked_s: float | None = None
    last_used_s: float | None = None

    @property
    def identity(self) -> Identity:
        """Who presents this token."""
        return Identity(token_id=self.id, role=self.role, name=self.name)


class TokenStore:
    """The file of tokens. Safe to use from several threads and several processes.

    Design: a rollback journal rather than a write-ahead log: writes are rare, and no side files stay behind that a
    command run by another user could come to own.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it with mode 0600.

        Raises:
            StorageError: it cannot be opened; `CorruptContent` if it is no token file.
        """
        self.path = path
        self._lock = threading.Lock()
        with self._mapped():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            with self._mapped():
                self._db.execute("PRAGMA synchronous = FULL")
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    def _prepare(self) -> None:
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > _FORMAT:
            raise StorageError(
                f"{self.path} was written by a later version (format {found}, this one reads {_FORMAT}); upgrade",
                path=str(self.path),
            )
        if found < _FORMAT:
            with self._transaction():
                self._db.execute(_SCHEMA)
                self._db.execute(f"PRAGMA user_version = {_FORMAT}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def version(self) -> int:
        """A number that changes whenever another process or another store wrote to the file."""
        with self._lock, self._mapped():
            (number,) = self._db.execute("PRAGMA data_version").fetchone()
            return int(number)

    def records(self) -> tuple[TokenRecord, ...]:
        """Every token ever made, oldest first."""
        with self._lock, self._mapped():
            rows = self._db.execute(
                "SELECT id, role, name, key, created_s, revoked_s, last_used_s FROM token ORDER BY created_s, id"
            ).fetchall()
        return tuple(
            TokenRecord(id=r[0], role=r[1], name=r[2], key=r[3], created_s=r[4], revoked_s=r[5], last_used_s=r[6])
            for r in rows
        )

    def insert(self, record: TokenRecord) -> None:
        """Keep a new token; it is on disk when this returns.

        Raises:
            Conflict: the ID exists.
        """
        row = (record.id, record.role, record.name, record.key, record.created_s)
        with self._lock, self._mapped(), self._transaction():
            try:
                self._db.execute("INSERT INTO token (id, role, name, key, created_s) VALUES (?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError as exc:
                raise Conflict(
                    f"token {record.id} exists on this gateway; a revoked one never comes back: make a new one",
                    token_id=record.id,
                ) from exc

    def revoke(self, token_id: str, now_s: float) -> bool:
        """Note the end of a token, keeping the first time it was said; False if there is no such token."""
        with self._lock, self._mapped(), self._transaction():
            changed = self._db.execute(
                "UPDATE token SET revoked_s = coalesce(revoked_s, ?) WHERE id = ?", (now_s, token_id)
            )
            return changed.rowcount > 0

    def note_use(self, used_s: Mapping[str, float]) -> None:
        """Write down when tokens were last used (seconds since 1970, by ID)."""
        with self._lock, self._mapped(), self._transaction():
            self._db.executemany(
                "UPDATE token SET last_used_s = max(coalesce(last_used_s, 0), ?) WHERE id = ?",
                [(at_s, token_id) for token_id, at_s in used_s.items()],
            )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        path = str(self.path)
        try:
            yield
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise DiskFull(f"{path}: the disk is full, nothing was changed; make room", path=path) from exc
            raise StorageError(f"{path} cannot be used: {exc}; mend the folder's rights", path=path) from exc
        except sqlite3.DatabaseError as exc:
            raise CorruptContent(
                f"{path} is damaged or no token file ({exc}); restore it, or move it away to start without tokens",
                path=path,
            ) from exc
        except OSError as exc:
            if isinstance(exc, StorageError):
                raise
            raise StorageError(f"{path} cannot be opened: {exc.strerror}; mend its rights", path=path) from exc
