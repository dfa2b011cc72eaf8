"""A large database: read whole beside the work, and set aside by the next start where it is damaged."""

import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from hybrid.errors import StorageError
from hybrid.hosting import database as database_module
from hybrid.hosting.database import Database

SCRIPT = ("CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB)",)


@pytest.fixture(autouse=True)
def _any_size_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_CHECKED_BYTES", 0)


def filled(path: Path, n_rows: int = 400) -> None:
    """A database of some pages at `path`, closed."""
    rng = random.Random(5)
    database = Database(path, SCRIPT)
    with database.writing() as db:
        db.executemany("INSERT INTO t VALUES (?, ?)", [(number, rng.randbytes(2000)) for number in range(n_rows)])
    database.close()


def damage_a_page(path: Path) -> None:
    """Zero the header of a page in the middle, which an opening does not read."""
    page_bytes = 4096
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // page_bytes // 2 * page_bytes)
        file.write(bytes(64))


def ended(name: str) -> None:
    """Wait until the check of that file is over."""
    for thread in threading.enumerate():
        if thread.name == f"check-{name}":
            thread.join(30)
            assert not thread.is_alive()


def test_a_sound_file_is_read_beside_the_work(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    filled(path)
    database = Database(path, SCRIPT)
    with database.reading() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (400,)
    ended("large.db")
    database.close()
    assert [found.name for found in tmp_path.iterdir()] == ["large.db"]


def test_damage_that_is_found_beside_the_work_is_set_aside_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    filled(path)
    damage_a_page(path)
    database = Database(path, SCRIPT)
    assert not database.is_new, "the start did not read all of it"
    ended("large.db")
    with database.reading() as db:
        assert db.execute("SELECT count(*) FROM t WHERE id < 5").fetchone() == (5,), "what can be read still is"
    database.close()
    again = Database(path, SCRIPT)
    assert again.is_new
    assert list(tmp_path.glob("large.db.corrupt-*"))
    assert not path.with_name("large.db-damaged").exists()
    again.close()
    last = Database(path, SCRIPT)
    assert not last.is_new
    last.close()


def test_damage_that_a_query_meets_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.db"
    filled(path)
    damage_a_page(path)
    monkeypatch.setattr(Database, "_check", lambda _: None)
    database = Database(path, SCRIPT)
    with pytest.raises(StorageError, match="restart: the file is set aside then"), database.reading() as db:
        db.execute("SELECT sum(length(body)) FROM t").fetchone()
    database.close()
    again = Database(path, SCRIPT)
    assert again.is_new
    again.close()


def test_a_note_about_a_sound_file_costs_a_check_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    filled(path)
    note = path.with_name("large.db-damaged")
    note.touch()
    database = Database(path, SCRIPT)
    with database.reading() as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (400,)
    assert not note.exists()
    database.close()


def test_a_check_ends_when_the_database_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.db"
    filled(path)
    begun, released = threading.Event(), threading.Event()

    class Slow(sqlite3.Connection):
        """Holds a check until the database is closing."""

        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "quick_check" in sql:
                begun.set()
                assert released.wait(30)
                sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
            return super().execute(sql, *parameters)

    def connected(found: Path) -> sqlite3.Connection:
        return sqlite3.connect(found, isolation_level=None, check_same_thread=False, factory=Slow)

    monkeypatch.setattr(database_module, "_connected", connected)
    database = Database(path, SCRIPT)
    assert begun.wait(30)
    released.set()
    before_s = time.monotonic()
    database.close()
    assert time.monotonic() - before_s < database_module._CLOSE_TIMEOUT_S, "it did not wait for the endless check"
    ended("large.db")
    assert not path.with_name("large.db-damaged").exists()
