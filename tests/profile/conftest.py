"""A small real model, and timings to write down."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hybrid.profile.record import Setting, Timing
from tests import small_models


@pytest.fixture(scope="session")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.conv(tmp_path_factory.mktemp("models") / "conv.onnx")


@pytest.fixture
def setting() -> Setting:
    return Setting(engine="onnxruntime 1.0", provider="CPUExecutionProvider", n_threads=0, machine="x86_64 some cpu")


@pytest.fixture
def timing() -> Callable[..., Timing]:
    return lambda seconds, **more: Timing(median_s=1.1 * seconds, low_s=seconds, spread_ratio=0.1, n_runs=9, **more)
