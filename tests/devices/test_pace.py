"""Pacing: a run takes the factor longer by its own CPU time, costs nothing when off, and stops when told to."""

import threading
import time
from collections.abc import Iterator
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from devices import onnx_engine, pace
from devices.errors import EmulationError

FEEDS = {"x": np.full((1, 3, 160, 160), 0.5, np.float32)}


@pytest.fixture(autouse=True)
def unpaced_afterwards() -> Iterator[None]:
    yield
    pace.set_factor(1)


@pytest.fixture(scope="module")
def detector() -> ort.InferenceSession:
    path = next(file for file in files("rapidocr") or [] if file.name == "PP-OCRv6_det_small.onnx")
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return onnx_engine.open_session(Path(str(path.locate())), options)


def test_off_gives_the_very_callable_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def call() -> int:
        return 7

    assert pace.wrap(call) is call
    assert pace.run(call) == 7


def test_a_run_takes_the_factor_longer_and_gives_the_same(detector: ort.InferenceSession) -> None:
    [plain] = detector.run(None, FEEDS)
    pace.set_factor(8)
    paced = pace.wrap(detector.run)
    ratios: list[float] = []
    for _ in range(5):
        started_s, cpu_s = time.perf_counter(), time.thread_time()
        [slow] = paced(None, FEEDS)
        ratios.append((time.perf_counter() - started_s) / (time.thread_time() - cpu_s))
    np.testing.assert_array_equal(slow, plain)
    assert sorted(ratios)[2] == pytest.approx(8, rel=0.1)


def test_other_load_does_not_count_twice() -> None:
    """A call that waits long and computes little is not stretched."""
    pace.set_factor(50)
    started_s = time.perf_counter()
    pace.run(lambda: time.sleep(0.2))
    assert time.perf_counter() - started_s < 5, "stretched it would take ten"


def test_terminate_ends_the_sleep_as_it_ends_a_run(detector: ort.InferenceSession) -> None:
    pace.set_factor(1000)
    options = ort.RunOptions()
    stopper = threading.Timer(0.3, lambda: setattr(options, "terminate", True))
    stopper.start()
    started_s = time.perf_counter()
    with pytest.raises(Fail, match="terminate"):
        pace.wrap(detector.run)(None, FEEDS, run_options=options)
    assert time.perf_counter() - started_s < 3
    stopper.join()


def test_the_environment_paces_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_chosen", None)
    monkeypatch.setenv(pace.VARIABLE, "6.5")
    assert pace.factor() == 6.5
    assert pace.wrap(len) is not len
    monkeypatch.setenv(pace.VARIABLE, "")
    assert pace.wrap(len) is len
    for nonsense in ("fast", "0.5", "nan", "inf"):
        monkeypatch.setenv(pace.VARIABLE, nonsense)
        with pytest.raises(EmulationError):
            pace.factor()


@pytest.mark.parametrize("bad", [0.0, 0.99, -3.0, float("nan"), float("inf")])
def test_a_machine_cannot_be_made_faster(bad: float) -> None:
    with pytest.raises(EmulationError):
        pace.set_factor(bad)
