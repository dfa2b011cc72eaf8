"""What a service says of models that do not run where its operator wanted them to."""

import logging
from pathlib import Path

import numpy as np
import pytest

from devices.engine_provider import CPU, CUDA, EngineProvider
from hybrid.serving.engine_settings import degraded
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from tests.serving.batch_lab import deep
from tests.tflite.made import dense

WANTED = EngineProvider(name="cuda", providers=(CUDA, CPU), options=({}, {}))


def test_a_tflite_model_beside_cuda_is_no_fallback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    settings = EngineSettings(provider=WANTED)
    lite = dense(tmp_path / "layer.tflite", np.ones((3, 2), np.float32))
    there = open_engine(lite, settings, facts_of(lite))
    assert there.provider == "cpu"
    assert degraded(WANTED, [there]) == ""
    assert "engine.fallback" not in caplog.text


def test_an_onnx_model_that_fell_back_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = EngineSettings(provider=WANTED)
    path = deep(tmp_path / "m.onnx", 2)
    fell = open_engine(path, settings, facts_of(path))
    if fell.provider != "cpu":
        pytest.skip("there is a CUDA device here")
    assert "fell back" in degraded(WANTED, [fell])
    assert "engine.fallback" in caplog.text
    assert degraded(EngineProvider(), [fell]) == ""
