"""Requests that share a run: each gets its own rows, and one that leaves, fails or is late concerns nobody else."""

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from hybrid.errors import DeadlinePassed, EngineFailed
from hybrid.serving.engines.row_batch import RowBatch
from tests import small_models
from tests.serving.batch_lab import ask, batched, busy, deep, executor, row, served, table, until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind, make in (("deep", deep), ("table", table), ("loop", small_models.loop), ("mlp", small_models.mlp)):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = make(folder / f"{kind}.onnx")
    return made


def alone(session: object, seed: int) -> np.ndarray:
    return session.run(row(seed))[0]  # type: ignore[attr-defined]


async def test_requests_that_wait_together_share_a_run_and_keep_their_rows(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = batched(await running.open_whole(served(files["deep"])))
        async with busy(running, files["loop"]):
            tasks = await ask(running, session, range(5))
            await until(lambda: running.pool.n_waiting == 5)
        found = await asyncio.gather(*tasks)
        for seed, computed in enumerate(found):
            np.testing.assert_allclose(computed.outputs[0], alone(session, seed), rtol=0, atol=1e-5)
            assert computed.outputs[0].flags.owndata  # a slow reader keeps its own row only
            assert computed.n_together == 5
            assert computed.queue_s > 0
        assert sum(computed.leads for computed in found) == 1
        assert running.pool.rows == {1: 1, 5: 1}
        assert running.pool.idle
        assert session.n_users == 0


async def test_no_batch_is_larger_than_what_was_measured(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = batched(await running.open_whole(served(files["deep"])), max_rows=4)
        async with busy(running, files["loop"]):
            tasks = await ask(running, session, range(10))
        await asyncio.gather(*tasks)
        assert running.pool.rows == {1: 1, 4: 2, 2: 1}


async def test_other_shapes_and_other_outputs_run_apart(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = batched(await running.open_whole(served(files["mlp"])), max_rows=8)
        feeds = [{"x": np.ones((n, 64), np.float32)} for n in (1, 2, 8, 3)]
        async with busy(running, files["loop"]):
            tasks = [asyncio.ensure_future(running.compute(session, each, None)) for each in feeds]
            tasks.append(asyncio.ensure_future(running.compute(session, feeds[0], ["y"])))
            await until(lambda: running.pool.n_waiting == 5)
        found = await asyncio.gather(*tasks)
        assert [len(computed.outputs[0]) for computed in found] == [1, 2, 8, 3, 1]
        assert running.pool.rows == {1: 3, 6: 1}  # 8 rows are a batch by themselves; ["y"] asks for other outputs


async def test_one_that_leaves_while_it_waits_leaves_alone(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = batched(await running.open_whole(served(files["deep"])))
        async with busy(running, files["loop"]):
            tasks = await ask(running, session, range(4))
            tasks[1].cancel()
            await until(lambda: running.pool.n_waiting == 3)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[1], asyncio.CancelledError)
        for seed in (0, 2, 3):
            np.testing.assert_allclose(found[seed].outputs[0], alone(session, seed), rtol=0, atol=1e-5)
        assert running.pool.rows[3] == 1
        assert session.n_users == 0


async def test_one_that_leaves_while_it_runs_leaves_alone_and_the_last_ends_the_run(tmp_path: Path) -> None:
    path = deep(tmp_path / "long.onnx", n_layers=600, width=1024)
    (tmp_path / "loop").mkdir()
    loop = small_models.loop(tmp_path / "loop" / "loop.onnx")
    async with executor() as running:
        session = batched(await running.open_whole(served(path)))
        started_s = time.perf_counter()
        await running.compute(session, row(9, 1024), None)
        run_s = time.perf_counter() - started_s
        async with busy(running, loop):
            tasks = await ask(running, session, range(3), width=1024)
        await until(lambda: running.pool.n_running == 3)
        tasks[0].cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(found[0], asyncio.CancelledError)
        assert [each.n_together for each in found[1:]] == [3, 3]
        async with busy(running, loop):
            tasks = await ask(running, session, range(3), width=1024)
        await until(lambda: running.pool.n_running == 3)
        started_s = time.perf_counter()
        for task in tasks:
            task.cancel()
        await until(lambda: running.pool.idle)
        assert time.perf_counter() - started_s < max(0.05, 0.5 * run_s)
        assert session.n_users == 0


async def test_what_fails_together_is_run_alone_so_that_only_the_one_at_fault_fails(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = batched(await running.open_whole(served(files["table"])))
        feeds = [{"x": np.array([[n]], np.int64)} for n in (3, 99, 5)]
        async with busy(running, files["loop"]):
            tasks = [asyncio.ensure_future(running.compute(session, each, None)) for each in feeds]
            await until(lambda: running.pool.n_waiting == 3)
        good, bad, also_good = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(bad, EngineFailed)
        np.testing.assert_array_equal(good.outputs[0], [[[12, 13, 14, 15]]])
        np.testing.assert_array_equal(also_good.outputs[0], [[[20, 21, 22, 23]]])


async def test_a_batch_is_no_larger_than_its_most_urgent_deadline_allows(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["deep"]))
        session.batch = RowBatch(session, {1: 0.001, 2: 0.002, 8: 6.0}, alone_s=0.001, max_rows=8, max_hold_s=0.0)
        async with busy(running, files["loop"]):
            tasks = await ask(running, session, range(1), time.perf_counter() + 0.95)
            tasks += await ask(running, session, range(1, 8))
            await until(lambda: running.pool.n_waiting == 8)
        found = await asyncio.gather(*tasks)
        assert found[0].n_together == 2  # 3 rows take 1 s by the table, which is beyond the deadline


async def test_a_request_that_cannot_make_it_any_more_is_refused_before_it_is_computed(tmp_path: Path) -> None:
    path = deep(tmp_path / "slow.onnx", n_layers=600, width=1024)
    async with executor() as running:
        session = await running.open_whole(served(path))
        for _ in range(3):
            run_s = (await running.compute(session, row(0, 1024), None)).compute_s
        floor_s = session.floor_s(row(0, 1024))
        assert 0.3 * run_s < floor_s <= 1.05 * run_s
        n_runs = sum(running.pool.rows.values())
        deadline_s = time.perf_counter() + 0.5 * floor_s
        asked = asyncio.ensure_future(running.compute(session, row(0, 1024), None, deadline_s))
        await asyncio.sleep(0)
        assert asked.done()  # told at once, not at the deadline
        with pytest.raises(DeadlinePassed):
            await asked
        assert sum(running.pool.rows.values()) == n_runs
        assert running.pool.n_late == 1
        assert running.pool.idle


async def test_a_waiting_request_is_refused_when_its_run_would_end_too_late(tmp_path: Path) -> None:
    path = deep(tmp_path / "slow.onnx", n_layers=600, width=1024)
    (tmp_path / "loop").mkdir()
    loop = small_models.loop(tmp_path / "loop" / "loop.onnx")
    async with executor() as running:
        session = await running.open_whole(served(path))
        for _ in range(3):
            await running.compute(session, row(0, 1024), None)
        floor_s = session.floor_s(row(0, 1024))
        async with busy(running, loop):
            started_s = time.perf_counter()
            with pytest.raises(DeadlinePassed):
                await running.compute(session, row(0, 1024), None, started_s + 0.2 + floor_s)
            assert 0.15 < time.perf_counter() - started_s < 0.2 + floor_s
            assert running.pool.n_waiting == 0


async def test_the_most_urgent_goes_first_and_what_has_no_deadline_is_not_starved(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["deep"]))
        order: list[str] = []

        async def one(name: str, deadline_s: float | None) -> None:
            await running.compute(session, row(0), None, deadline_s)
            order.append(name)

        async with busy(running, files["loop"]):
            now_s = time.perf_counter()
            jobs = {"late": now_s + 30, "none": None, "soon": now_s + 20, "urgent": now_s + 0.9}
            tasks = [asyncio.ensure_future(one(name, deadline_s)) for name, deadline_s in jobs.items()]
            await until(lambda: running.pool.n_waiting == 4)
        await asyncio.gather(*tasks)
        assert order == ["urgent", "none", "soon", "late"]


async def test_a_hold_ends_with_its_company_and_counts_as_queue_time(files: dict[str, Path]) -> None:
    async with executor() as running:
        # The table says that single rows do not keep up (0.2 s each) while pairs do: a lone request waits for a mate.
        session = await running.open_whole(served(files["deep"]))
        batch = RowBatch(session, {1: 0.2, 2: 0.2, 4: 0.2}, alone_s=0.2, max_rows=4, max_hold_s=0.3)
        session.batch = batch
        batch._gap_s = 0.2
        started_s = time.perf_counter()
        first = asyncio.ensure_future(running.compute(session, row(0), None))
        await asyncio.sleep(0.05)
        assert running.pool.n_waiting == 1  # a thread is free, and it waits
        second = asyncio.ensure_future(running.compute(session, row(1), None))
        one, two = await asyncio.gather(first, second)
        assert one.n_together == two.n_together == 2
        assert time.perf_counter() - started_s < 0.29 + one.compute_s + 0.3
        assert one.queue_s > 0.045
        lone = await running.compute(session, row(2), None, time.perf_counter() + 0.6)
        assert lone.queue_s < 0.5  # its deadline bounds the hold


def test_holding_needs_more_arrivals_than_single_runs_can_serve() -> None:
    batch = RowBatch(object(), {1: 0.01, 2: 0.012, 8: 0.02}, alone_s=0.01, max_rows=8, max_hold_s=0.005)  # type: ignore[arg-type]
    now_s = 0.0
    for _ in range(100):
        now_s += 0.1
        batch.came(now_s)
    assert batch.hold_s(1, 1) == 0.0  # ten a second: alone they are served at once
    for _ in range(100):
        now_s += 0.008
        batch.came(now_s)
    assert 0.0 < batch.hold_s(1, 1) <= 0.005  # 125 a second, 100 can be served alone
    assert batch.hold_s(1, 4) == 0.0  # four threads serve them alone
    assert batch.hold_s(8, 1) == 0.0
    for _ in range(8):
        batch.held(met=False)
    assert batch.hold_s(1, 1) == 0.0  # nobody ever came: no more waiting


def test_run_times_between_measured_points_are_their_line() -> None:
    batch = RowBatch(object(), {1: 0.01, 2: 0.014, 8: 0.026}, alone_s=0.01, max_rows=8, max_hold_s=0.0)  # type: ignore[arg-type]
    assert batch.run_s(1) == 0.01
    assert batch.run_s(5) == pytest.approx(0.02)
    assert batch.run_s(16) == pytest.approx(0.052)


class Broken:
    """A session for batches with a fault of ours in it."""

    n_users = n_runs = 0
    output_names = ("y",)
    batch = None

    def __init__(self, inputs: object) -> None:
        self.inputs = inputs

    def run(self, *_: object) -> list[np.ndarray]:
        raise ZeroDivisionError("a fault of ours")


async def test_a_fault_of_ours_ends_no_engine_thread_and_leaves_nobody_waiting(tmp_path: Path) -> None:
    async with executor(n_threads=2) as running:
        session = await running.open_whole(served(deep(tmp_path / "m.onnx", 20)))

        def untold(*_: object) -> None:
            raise RuntimeError("nobody listens")

        running.pool.on_crowd = untold
        broken = RowBatch(Broken(session.inputs), {1: 0.001, 8: 0.001}, alone_s=0.001, max_rows=8, max_hold_s=0.0)
        unmeasured = RowBatch(session, {}, alone_s=0.001, max_rows=8, max_hold_s=0.0)
        for batch in (broken, unmeasured, None):
            session.batch, session.crowd = batch, 0
            async with asyncio.timeout(20):
                tasks = await ask(running, session, range(40))
                for seed, computed in enumerate(await asyncio.gather(*tasks)):
                    np.testing.assert_allclose(computed.outputs[0], np.roll(row(seed)["x"], 20, axis=1), atol=1e-4)
        assert all(thread.is_alive() for thread in running.pool._threads)
        assert running.pool.idle
        assert session.n_users == 0
