"""A database that is closed while other threads use it: they end first, and no process breaks."""

import threading
from pathlib import Path

import pytest

from hybrid.errors import StorageError
from hybrid.hosting.database import Database

SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400000) SELECT count(*) FROM n"


def test_closing_waits_for_those_who_use_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "some.db", ("CREATE TABLE t (x)",))
    begun, counted = threading.Event(), []

    def use() -> None:
        with database.reading() as connection:
            begun.set()
            counted.append(connection.execute(SLOW).fetchone()[0])

    thread = threading.Thread(target=use)
    thread.start()
    assert begun.wait(10)
    database.close()
    assert counted == [400000]
    thread.join(10)
    with pytest.raises(StorageError, match="closed"), database.reading():
        pass


def test_threads_that_come_while_it_closes_are_told(tmp_path: Path) -> None:
    for round_ in range(30):
        database = Database(tmp_path / f"{round_}.db", ("CREATE TABLE t (x)",))
        go, told = threading.Barrier(5), []

        def use(database: Database = database, go: threading.Barrier = go, told: list[str] = told) -> None:
            go.wait()
            try:
                with database.writing() as connection:
                    connection.execute("INSERT INTO t VALUES (1)")
                told.append("done")
            except StorageError as exc:
                told.append("closed" if "closed" in str(exc) else str(exc))

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        go.wait()
        database.close()
        for thread in threads:
            thread.join(10)
        assert len(told) == 4
        assert set(told) <= {"done", "closed"}
