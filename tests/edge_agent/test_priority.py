"""Who goes first on a box: by priority, but nobody waits for ever, and memory goes to what matters."""

import asyncio
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from hybrid.errors import DeadlinePassed, Overloaded
from hybrid.serving.computing import Asked
from hybrid.serving.engines import run_queue, session_cache
from hybrid.serving.engines.job import EngineJob
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.run_queue import RunQueue
from hybrid.serving.engines.session import EngineSession
from tests import small_models, zoo
from tests.edge_agent.model_room import ask, model_room, version


@pytest.fixture
def session(tmp_path: Path) -> EngineSession:
    path = small_models.mlp(tmp_path / "mlp.onnx")
    return open_engine(path, EngineSettings(), facts_of(path))


def _job(session: EngineSession, priority: int, submitted_s: float, deadline_s: float | None = None) -> EngineJob:
    job = EngineJob(session, {}, None, deadline_s, priority=priority)
    job.submitted_s = submitted_s
    job.due_s = submitted_s + 1.0 if deadline_s is None else deadline_s
    return job


def _order(jobs: list[EngineJob], now_s: float) -> list[EngineJob]:
    queue = RunQueue()
    for job in jobs:
        job.is_waiting = True
        queue.push(job)
    found = []
    while work := queue.pop(now_s).jobs:
        found += work
    assert queue.n_waiting == 0
    return found


async def test_higher_priorities_go_first_and_within_one_the_most_urgent(session: EngineSession) -> None:
    late, soon, low, high = (_job(session, *given) for given in ((5, 0.0), (5, 0.1, 0.5), (0, 0.0, 0.4), (9, 0.2)))
    assert _order([late, soon, low, high], 0.2) == [high, soon, late, low]


async def test_the_queue_keeps_nothing_of_what_was_taken(session: EngineSession) -> None:
    """Not even behind a job that may wait for long: jobs hold inputs and answers."""
    queue = RunQueue()
    patient = _job(session, 5, 0.0, 1e6)
    queue.push(patient)
    for number in range(20):
        feeds = {"x": np.zeros(1)}
        job = _job(session, 5, float(number))
        job.feeds = feeds
        queue.push(job)
        assert queue.pop(float(number)).jobs == [job]
        del job
        assert sys.getrefcount(feeds) <= 2, "this name, and the question itself"
    assert queue.pop(20.0).jobs == [patient]


async def test_who_has_waited_too_long_goes_before_all_others(session: EngineSession) -> None:
    old, older, high = (_job(session, *given) for given in ((0, 1.0), (2, 0.5), (9, 5.0)))
    now_s = 1.0 + run_queue.AGING_S
    assert _order([old, high, older], now_s) == [older, old, high]
    assert _order([old, high, older], now_s - 0.6) == [high, older, old]


async def test_of_many_random_jobs_none_overtakes_a_more_important_one_that_is_not_aged(
    session: EngineSession,
) -> None:
    rng = np.random.default_rng(11)
    jobs = [_job(session, int(rng.integers(10)), float(rng.uniform(0, 4))) for _ in range(300)]
    order = _order(jobs, 4.5)
    assert [job.priority for job in order] == sorted((job.priority for job in jobs), reverse=True)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    for name in ("slow", "quick"):
        (tmp_path / name).mkdir()
    return {"slow": zoo.path("ppocr_det"), "quick": zoo.path("ppocr_cls")}


async def test_a_flood_of_low_priority_holds_a_high_one_up_for_one_run_at_most(
    models: dict[str, Path], tmp_path: Path
) -> None:
    """With real models: while twenty long runs wait, important requests come in between, each after one run."""
    slow, quick = zoo.feeds("ppocr_det"), zoo.feeds("ppocr_cls")
    async with model_room(tmp_path, n_runs=1) as room:
        await room.host.answer(version(models["slow"], "slow", priority=1))
        await room.host.answer(version(models["quick"], "quick", priority=8))
        await ask(room, "slow", slow)
        done: list[str] = []

        async def run(name: str, feeds: dict[str, np.ndarray]) -> None:
            await ask(room, name, feeds)
            done.append(name)

        flood = [asyncio.ensure_future(run("slow", slow)) for _ in range(20)]
        for _ in range(4):
            await asyncio.sleep(0)
            before = done.count("slow")
            await run("quick", quick)
            assert done.count("slow") - before <= 1
        assert done.count("quick") == 4
        assert done.count("slow") <= 5
        await asyncio.gather(*flood)
        assert room.host.runs("slow").n_good == 21


async def test_a_requests_own_priority_goes_before_its_models(models: dict[str, Path], tmp_path: Path) -> None:
    slow, quick = zoo.feeds("ppocr_det"), zoo.feeds("ppocr_cls")
    async with model_room(tmp_path, n_runs=1) as room:
        await room.host.answer(version(models["slow"], "slow"))
        await room.host.answer(version(models["quick"], "quick"))
        done: list[str] = []

        async def run(mark: str, name: str, feeds: dict[str, np.ndarray], priority: int | None) -> None:
            await ask(room, name, feeds, Asked(priority=priority))
            done.append(mark)

        first = asyncio.ensure_future(run("running", "slow", slow, None))
        while not room.executor.pool.n_running:  # noqa: ASYNC110 (a counter that a thread moves)
            await asyncio.sleep(0.001)
        rest = [
            asyncio.ensure_future(run(mark, "quick", quick, priority))
            for mark, priority in (("low", 0), ("model's", None), ("high", 9))
        ]
        await asyncio.gather(first, *rest)
        assert done == ["running", "high", "model's", "low"]


async def test_a_deadline_that_passes_in_the_queue_is_an_error_in_time(models: dict[str, Path], tmp_path: Path) -> None:
    slow, quick = zoo.feeds("ppocr_det"), zoo.feeds("ppocr_cls")
    async with model_room(tmp_path, n_runs=1) as room:
        await room.host.answer(version(models["slow"], "slow"))
        await room.host.answer(version(models["quick"], "quick"))
        loop = asyncio.get_running_loop()
        flood = [asyncio.ensure_future(ask(room, "slow", slow)) for _ in range(6)]
        await asyncio.sleep(0)
        began_s = loop.time()
        with pytest.raises(DeadlinePassed):
            await ask(room, "quick", quick, Asked(priority=0, deadline_s=perf_counter() + 0.05))
        assert loop.time() - began_s < 1.0
        await asyncio.gather(*flood)
        assert room.host.runs("quick").n_errors == 0


async def test_memory_goes_to_the_more_important_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three models of 24 MB and room for two: the least important leaves, and may not push out what is in use."""
    monkeypatch.setattr(session_cache, "ROOM_PATIENCE_S", 0.2)
    paths = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        paths.append(small_models.heavy(tmp_path / str(number) / f"m{number}.onnx", 24 + number))
    feeds = {"x": np.ones((1, 1024), np.float32)}
    async with model_room(tmp_path / "data", session_memory_bytes=70 << 20) as room:
        for number, path in enumerate(paths):
            await room.host.answer(version(path, f"m{number}", priority=(2, 9, 5)[number]))
            await ask(room, f"m{number}", feeds)
        kept = {key[0] for key, _ in room.executor.sessions.sessions()}
        digests = [version(path).model_digest for path in paths]
        assert digests[1] in kept
        assert digests[0] not in kept
        with pytest.raises(Overloaded):
            await ask(room, "m0", feeds)
        assert digests[1] in {key[0] for key, _ in room.executor.sessions.sessions()}
