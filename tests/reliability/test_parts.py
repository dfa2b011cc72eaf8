"""The simulated parts themselves: they lose what a real disk may lose, and nothing that it may not."""

import sqlite3
from pathlib import Path
from random import Random

import pytest

from edge_agent.disk import write_durably
from hybrid.errors import DiskFull, StorageError
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import connecting
from tests.reliability.virtual_loop import PowerCut

DATA = Path("/data")
N_CUTS = 400


def rows_after_cut(seed: int, synchronous: str) -> tuple[list[int], list[int]]:
    """Rows acknowledged, and rows found, when the power goes at a random operation of a program that inserts."""
    rng = Random(f"cuts {seed}")
    image, path = Image(), DATA / "box.db"
    disk = SimulatedDisk(image, rng)
    disk.make_folder(DATA)
    acknowledged: list[int] = []
    with connecting(disk) as connect:
        try:
            connection = connect(path)
            for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "wal_autocheckpoint=20"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("CREATE TABLE t (x INTEGER, body BLOB)")
            disk.cut_after = rng.randrange(400)
            for number in range(1000):
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("INSERT INTO t VALUES (?, ?)", (number, rng.randbytes(300)))
                connection.execute("COMMIT")
                acknowledged.append(number)
        except PowerCut:
            pass
    image.cut_power(rng)
    with connecting(SimulatedDisk(image, rng)) as connect:
        connection = connect(path)
        connection.execute("PRAGMA journal_mode=WAL")
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            return acknowledged, []
        return acknowledged, [row[0] for row in connection.execute("SELECT x FROM t ORDER BY x")]


def test_what_sqlite_commits_at_full_is_there_after_400_cuts() -> None:
    for seed in range(N_CUTS):
        acknowledged, found = rows_after_cut(seed, "FULL")
        assert found in (acknowledged, [*acknowledged, len(acknowledged)]), seed


def test_the_simulated_disk_shows_what_synchronous_normal_loses() -> None:
    lost = 0
    for seed in range(N_CUTS):
        acknowledged, found = rows_after_cut(seed, "NORMAL")
        lost += len(found) < len(acknowledged)
    assert lost > N_CUTS // 4


def test_write_durably_leaves_the_old_or_the_new_content_at_every_cut() -> None:
    path, seen = DATA / "identity" / "x.json", set()
    for cut_after in range(8):
        for seed in range(50):
            image, rng = Image(), Random(f"{cut_after} {seed}")
            disk = SimulatedDisk(image, rng)
            write_durably(disk, path, b"old" * 1000)
            disk.cut_after = cut_after
            try:
                write_durably(disk, path, b"new" * 1000)
                done = True
            except PowerCut:
                done = False
            image.cut_power(rng)
            content = SimulatedDisk(image, rng).read(path)
            assert content in (b"old" * 1000, b"new" * 1000), (cut_after, seed)
            assert not done or content[:3] == b"new", (cut_after, seed)
            seen.add((done, content[:3]))
    assert seen == {(False, b"old"), (False, b"new"), (True, b"new")}


@pytest.mark.parametrize(("missing", "worst"), [("folder", b"old"), ("file", b"")])
def test_a_missing_sync_shows(missing: str, worst: bytes) -> None:
    path, found = DATA / "x.json", set()
    for seed in range(100):
        image, rng = Image(), Random(seed)
        disk = SimulatedDisk(image, rng)
        write_durably(disk, path, b"old")
        disk.append(path.with_name("draft"), b"new")
        if missing != "file":
            disk.sync(path.with_name("draft"))
        disk.replace(path.with_name("draft"), path)
        if missing != "folder":
            disk.sync(DATA)
        image.cut_power(rng)
        found.add(SimulatedDisk(image, rng).read(path))
    assert found > {b"new"}
    assert worst in found


def test_a_full_disk_says_so_and_sqlite_undoes() -> None:
    image = Image(capacity_bytes=60_000)
    disk = SimulatedDisk(image, Random(1))
    disk.make_folder(DATA)
    with connecting(disk) as connect:
        connection = connect(DATA / "box.db")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (body BLOB)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            for _ in range(100):
                connection.execute("INSERT INTO t VALUES (?)", (bytes(4000),))
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
        with pytest.raises(DiskFull):
            disk.append(DATA / "x", bytes(60_000))
        disk.remove(DATA / "x")
        image.capacity_bytes = 200_000
        connection.execute("INSERT INTO t VALUES (?)", (bytes(4000),))


def test_a_failing_disk_says_so() -> None:
    disk = SimulatedDisk(Image(), Random(1))
    disk.append(DATA / "x", b"x")
    disk.eio_ratio = 1.0
    with pytest.raises(StorageError):
        disk.sync(DATA / "x")
    with pytest.raises(OSError, match="Input/output"):
        disk.read(DATA / "x")


def test_used_bytes_are_what_the_files_weigh() -> None:
    rng = Random(5)
    image = Image(capacity_bytes=100_000)
    disk = SimulatedDisk(image, rng)
    for number in range(300):
        path = DATA / f"{rng.randrange(4)}" / f"{rng.randrange(5)}"
        action = rng.randrange(4)
        if action == 0:
            disk.append(path, bytes(rng.randrange(500)))
        elif action == 1:
            disk.remove(path)
        elif action == 2 and disk.size(path) >= 0:
            disk.replace(path, path.with_name(str(rng.randrange(5))))
        elif number % 10 == 0:
            image.cut_power(rng)
        total = sum(max(0, disk.size(DATA / a / b)) for a in disk.names(DATA) for b in disk.names(DATA / a))
        assert image.used_bytes == total, number
