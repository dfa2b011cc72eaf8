"""A disk that hangs or fails while the agent runs: parts end in time, go on by themselves, and say so."""

import asyncio
import errno
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.outbox import outbox as outbox_module
from hybrid.errors import Overloaded, StorageError
from tests.outbox.lab import in_virtual_time, outbox_of, running, until
from tests.outbox.test_samples import DIGEST, arrays, samples_of


@pytest.fixture
def hung() -> Iterator[threading.Event]:
    """A disk that answers only when the event is set; it is, in the end."""
    answers = threading.Event()
    yield answers
    answers.set()


def test_an_outbox_ends_although_its_disk_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hung: threading.Event
) -> None:
    monkeypatch.setattr(outbox_module, "_END_S", 0.3)

    async def program() -> None:
        outbox = outbox_of(tmp_path / "box", None)
        task = asyncio.create_task(outbox.run())
        await outbox.opened()
        keep = outbox.store.keep

        def keep_late(*args: object) -> object:
            assert hung.wait(60)
            return keep(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(outbox.store, "keep", keep_late)
        putting = [asyncio.create_task(outbox.put("result", b"%d:" % n)) for n in range(2)]
        await asyncio.sleep(0.2)  # the commit is under way
        putting.append(asyncio.create_task(outbox.put("result", b"3:")))
        await asyncio.sleep(0)
        before_s = time.monotonic()
        task.cancel()
        await asyncio.wait((task,), timeout=20)
        assert task.done()
        assert time.monotonic() - before_s < 10
        told = await asyncio.wait_for(asyncio.gather(*putting, return_exceptions=True), 5)
        assert all(isinstance(one, StorageError | Overloaded) for one in told), "all who wait are told"
        hung.set()

    asyncio.run(program())


def test_a_damaged_index_of_samples_is_made_again_at_once(tmp_path: Path) -> None:
    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            ids = [await samples.put(DIGEST, "", arrays(float(n)), {}, model=f"m{n}") for n in range(4)]
            for work in (samples.list, lambda: samples.put(DIGEST, "", arrays(9.0), {}, model="m9")):
                await asyncio.to_thread(samples.shelf._database.checkpoint)
                path = tmp_path / "samples" / "index.db"
                path.write_bytes(bytes(path.stat().st_size))
                await asyncio.to_thread(lambda: samples.shelf._database._opened().execute("PRAGMA shrink_memory"))
                await work()
            assert [one.model for one in await samples.list()] == ["m9", "m3", "m2", "m1", "m0"]
            assert samples.status()["n_items"] == 5
            assert (await samples.read(ids[0] or "")).model == "m0"
            assert list((tmp_path / "samples").glob("index.db.corrupt-*"))
            await samples.forget(ids[0] or "")
            assert samples.status()["n_items"] == 4

    in_virtual_time(program())


def test_a_failing_disk_does_not_end_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise OSError(errno.EIO, f"Input/output error: {path}")

    async def program() -> None:
        outbox = outbox_of(tmp_path / "outbox", None)
        samples = samples_of(tmp_path / "samples", outbox)
        async with running(outbox, samples):
            await samples._ready.wait()
            with monkeypatch.context() as dying:
                dying.setattr(shutil, "disk_usage", broken)
                assert samples.offer("m", DIGEST, inputs=arrays(), outputs={})
                await until(lambda: [problem.code for problem in samples.problems()] == ["samples_not_kept"])
            assert samples.offer("n", DIGEST, inputs=arrays(), outputs={})
            await until(lambda: samples.status()["n_items"] == 1)
            assert samples.problems() == []

    in_virtual_time(program())


@pytest.mark.parametrize(
    "ask",
    [
        lambda disk, path: disk.read(path),
        lambda disk, path: disk.read_at(path, 0, 1),
        lambda disk, path: disk.sha256(path),
    ],
)
def test_what_a_disk_says_when_read_has_a_name(tmp_path: Path, ask: Callable[[RealDisk, Path], object]) -> None:
    with pytest.raises(StorageError):
        ask(RealDisk(), tmp_path)  # a folder in the file's place
    with pytest.raises(FileNotFoundError):
        ask(RealDisk(), tmp_path / "none")
