"""The executor: one build for many callers, a memory budget, a bounded queue, deadlines, cancellation."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from hybrid.errors import DeadlinePassed, EngineFailed, ModelInvalid, ModelUnsupported, Overloaded, TensorMismatch
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.opening import EngineSettings
from hybrid.serving.engines.served_model import ServedModel
from tests import small_models

T = TypeVar("T")
LONG = 10**8
"""Iterations of the loop model that would take hours."""


def served(path: Path) -> ServedModel:
    return ServedModel(name=path.stem, version="1", model_digest=path.stem, path=path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("mlp", "loop", "reshape", "add_sub"):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = getattr(small_models, kind)(folder / f"{kind}.onnx")
    return made


@asynccontextmanager
async def executor(**settings: object) -> AsyncIterator[Executor]:
    chosen = {"n_threads": 1, "engine": EngineSettings(n_intra_threads=1, inline_s=0.0), **settings}
    async with Executor(ExecutorSettings(**chosen)) as running:  # type: ignore[arg-type]
        yield running


def loop_feeds(n: int) -> dict[str, np.ndarray]:
    return {"n": np.array(n, np.int64), "x": np.eye(128, dtype=np.float32)}


async def until(condition: object, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 (threads' counters have no events)
            await asyncio.sleep(0.001)


async def within(awaitable: Awaitable[T], timeout_s: float = 5.0) -> T:
    async with asyncio.timeout(timeout_s):
        return await awaitable


async def test_outputs_are_onnxruntimes_in_the_order_asked_for(files: dict[str, Path]) -> None:
    a, b = np.arange(16, dtype=np.int32).reshape(1, 16), np.ones((1, 16), np.int32)
    async with executor() as running:
        session = await running.open_whole(served(files["add_sub"]))
        computed = await running.compute(session, {"INPUT0": a, "INPUT1": b}, ["OUTPUT1", "OUTPUT0"])
    np.testing.assert_array_equal(computed.outputs[0], a - b)
    np.testing.assert_array_equal(computed.outputs[1], a + b)
    assert computed.compute_s > 0
    assert computed.queue_s > 0


async def test_a_session_is_built_once_for_many_callers(files: dict[str, Path]) -> None:
    async with executor() as running:
        sessions = await asyncio.gather(*(running.open_whole(served(files["mlp"])) for _ in range(20)))
        assert len({id(session) for session in sessions}) == 1
        assert len(running.sessions) == 1


async def test_a_caller_that_leaves_does_not_end_the_build_of_others(files: dict[str, Path]) -> None:
    async with executor() as running:
        first = asyncio.ensure_future(running.open_whole(served(files["mlp"])))
        second = asyncio.ensure_future(running.open_whole(served(files["mlp"])))
        await asyncio.sleep(0)
        first.cancel()
        session = await within(second)
        assert session.output_names == ["y"]


async def test_wrong_feeds_are_refused_before_the_engine(files: dict[str, Path]) -> None:
    good = np.ones((1, 64), np.float32)
    async with executor() as running:
        session = await running.open_whole(served(files["mlp"]))
        for feeds, seen in (
            ({"x": good.astype(np.float64)}, "float64"),
            ({"x": good[:, :3]}, r"\[1, 3\]"),
            ({"x": good[0]}, r"\[64\]"),
            ({"z": good}, "'z'"),
            ({"x": good, "z": good}, "'z'"),
            ({}, "exactly"),
        ):
            with pytest.raises(TensorMismatch, match=seen):
                await running.compute(session, feeds, None)
        assert running.pool.idle


async def test_a_full_queue_refuses_with_a_time_to_come_back(files: dict[str, Path]) -> None:
    async with executor(max_waiting=2) as running:
        session = await running.open_whole(served(files["loop"]))
        running_now = asyncio.ensure_future(running.compute(session, loop_feeds(LONG), None))
        await until(lambda: running.pool.n_running == 1)
        waiting = [asyncio.ensure_future(running.compute(session, loop_feeds(1), None)) for _ in range(2)]
        await until(lambda: running.pool.n_waiting == 2)
        with pytest.raises(Overloaded) as caught:
            await running.compute(session, loop_feeds(1), None)
        assert caught.value.fields["retry_after_s"] > 0
        running_now.cancel()
        for future in waiting:
            assert (await within(future)).outputs[0].shape == (128, 128)


async def test_cancelling_terminates_a_running_run(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["loop"]))
        future = asyncio.ensure_future(running.compute(session, loop_feeds(LONG), None))
        await until(lambda: running.pool.n_running == 1)
        started_s = time.perf_counter()
        future.cancel()
        await until(lambda: running.pool.n_running == 0)
        assert time.perf_counter() - started_s < 2.0
        assert (await within(running.compute(session, loop_feeds(1), None))).outputs[0].shape == (128, 128)


async def test_cancelling_drops_waiting_work_and_its_tensors(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["loop"]))
        blocker = asyncio.ensure_future(running.compute(session, loop_feeds(LONG), None))
        await until(lambda: running.pool.n_running == 1)
        waiting = asyncio.ensure_future(running.compute(session, loop_feeds(1), None))
        await until(lambda: running.pool.n_waiting == 1)
        waiting.cancel()
        await until(lambda: running.pool.n_waiting == 0)
        assert running.pool.n_running == 1
        blocker.cancel()
        await until(lambda: running.pool.idle)


@pytest.mark.parametrize("is_running", [True, False])
async def test_the_deadline_ends_running_and_waiting_work(files: dict[str, Path], is_running: bool) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["loop"]))
        blocker = None
        if not is_running:
            blocker = asyncio.ensure_future(running.compute(session, loop_feeds(LONG), None))
            await until(lambda: running.pool.n_running == 1)
        started_s = time.perf_counter()
        with pytest.raises(DeadlinePassed):
            await within(running.compute(session, loop_feeds(LONG), None, started_s + 0.1))
        assert 0.1 <= time.perf_counter() - started_s < 2.0
        if blocker is not None:
            blocker.cancel()
        await until(lambda: running.pool.idle)


async def test_values_that_the_graph_refuses_are_an_engine_failure(files: dict[str, Path]) -> None:
    async with executor() as running:
        session = await running.open_whole(served(files["reshape"]))
        feeds = {"x": np.ones(6, np.float32), "s": np.array([4, 4], np.int64)}
        with pytest.raises(EngineFailed, match="Reshape"):
            await running.compute(session, feeds, None)
        feeds["s"] = np.array([2, 3], np.int64)
        assert (await running.compute(session, feeds, None)).outputs[0].shape == (2, 3)


async def test_broken_and_missing_models_are_typed_errors(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    async with executor() as running:
        with pytest.raises(ModelInvalid, match=r"broken\.onnx"):
            await running.open_whole(served(broken))
        with pytest.raises(ModelInvalid, match=r"missing\.onnx"):
            await running.open_whole(served(tmp_path / "missing.onnx"))


async def test_a_model_that_takes_sequences_is_unsupported(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [None]))
    graph = helper.make_graph(
        [helper.make_node("SequenceLength", ["s"], ["n"])],
        "sequence",
        [helper.make_value_info("s", kind)],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [])],
    )
    path = tmp_path / "sequence.onnx"
    onnx.save(helper.make_model(graph, opset_imports=small_models.OPSET, ir_version=small_models.IR_VERSION), str(path))
    async with executor() as running:
        with pytest.raises(ModelUnsupported, match="seq"):
            await running.open_whole(served(path))


async def test_tiny_models_move_to_the_loop_and_data_dependent_ones_never_do(files: dict[str, Path]) -> None:
    async with executor(engine=EngineSettings(n_intra_threads=1, inline_s=1.0)) as running:
        tiny = await running.open_whole(served(files["mlp"]))
        loop = await running.open_whole(served(files["loop"]))
        x = np.ones((1, 64), np.float32)
        for _ in range(20):
            computed = await running.compute(tiny, {"x": x}, None)
            looped = await running.compute(loop, loop_feeds(1), None)
        assert computed.queue_s == 0.0  # no thread, so no wait for one
        assert looped.queue_s > 0.0
        assert (await running.compute(tiny, {"x": np.ones((50, 64), np.float32)}, None)).queue_s > 0.0  # never timed


async def test_slow_runs_leave_the_loop_again(files: dict[str, Path]) -> None:
    async with executor(engine=EngineSettings(n_intra_threads=1, inline_s=1.0)) as running:
        session = await running.open_whole(served(files["mlp"]))
        x = np.ones((1, 64), np.float32)
        for _ in range(20):
            await running.compute(session, {"x": x}, None)
        assert session.runs_inline(x.nbytes)
        for _ in range(12):
            session.observe_inline(2.0)
        assert not session.runs_inline(x.nbytes)
        assert (await running.compute(session, {"x": x}, None)).queue_s > 0.0


async def test_leaving_the_executor_ends_its_threads_and_builds(files: dict[str, Path]) -> None:
    import threading

    async with executor(n_threads=3) as running:
        session = await running.open_whole(served(files["mlp"]))
        await running.compute(session, {"x": np.ones((1, 64), np.float32)}, None)
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("engine-")]


@pytest.mark.parametrize("is_absolute", [False, True])
async def test_external_data_outside_the_models_folder_are_refused(tmp_path: Path, is_absolute: bool) -> None:
    import onnx
    from onnx import TensorProto, helper

    secret = tmp_path / "x"
    secret.write_bytes(bytes(4))
    path = tmp_path / "models" / "m" / "m.onnx"
    path.parent.mkdir(parents=True)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=str(secret) if is_absolute else "../../x")
    weight.external_data.add(key="length", value="4")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=small_models.OPSET, ir_version=small_models.IR_VERSION), str(path))
    async with executor() as running:
        with pytest.raises(ModelInvalid, match="plain relative name"):
            await running.open_whole(served(path))
