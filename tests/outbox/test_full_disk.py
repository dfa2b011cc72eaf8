"""A full disk: telemetry leaves first, nothing acknowledged is lost, and it goes on by itself once there is room."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from edge_agent.outbox.policy import KindLimits, OutboxLimits
from hybrid.errors import DiskFull, HybridError, OutboxFull
from tests.outbox.lab import Gateway, in_virtual_time, outbox_of, running, sequence, until

SMALL = OutboxLimits(reserve_bytes=0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Somebody else takes all the room there is."""
    path = folder / "somebody.else"
    with path.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1 << 8):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError:
                continue
    return path


@pytest.mark.root
def test_telemetry_leaves_first_and_nothing_acknowledged(small_disk: Path, tmp_path: Path) -> None:
    async def program() -> None:
        rng = Random(1)
        outbox = outbox_of(small_disk / "box", None, limits=SMALL)
        kept: list[int] = []
        refused = 0
        async with running(outbox):
            for n in range(20):
                await outbox.put("telemetry", b"%d:" % n + rng.randbytes(40_000))
                await outbox.flush()
            for n in range(400):
                try:
                    await outbox.put("result", b"%d:" % n + rng.randbytes(rng.choice([300, 20_000, 150_000])))
                    kept.append(n)
                except (DiskFull, OutboxFull):
                    refused += 1
            counts = outbox.store.ledger.counts
            assert refused > 100
            assert counts["telemetry"].n_dropped == 20, "what may be lost made room for what must not be"
            assert any(problem.blocks for problem in outbox.problems()), "health tells the truth"
            gateway = Gateway(tmp_path / "gateway")
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items, within_s=600)
            await outbox.put("result", b"1000:again")
            await until(lambda: not outbox.store.ledger.n_items, within_s=600)
            assert not outbox.problems()
            await asyncio.to_thread(outbox.store.tidy, outbox.now_s())
        assert sequence(gateway.bodies(stream="result")) == [*kept, 1000]
        used = sum(path.stat().st_size for path in (small_disk / "box").rglob("*") if path.is_file())
        assert used < 900_000, "the room is given back (half a MiB of it is ballast)"

    in_virtual_time(program())


@pytest.mark.root
def test_a_disk_that_others_fill_and_empty(small_disk: Path, tmp_path: Path) -> None:
    """Sending goes on while nothing can be written; keeping goes on by itself when there is room again."""

    async def program() -> None:
        outbox = outbox_of(small_disk / "box", None, limits=SMALL)
        gateway = Gateway(tmp_path / "gateway")
        async with running(outbox):
            for n in range(40):
                await outbox.put("result", b"%d:" % n + bytes(2000))
            other = fill(small_disk)
            failures: list[HybridError] = []
            for n in range(40, 500):
                try:
                    await outbox.put("result", b"%d:" % n + bytes(2000))
                except HybridError as exc:
                    failures.append(exc)
                    break
            assert failures, "it did not fill up"
            last = n
            assert isinstance(failures[0], DiskFull)
            assert outbox.problems()[0].blocks
            other.unlink()
            await asyncio.sleep(40.0)
            assert not outbox.problems(), "it looks by itself whether there is room again"
            await outbox.put("result", b"%d:" % last)
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items, within_s=600)
        assert sequence(gateway.bodies()) == list(range(last + 1))

    in_virtual_time(program())


@pytest.mark.root
def test_a_box_starts_on_a_full_disk_and_sends(small_disk: Path, tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(small_disk / "box", None, limits=SMALL)
        async with running(outbox):
            for n in range(100):
                await outbox.put("result", b"%d:" % n + bytes(2000))
        fill(small_disk)
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(small_disk / "box", gateway.lane(), limits=SMALL)
        async with running(outbox):
            await until(lambda: len(gateway.bodies()) == 100, within_s=600)
            await until(lambda: outbox.store.ledger.epoch and not outbox.store.ledger.n_items, within_s=600)
        assert sequence(gateway.bodies()) == list(range(100))

    in_virtual_time(program())


def test_limits_drop_the_oldest_telemetry_and_refuse_results(tmp_path: Path) -> None:
    async def program() -> None:
        limits = OutboxLimits(
            reserve_bytes=0,
            kinds={
                "report": KindLimits(n_bytes=1000, n_items=10),
                "result": KindLimits(n_bytes=1000, n_items=10),
                "deferred": KindLimits(n_bytes=1000, n_items=10),
                "sample": KindLimits(n_bytes=1000, n_items=10, age_s=100.0),
                "telemetry": KindLimits(n_bytes=100, n_items=10, age_s=100.0),
            },
        )
        gateway = Gateway(tmp_path / "gateway")
        outbox = outbox_of(tmp_path / "box", None, limits=limits)
        async with running(outbox):
            for n in range(25):
                await outbox.put("telemetry", b"%d:" % n)
                await outbox.flush()
            for n in range(10):
                await outbox.put("result", b"%d:" % n)
            with pytest.raises(OutboxFull) as caught:
                await outbox.put("result", b"10:")
            assert caught.value.code == "outbox_full"
            assert caught.value.fields["retry_after_s"] > 0
            assert outbox.store.ledger.counts["telemetry"].n_dropped == 15
            outbox.sender.calls = gateway.lane()
            outbox.sender.wake()
            await until(lambda: not outbox.store.ledger.n_items)
            await outbox.put("result", b"10:")
            await until(lambda: not outbox.store.ledger.n_items)
        assert sequence(gateway.bodies(stream="telemetry")) == list(range(15, 25))
        assert sequence(gateway.bodies(stream="result")) == list(range(11))
        with gateway.ingest.store.database.reading() as db:
            (n_skipped,) = db.execute("SELECT n_skipped FROM stream WHERE stream = 'telemetry'").fetchone()
        assert n_skipped == 15, "the gateway knows how many were dropped"

    in_virtual_time(program())


def test_what_is_too_old_leaves(tmp_path: Path) -> None:
    async def program() -> None:
        limits = OutboxLimits()
        limits.kinds["sample"] = KindLimits(n_bytes=1 << 20, n_items=10, age_s=100.0)
        outbox = outbox_of(tmp_path / "box", None, limits=limits)
        async with running(outbox):
            await outbox.put("sample", b"0:" + bytes(150_000))
            await outbox.put("result", b"1:")
            await asyncio.sleep(300.0)
            counts = outbox.store.ledger.counts
            assert (counts["sample"].n_dropped, counts["sample"].n_items) == (1, 0)
            assert counts["result"].n_items == 1, "what was acknowledged for good has no age"
            assert not list((tmp_path / "box" / "blobs").iterdir())

    in_virtual_time(program())


def test_dropped_at_the_end_of_a_stream_is_no_gap(tmp_path: Path) -> None:
    """The last items are dropped and others come after a restart: the gateway is told how many are missing."""

    async def program() -> None:
        limits = OutboxLimits()
        limits.kinds["sample"] = KindLimits(n_bytes=1 << 20, n_items=10, age_s=100.0)
        gateway = Gateway(tmp_path / "gateway")
        lane = gateway.lane()
        outbox = outbox_of(tmp_path / "box", lane, limits=limits)
        async with running(outbox):
            await outbox.put("sample", b"0:")
            await until(lambda: not outbox.store.ledger.n_items)
            lane.is_up = False
            await outbox.put("sample", b"1:")
            await outbox.put("sample", b"2:")
            await asyncio.sleep(300.0)
            assert not outbox.store.ledger.n_items
        lane.is_up = True
        outbox = outbox_of(tmp_path / "box", lane, limits=limits)
        async with running(outbox):
            await outbox.put("sample", b"3:")
            await until(lambda: not outbox.store.ledger.n_items)
        assert sequence(gateway.bodies()) == [0, 3]
        assert lane.calls[-1].items[0].skipped == 2

    in_virtual_time(program())
