"""A session over an artifact with a small and a large model, against a real gateway."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
import pytest

import hybrid
from hybrid.artifact.manifest import CascadeRule
from hybrid.cascade.build import write_artifact
from tests.cascade.made import classifier, points
from tests.live_gateway import LiveGateway

THRESHOLD = 0.9


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path_factory.getbasetemp() / "hybrid-cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact's folder."""
    folder = tmp_path_factory.mktemp("models")
    rule = CascadeRule(
        small="small", output="scores", kind="logits", temperature=1.0, threshold=THRESHOLD, max_accuracy_drop=0.01
    )
    small, large = classifier(folder / "s.onnx", used=4), classifier(folder / "l.onnx", used=12)
    write_artifact(small, large, rule, name="points", version="1", folder=folder / "artifact")
    return folder / "artifact"


@pytest.fixture(scope="module")
def gateway(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("gateway") / "data", "--no-announce") as running:
        running.push(models, "points")
        yield running


def opened(models: Path, gateway: LiveGateway, **options: object) -> hybrid.InferenceSession:
    session = hybrid.InferenceSession(
        models / "l.onnx",
        gateway=gateway.url,
        token=gateway.token,
        options=hybrid.Options(**options),  # type: ignore[arg-type]
    )
    assert session.prepare({}, timeout_s=10)
    return session


def sides(models: Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the small one and the large one answer, and how sure the small one is."""
    small = onnxruntime.InferenceSession(models / "small" / "s.onnx").run(None, {"x": x})[0]
    large = onnxruntime.InferenceSession(models / "l.onnx").run(None, {"x": x})[0]
    powers = np.exp(small - small.max(axis=1, keepdims=True))
    return small, large, (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)


def test_each_row_is_answered_by_the_one_that_should(models: Path, gateway: LiveGateway) -> None:
    x, _ = points(64, 1)
    small, large, sure = sides(models, x)
    assert 8 < (sure < THRESHOLD).sum() < 56
    with opened(models, gateway) as session:
        found = session.run(None, {"x": x})[0]
        report = session.report
        assert report is not None
        assert (report.answered_by, report.placement, report.fallback) == ("both", "offload", None)
        assert report.bytes_up == x[sure < THRESHOLD].nbytes  # only the unsure rows travel
        assert report.confidence == pytest.approx(sure.min(), abs=1e-6)
        assert np.array_equal(found[sure >= THRESHOLD], small[sure >= THRESHOLD])
        assert np.allclose(found[sure < THRESHOLD], large[sure < THRESHOLD], atol=1e-5)


def test_one_row_goes_whole_or_not_at_all(models: Path, gateway: LiveGateway) -> None:
    x, _ = points(40, 2)
    _, _, sure = sides(models, x)
    hard: list[float] = []
    with opened(models, gateway) as session:
        session.on_hard(lambda _feeds, _outputs, confidence: hard.append(confidence))
        by = []
        for row in x:
            session.run(["scores"], {"x": row[None]})
            assert session.report is not None
            by.append(session.report.answered_by)
            assert session.report.placement == ("local" if by[-1] == "small" else "offload")
            assert session.report.variant == ("small" if by[-1] == "small" else "")
    assert by == ["small" if found >= THRESHOLD else "large" for found in sure]
    assert len(hard) == (sure < THRESHOLD).sum()
    assert max(hard) < THRESHOLD


def test_unsure_requests_of_many_threads_travel_together(models: Path, gateway: LiveGateway) -> None:
    x, _ = points(200, 3)
    _, large, sure = sides(models, x)
    unsure = np.flatnonzero(sure < THRESHOLD)[:24]
    answers: dict[int, np.ndarray] = {}
    with opened(models, gateway) as session:
        assert session._cascade is not None
        session._cascade._together._hold_s = 0.2
        threads = [
            threading.Thread(target=lambda at=at: answers.update({at: session.run(None, {"x": x[at][None]})[0]}))
            for at in unsure
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        n_messages = session._cascade._together.n_messages
    assert 1 <= n_messages <= 4
    assert all(np.allclose(answers[at][0], large[at], atol=1e-5) for at in unsure)


def test_without_a_link_the_small_one_answers_and_says_so(models: Path, tmp_path: Path) -> None:
    x, _ = points(64, 1)
    small, _, sure = sides(models, x)
    with LiveGateway(tmp_path / "data", "--no-announce") as gateway:
        gateway.push(models, "points")
        with opened(models, gateway) as patient, opened(models, gateway, deadline_s=0.3) as session:
            session.run(None, {"x": x})
            gateway.signal(signal.SIGSTOP)
            started_s = perf_counter()
            found = session.run(None, {"x": x})[0]
            took_s = perf_counter() - started_s
            gateway.signal(signal.SIGCONT)
            assert np.array_equal(found, small)
            assert took_s < 2.0
            assert session.report is not None
            assert session.report.answered_by == "small"
            assert session.report.fallback is not None
            patient.run(None, {"x": x})
            gateway.kill()
            assert np.array_equal(patient.run(None, {"x": x})[0], small)
            assert patient.report is not None
            assert patient.report.answered_by == "small"
            assert patient.report.fallback is not None
            patient.run(None, {"x": x[sure >= THRESHOLD]})
            assert patient.report.fallback is None  # it would have answered these anyway


@pytest.mark.parametrize(
    ("options", "word"),
    [({"raw_input_may_leave": False}, "raw inputs"), ({"max_uplink_bytes_per_s": 1.0}, "uplink budget")],
)
def test_what_may_not_leave_stays(models: Path, gateway: LiveGateway, options: dict[str, object], word: str) -> None:
    x, _ = points(64, 1)
    with opened(models, gateway, **options) as session:
        assert np.array_equal(session.run(None, {"x": x})[0], sides(models, x)[0])
        assert session.report is not None
        assert word in (session.report.fallback or "")


def test_it_can_be_left_alone(models: Path, gateway: LiveGateway) -> None:
    x, _ = points(16, 1)
    _, large, _ = sides(models, x)
    for session in (
        hybrid.InferenceSession(models / "l.onnx", gateway=None),
        hybrid.InferenceSession(
            models / "l.onnx", gateway=gateway.url, token=gateway.token, options=hybrid.Options(cascade="off")
        ),
        hybrid.InferenceSession(
            models / "l.onnx", gateway=gateway.url, token=gateway.token, options=hybrid.Options(max_accuracy_drop=0.001)
        ),
    ):
        with session:
            assert np.allclose(session.run(None, {"x": x})[0], large, atol=1e-5)
            assert session.report is not None
            assert session.report.answered_by == ""
    with pytest.raises(ValueError, match="cascade"):
        hybrid.Options(cascade="perhaps")  # type: ignore[arg-type]


def test_awaited_runs_and_wrong_feeds(models: Path, gateway: LiveGateway) -> None:
    x, _ = points(64, 1)
    with opened(models, gateway) as session:

        async def both() -> None:
            first, second = await asyncio.gather(
                session.run_awaitable(None, {"x": x}), session.run_awaitable(None, {"x": x})
            )
            assert np.array_equal(first[0], second[0])

        asyncio.run(both())
        with pytest.raises(Exception, match="x"):
            session.run(None, {"y": x})
        session.close()
        assert np.array_equal(session.run(None, {"x": x})[0], sides(models, x)[0])
