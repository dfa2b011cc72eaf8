"""The gateway's engine on a CUDA device: same numbers as the CPU, memory that is counted, batches that pay, truth.

On a machine with a GPU: `uv pip install onnxruntime-gpu` in place of onnxruntime (and `hybrid-split[torch]`), then
`pytest -m gpu`. Nothing here runs without one.
"""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime as ort
import pytest

from cloud_gateway.config import GatewayConfig
from devices.engine_provider import CUDA, choose_provider
from devices.gpu_memory import gpu_memory
from devices.torch_engine import torch_reason
from hybrid.errors import ModelOverBudget
from hybrid.serving.engine_settings import degraded, executor_settings
from hybrid.serving.engines.batch_shelf import BatchSettings, BatchShelf
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.session import EngineSession
from tests import small_models, zoo
from tests.serving.batch_lab import deep, row, served

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        CUDA not in ort.get_available_providers() or gpu_memory() is None,
        reason="needs a CUDA device and onnxruntime-gpu",
    ),
]


def opened_on(provider: str) -> EngineSession:
    """What a gateway asks of an open session."""
    return SimpleNamespace(provider=provider, is_for_cpu=False)  # type: ignore[return-value]


def on_cuda(gpu_memory_bytes: int = 0) -> EngineSettings:
    return EngineSettings(provider=choose_provider("cuda", gpu_memory_bytes=gpu_memory_bytes), inline_s=0.0)


@pytest.mark.parametrize("name", ["squeezenet", "minilm", "ppocr_det"])
def test_cuda_gives_what_the_cpu_gives(name: str) -> None:
    path, feeds = zoo.path(name), zoo.feeds(name)
    session = open_engine(path, on_cuda(), facts_of(path))
    assert session.provider == "cuda"
    for mine, theirs in zip(session.run(feeds), ort.InferenceSession(str(path)).run(None, feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


def test_what_a_session_holds_of_the_gpu_is_measured() -> None:
    path = zoo.path("minilm")
    session = open_engine(path, on_cuda(), facts_of(path))
    assert 0.9 * path.stat().st_size < session.n_gpu_bytes < 20 * path.stat().st_size


async def test_the_gpu_has_a_budget_of_its_own(tmp_path: Path) -> None:
    path = small_models.heavy(tmp_path / "m.onnx", n_megabytes=64)
    settings = ExecutorSettings(engine=on_cuda(), gpu_budget_bytes=32 << 20)
    async with Executor(settings) as running:
        with pytest.raises(ModelOverBudget):
            await running.open_whole(served(path))


async def test_small_models_pay_in_batches_on_a_gpu(tmp_path: Path) -> None:
    path = deep(tmp_path / "m.onnx", 200)
    async with Executor(ExecutorSettings(engine=on_cuda(), n_threads=2)) as running:
        shelf = BatchShelf(running, lambda _: None, tmp_path / "cache", BatchSettings(mode="auto"))
        session = await running.open_whole(served(path))
        shelf._consider(session, None, row(0))
        async with asyncio.timeout(60):
            while shelf.verdicts["m",].state == "trying":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert shelf.verdicts["m",].state == "pays"
        found = await asyncio.gather(*(running.compute(session, row(seed), None) for seed in range(32)))
        for seed, computed in enumerate(found):
            np.testing.assert_allclose(computed.outputs[0], np.roll(row(seed)["x"], 200, axis=1), atol=1e-4)


def test_auto_takes_the_gpu_and_says_nothing(tmp_path: Path) -> None:
    settings = executor_settings(GatewayConfig(data=tmp_path))
    assert settings.engine.provider.name == "cuda"
    assert settings.gpu_budget_bytes > 1 << 30
    assert degraded(settings.engine.provider, [opened_on("cuda")]) == ""
    assert "fell back" in degraded(settings.engine.provider, [opened_on("cpu")])


@pytest.mark.skipif(bool(torch_reason()), reason=torch_reason() or "-")
@pytest.mark.parametrize("name", ["squeezenet", "minilm"])
def test_torch_on_cuda_gives_what_the_cpu_gives(name: str) -> None:
    path, feeds = zoo.path(name), zoo.feeds(name)
    session = open_engine(path, EngineSettings(provider=choose_provider("torch"), inline_s=0.0), facts_of(path))
    assert session.provider == "torch"
    for mine, theirs in zip(session.run(feeds), ort.InferenceSession(str(path)).run(None, feeds), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
