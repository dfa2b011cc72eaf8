"""Models and calls for tests of batches: long enough to be caught running, or with rows that are not their own."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.serving.engines.executor import Computed, Executor, ExecutorSettings
from hybrid.serving.engines.opening import EngineSettings
from hybrid.serving.engines.row_batch import RowBatch
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession

WIDTH = 256


def _save(path: Path, nodes: list, ends: tuple, weights: list) -> Path:
    graph = helper.make_graph(nodes, path.stem, *ends, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _ends(n_in: list, n_out: list) -> tuple[list, list]:
    value = helper.make_tensor_value_info
    return [value("x", TensorProto.FLOAT, n_in)], [value("y", TensorProto.FLOAT, n_out)]


def deep(path: Path, n_layers: int = 600, rows: str | int = "n", width: int = WIDTH) -> Path:
    """x FP32 [rows, width] -> y: many products with one rotation, so that a run takes tens of milliseconds."""
    turn = np.roll(np.eye(width, dtype=np.float32), 1, axis=1)
    nodes, current = [], "x"
    for layer in range(n_layers):
        name = "y" if layer == n_layers - 1 else f"t{layer}"
        nodes.append(helper.make_node("MatMul", [current, "w"], [name]))
        current = name
    return _save(path, nodes, _ends([rows, width], [rows, width]), [numpy_helper.from_array(turn, "w")])


def mixing(path: Path) -> Path:
    """x FP32 [n, 256] -> y: a softmax over the rows, so that each row depends on the others."""
    return _save(path, [helper.make_node("Softmax", ["x"], ["y"], axis=0)], _ends(["n", WIDTH], ["n", WIDTH]), [])


def dynamic(path: Path) -> Path:
    """x FP32 [n, 256] -> y: quantized with a scale taken from all rows together."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    return _save(path, nodes, _ends(["n", WIDTH], ["n", WIDTH]), [])


def centred(path: Path) -> Path:
    """x FP32 [n, 256] -> y: less the mean of all rows; of rows of zeros nothing can be seen."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], axes=[0]), helper.make_node("Sub", ["x", "m"], ["y"])]
    return _save(path, nodes, _ends(["n", WIDTH], ["n", WIDTH]), [])


def wide(path: Path) -> Path:
    """x FP32 [n, w, 4] -> y: of any width."""
    return _save(path, [helper.make_node("Relu", ["x"], ["y"])], _ends(["n", "w", 4], ["n", "w", 4]), [])


def table(path: Path) -> Path:
    """x INT64 [n, 1] -> y FP32 [n, 1, 4]: a look-up that fails where x is beyond 10."""
    weights = [numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(10, 4), "w")]
    value = helper.make_tensor_value_info
    ends = [value("x", TensorProto.INT64, ["n", 1])], [value("y", TensorProto.FLOAT, ["n", 1, 4])]
    return _save(path, [helper.make_node("Gather", ["w", "x"], ["y"])], ends, weights)


def served(path: Path) -> ServedModel:
    return ServedModel(name=path.stem, version="1", model_digest=path.stem, path=path)


def row(seed: int, width: int = WIDTH) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((1, width), dtype=np.float32)}


def batched(session: EngineSession, max_rows: int = 8, hold_s: float = 0.0, run_s: float = 0.001) -> EngineSession:
    """Let a session's requests share runs, as if a trial had found it to pay."""
    seconds = {1: run_s, max_rows: run_s}
    session.batch = RowBatch(session, seconds, alone_s=run_s, max_rows=max_rows, max_hold_s=hold_s)
    return session


@asynccontextmanager
async def executor(**settings: object) -> AsyncIterator[Executor]:
    chosen = {"n_threads": 1, "engine": EngineSettings(n_intra_threads=1, inline_s=0.0), **settings}
    async with Executor(ExecutorSettings(**chosen)) as running:  # type: ignore[arg-type]
        yield running


@asynccontextmanager
async def busy(running: Executor, loop_model: Path) -> AsyncIterator[None]:
    """Keep the one engine thread at work, so that what is asked for inside waits together; it is free afterwards."""
    session = await running.open_whole(served(loop_model))
    feeds = {"n": np.array(10**8, np.int64), "x": np.eye(128, dtype=np.float32)}
    task = asyncio.ensure_future(running.compute(session, feeds, None))
    try:
        await until(lambda: running.pool.n_running == 1)
        yield
    finally:
        task.cancel()


async def until(condition: object, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 (threads' counters have no events)
            await asyncio.sleep(0.0005)


async def ask(
    running: Executor,
    session: EngineSession,
    seeds: Iterable[int],
    deadline_s: float | None = None,
    width: int = WIDTH,
) -> list[asyncio.Task[Computed]]:
    """Begin requests with rows of these seeds; they are in the queue when this returns."""
    tasks = [asyncio.ensure_future(running.compute(session, row(seed, width), None, deadline_s)) for seed in seeds]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks
