"""Where engines compute: what is chosen, with which options, and what is said when it is not to be had."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from devices.engine_provider import CPU, CUDA, choose_provider, cuda_options, provider_of
from devices.errors import OperatorUnsupported
from devices.gpu_memory import gpu_memory
from devices.torch_engine import TorchSession, torch_reason
from tests import small_models

HAS_CUDA = CUDA in ort.get_available_providers()
HAS_TORCH = all(find_spec(name) for name in ("torch", "torchvision", "onnx2pytorch"))


def test_the_cpu_is_chosen_where_it_is_wanted() -> None:
    provider = choose_provider("cpu")
    assert (provider.name, provider.providers, provider.note) == ("cpu", (CPU,), "")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has CUDA")
def test_cuda_that_is_not_here_is_said_and_auto_says_nothing() -> None:
    assert choose_provider("auto").note == ""
    provider = choose_provider("cuda")
    assert provider.name == "cpu"
    assert "onnxruntime-gpu" in provider.note


def test_cuda_computes_as_the_cpu_does_within_its_memory() -> None:
    options = cuda_options(1, 1 << 30)
    assert options["use_tf32"] == "0"
    assert options["device_id"] == "1"
    assert options["gpu_mem_limit"] == str(1 << 30)
    assert "gpu_mem_limit" not in cuda_options(0, 0)


@pytest.mark.skipif(not torch_reason(), reason="torch runs here")
def test_torch_that_cannot_run_here_is_said() -> None:
    provider = choose_provider("torch")
    assert provider.name == "cpu"
    assert provider.note.startswith("torch was wanted, but ")


def test_memory_of_a_gpu_is_a_pair_or_nothing() -> None:
    found = gpu_memory()
    assert found is None or 0 < found[0] <= found[1]


@pytest.mark.torch
@pytest.mark.skipif(not HAS_TORCH, reason="needs torch, torchvision and onnx2pytorch (extra `torch`)")
def test_a_model_on_torch_gives_what_onnxruntime_gives(tmp_path: Path) -> None:
    path = small_models.conv(tmp_path / "conv.onnx")
    session = TorchSession(path, "cpu")
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)}
    wanted = ort.InferenceSession(str(path)).run(None, feeds)[0]
    (found,) = session.run(["y"], feeds)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert found.flags.writeable
    assert found.flags.c_contiguous
    assert provider_of(session) == "torch"
    with pytest.raises(OperatorUnsupported):
        TorchSession(small_models.echo(tmp_path / "echo.onnx", 8, ["n"]), "cpu")
