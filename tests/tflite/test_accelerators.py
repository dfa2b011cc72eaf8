"""An accelerator that fails is replaced by the CPU, reported, tried again later: with a delegate that really fails."""

import random
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import hybrid
from devices.errors import DeviceError, ModelFileMissing
from devices.fallback import SPARE_S, FallbackSession
from devices.onnx_engine import Port
from devices.tflite_engine import TfliteSession
from tests import zoo
from tests.tflite.delegate import LayerDelegate
from tests.tflite.made import dense

WEIGHTS = np.arange(24, dtype=np.float32).reshape(4, 6)
FEEDS = {"x": np.ones((1, 6), np.float32)}
ANSWER = WEIGHTS.sum(axis=1)


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return dense(tmp_path / "layer.tflite", WEIGHTS)


def guarded(layer: Path, delegate: LayerDelegate, clock: Clock, *, is_checked: bool = False) -> FallbackSession:
    return FallbackSession(
        delegate.name,
        partial(TfliteSession, layer, 1, [delegate]),
        partial(TfliteSession, layer, 1),
        is_taken=lambda found: delegate.name in found.get_providers(),
        is_checked=is_checked,
        now_s=clock,
        rng=random.Random(0),
    )


def retried(session: FallbackSession, clock: Clock, done: Callable[[], bool]) -> None:
    """Lets the pause pass, asks once more (that starts the attempt), and waits for its end."""
    assert session.trouble is not None
    assert session.trouble.retry_s is not None
    clock.now_s = session.trouble.retry_s + 0.1
    session.run(None, FEEDS)
    until_s = time.monotonic() + 5
    while not done() and time.monotonic() < until_s:
        time.sleep(0.005)
    for thread in threading.enumerate():
        if thread.name == "hybrid-engine-retry":
            thread.join(5)
    assert done()


def test_it_fails_at_a_run_and_comes_back(layer: Path) -> None:
    delegate, clock = LayerDelegate(WEIGHTS), Clock()
    session = guarded(layer, delegate, clock)
    assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)
    assert (delegate.n_runs, session.trouble) == (1, None)
    delegate.fails_at = "run"
    assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)  # the request that met the failure is answered
    trouble = session.trouble
    assert trouble is not None
    assert (trouble.provider, trouble.n_failures) == ("npu", 1)
    assert "failed to invoke" in trouble.reason
    assert "npu" not in session.get_providers()
    n_opened = delegate.n_opened
    session.run(None, FEEDS)
    assert delegate.n_opened == n_opened  # not before its pause is over
    delegate.fails_at = ""
    retried(session, clock, lambda: session.trouble is None)
    n_runs = delegate.n_runs
    assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)
    assert delegate.n_runs == n_runs + 1
    assert "npu" in session.get_providers()


def test_it_fails_at_open_again_and_again_with_longer_pauses(layer: Path) -> None:
    delegate, clock = LayerDelegate(WEIGHTS), Clock()
    delegate.fails_at = "open"
    session = guarded(layer, delegate, clock)
    pauses_s = []
    for n_failures in range(1, 9):
        trouble = session.trouble
        assert trouble is not None
        assert trouble.n_failures == n_failures
        assert trouble.retry_s is not None
        pauses_s.append(trouble.retry_s - trouble.failed_s)
        assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)
        retried(session, clock, lambda n=n_failures: session.trouble is not None and session.trouble.n_failures > n)
    assert all(0.75 * 5 * 2**at <= pause <= 1.25 * 5 * 2**at for at, pause in enumerate(pauses_s[:7]))
    assert max(pauses_s) <= 1.25 * 600
    delegate.fails_at = ""
    retried(session, clock, lambda: session.trouble is None)


def test_one_that_flaps_is_not_trusted_anew_at_once(layer: Path) -> None:
    delegate, clock = LayerDelegate(WEIGHTS), Clock()
    session = guarded(layer, delegate, clock)
    for n_failures in (1, 2, 3):
        delegate.fails_at = "run"
        session.run(None, FEEDS)
        assert session.trouble is not None
        assert session.trouble.n_failures == n_failures
        delegate.fails_at = ""
        retried(session, clock, lambda: session.trouble is None)
    clock.now_s += 3600.0  # an hour of good runs
    delegate.fails_at = "run"
    session.run(None, FEEDS)
    assert session.trouble is not None
    assert session.trouble.n_failures == 1


def test_one_that_computes_something_else_is_not_used(layer: Path) -> None:
    delegate, clock = LayerDelegate(WEIGHTS), Clock()
    delegate.wrong = 5.0
    session = guarded(layer, delegate, clock, is_checked=True)
    assert session.trouble is not None
    assert "other numbers" in session.trouble.reason
    assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)
    delegate.wrong = 0.0
    retried(session, clock, lambda: session.trouble is None)


def test_a_request_at_fault_does_not_cost_the_accelerator(layer: Path) -> None:
    delegate = LayerDelegate(WEIGHTS)
    session = guarded(layer, delegate, Clock())
    with pytest.raises(ValueError, match="input"):
        session.run(None, {"x": np.ones((1, 7), np.float32)})
    assert session.trouble is None
    session.run(None, FEEDS)
    assert delegate.n_runs == 1


def test_wrong_requests_open_the_cpu_once_a_while(layer: Path) -> None:
    clock, opened = Clock(), []

    def open_cpu() -> TfliteSession:
        opened.append(clock.now_s)
        return TfliteSession(layer, 1)

    delegate = LayerDelegate(WEIGHTS)
    session = FallbackSession("layer", partial(TfliteSession, layer, 1, [delegate]), open_cpu, now_s=clock)
    for _ in range(5):
        with pytest.raises(ValueError, match="input"):
            session.run(None, {"x": np.ones((1, 7), np.float32)})
        session.run(None, FEEDS)
        clock.now_s += 1.0
    assert len(opened) == 1
    clock.now_s += SPARE_S
    session.run(None, FEEDS)
    assert session._cpu is None, "its memory is given back once no wrong request came for a while"
    assert session.trouble is None
    assert delegate.n_runs == 6


def test_a_model_at_fault_is_the_models_error(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing):
        guarded(tmp_path / "nothing.tflite", LayerDelegate(WEIGHTS), Clock())


def test_many_threads_meet_one_failure(layer: Path) -> None:
    delegate = LayerDelegate(WEIGHTS)
    session = guarded(layer, delegate, Clock())
    delegate.fails_at = "run"
    answers: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: answers.append(session.run(None, FEEDS)[0][0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 8
    assert all(np.array_equal(answer, ANSWER) for answer in answers)
    assert session.trouble is not None
    assert session.trouble.n_failures == 1


def test_the_public_session_answers_and_says_so(layer: Path) -> None:
    delegate = LayerDelegate(WEIGHTS)
    with hybrid.InferenceSession(layer, providers=[delegate], gateway=None) as session:
        session.run(None, FEEDS)
        assert session.engine_trouble is None
        assert session.report is not None
        assert session.report.engine_fallback is None
        delegate.fails_at = "run"
        assert np.array_equal(session.run(None, FEEDS)[0][0], ANSWER)
        assert session.engine_trouble is not None
        assert session.report.engine_fallback is not None
        assert session.report.engine_fallback.startswith("npu: ")


def test_a_provider_that_this_build_lacks_is_reported_for_onnx_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnxruntime's own words
        session = hybrid.InferenceSession(
            zoo.path("ppocr_cls"), providers=["CUDAExecutionProvider", "CPUExecutionProvider"], gateway=None
        )
    with session:
        if "CUDAExecutionProvider" in session.get_providers():
            pytest.skip("CUDA is here")
        feeds = zoo.feeds("ppocr_cls")
        assert session.run(None, feeds)[0].shape == (1, 2)
        assert session.engine_trouble is not None
        assert session.engine_trouble.retry_s is None  # it will not appear in this process
        assert session.report is not None
        assert "CUDAExecutionProvider" in (session.report.engine_fallback or "")


def test_the_cpu_alone_is_not_wrapped() -> None:
    with hybrid.InferenceSession(zoo.path("ppocr_cls"), providers=["CPUExecutionProvider"], gateway=None) as session:
        assert session.engine_trouble is None
        assert not isinstance(session._engine.session, FallbackSession)


def test_what_the_delegate_says_of_a_dead_run_is_an_error_of_the_engine(layer: Path) -> None:
    delegate = LayerDelegate(WEIGHTS)
    session = TfliteSession(layer, 1, [delegate])
    delegate.fails_at = "run"
    with pytest.raises(DeviceError, match="failed to invoke"):
        session.run(None, FEEDS)


class _Counting:
    """A model that adds up what it was given."""

    keeps_state = True

    def __init__(self) -> None:
        self.total, self.is_broken = 0.0, False

    def get_inputs(self) -> list[Port]:
        return [Port(name="x", type="tensor(float)", shape=(1,))]

    def run(self, _names: object, feeds: dict[str, np.ndarray], _options: object = None) -> list[np.ndarray]:
        if self.is_broken:
            raise RuntimeError("gone")
        self.total += float(feeds["x"][0])
        return [np.array([self.total], np.float32)]

    def reset_variables(self) -> None:
        self.total = 0.0


def test_what_a_model_remembers_comes_from_the_callers_runs_alone() -> None:
    clock, wanted = Clock(), _Counting()
    session = FallbackSession("strange", lambda: wanted, _Counting, is_checked=True, now_s=clock)
    one = {"x": np.ones(1, np.float32)}
    assert [float(session.run(None, one)[0][0]) for _ in range(2)] == [1.0, 2.0]
    wanted.is_broken = True
    assert float(session.run(None, one)[0][0]) == 1.0
    assert session.trouble is not None
    assert session.trouble.retry_s is None, "the CPU remembers by now"
