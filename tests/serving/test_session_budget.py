"""The budget for opened sessions: measured, kept to, spent on what is worth most, never taken from what runs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from devices.process_memory import allocated_bytes
from hybrid.errors import ModelOverBudget, Overloaded
from hybrid.serving.engines import session_cache
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.model_facts import ModelFacts, facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.served_model import ServedModel
from tests import small_models, zoo

pytestmark = pytest.mark.timeout(60)
needs_mallinfo = pytest.mark.skipif(allocated_bytes() is None, reason="this C library does not count its allocations")
LONG = 10**8


@asynccontextmanager
async def executor(budget_bytes: int) -> AsyncIterator[Executor]:
    engine = EngineSettings(n_intra_threads=1, inline_s=0.0)
    async with Executor(ExecutorSettings(engine=engine, n_threads=2, session_budget_bytes=budget_bytes)) as running:
        yield running


def copies(folder: Path, n: int, make: object = small_models.mlp) -> list[ServedModel]:
    found = []
    for number in range(n):
        place = folder / f"m{number}"
        place.mkdir()
        path = make(place / "m.onnx")  # type: ignore[operator]
        found.append(ServedModel(name=f"m{number}", version="1", model_digest=f"m{number}", path=path))
    return found


def wide(path: Path) -> Path:
    return small_models.heavy(path, n_megabytes=4)


async def size_of(model: ServedModel) -> int:
    sizes = []
    for _ in range(2):  # the first session of a process also brings what onnxruntime takes once
        async with executor(1 << 30) as running:
            sizes.append((await running.open_whole(model)).n_bytes)
    return min(sizes)


@needs_mallinfo
def test_what_a_session_holds_is_measured_not_guessed_from_its_file() -> None:
    path = zoo.path("squeezenet")  # its weights are made by its graph: a file of 20 kB, 5 MB of weights
    session = open_engine(path, EngineSettings(n_intra_threads=1), facts_of(path))
    assert path.stat().st_size < 100_000
    assert 4.9e6 < session.n_bytes < 12e6


@needs_mallinfo
async def test_sessions_share_one_arena_of_activations() -> None:
    feeds = zoo.feeds("squeezenet")
    path = zoo.path("squeezenet")
    async with executor(1 << 30) as running:
        grown = []
        for number in range(3):
            model = ServedModel(name="s", version=str(number), model_digest=f"s{number}", path=path)
            session = await running.open_whole(model)
            await running.compute(session, feeds, None)
            while not running.pool.idle:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            grown.append(running.measure_shared())
        # 9 MB of activations a run: the second and the third session find them taken already.
        assert grown[2] - grown[0] < 4e6


async def test_a_model_larger_than_the_budget_is_refused_with_both_figures(tmp_path: Path) -> None:
    (model,) = copies(tmp_path, 1)
    async with executor(100_000) as running:
        with pytest.raises(ModelOverBudget, match="may use 100000 for models") as caught:
            await running.open_whole(model)
        assert caught.value.fields["budget_bytes"] == 100_000
        assert caught.value.fields["wanted_bytes"] >= model.path.stat().st_size
        assert len(running.sessions) == 0
        assert running.sessions.n_bytes == 0


async def test_the_session_worth_least_leaves_when_memory_is_spent(tmp_path: Path) -> None:
    models = copies(tmp_path, 3, wide)
    size = await size_of(models[0])
    async with executor(int(2.6 * size)) as running:
        for model in models[:2]:
            await running.open_whole(model)
        for _ in range(50):  # hot
            assert running.sessions.get(("m0",)) is not None
        await running.open_whole(models[2])
        assert running.sessions.peek(("m1",)) is None
        assert running.sessions.peek(("m0",)) is not None
        assert running.sessions.n_bytes <= running.sessions.budget_bytes
        assert running.sessions.n_evicted == 1
        await running.open_whole(models[1])  # it comes back at the price of another one
        assert running.sessions.n_reopened == 1
        assert running.sessions.reopen_s > 0


async def test_of_two_equally_hot_sessions_the_one_that_opens_faster_leaves(tmp_path: Path) -> None:
    models = copies(tmp_path, 3, wide)
    size = await size_of(models[0])
    async with executor(int(2.6 * size)) as running:
        slow, fast = [await running.open_whole(model) for model in models[:2]]
        slow.opened_s, fast.opened_s = 2.0, 0.01
        await running.open_whole(models[2])
        assert running.sessions.peek(("m0",)) is slow
        assert running.sessions.peek(("m1",)) is None


async def test_what_runs_never_leaves_and_the_newcomer_is_told_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_cache, "ROOM_PATIENCE_S", 0.1)
    (folder := tmp_path / "loop").mkdir()
    loop = ServedModel(name="loop", version="1", model_digest="loop", path=small_models.loop(folder / "loop.onnx"))
    (other,) = copies(tmp_path, 1)
    held = await size_of(loop) + other.path.stat().st_size
    async with executor(held - 1000) as running:
        session = await running.open_whole(loop)
        feeds = {"n": np.array(LONG, np.int64), "x": np.eye(128, dtype=np.float32)}
        task = asyncio.ensure_future(running.compute(session, feeds, None))
        try:
            async with asyncio.timeout(10):
                while not running.pool.n_running:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
            with pytest.raises(Overloaded, match="in use") as caught:
                await running.open_whole(other)
            assert caught.value.fields["retry_after_s"] > 0
            assert running.sessions.peek(("loop",)) is session
        finally:
            task.cancel()
        async with asyncio.timeout(10):
            while session.n_users:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        await running.open_whole(other)
        assert running.sessions.peek(("loop",)) is None


async def test_a_session_that_cannot_be_opened_is_not_tried_at_every_request(tmp_path: Path) -> None:
    n_looks = 0

    def look() -> session_cache.Opening:
        nonlocal n_looks
        n_looks += 1
        bad = tmp_path / "bad.onnx"
        bad.write_bytes(b"no model")
        return session_cache.Opening(
            8, lambda: open_engine(bad, EngineSettings(), ModelFacts(n_bytes=8, is_bounded=True))
        )

    async with executor(1 << 30) as running:
        await running.sessions.start(("d", "s", "c"), look)
        assert running.sessions.failure(("d", "s", "c")) is not None
        assert running.sessions.failure(("d", "s", "other")) is None
        assert n_looks == 1
