"""TensorFlow Lite models behind the public session: alone, at a gateway, in two, and what keeps them here."""

import json
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

import hybrid
from devices.tflite_engine import TfliteSession
from hybrid.errors import ModelInvalid
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.tflite.made import feeds_for, voice


def test_the_session_has_onnxruntimes_face() -> None:
    path = zoo.tflite("face")
    plain = TfliteSession(path, 1)
    with hybrid.InferenceSession(path, gateway=None) as session:
        (port,) = session.get_inputs()
        assert (port.name, port.type, port.shape) == ("input", "tensor(float)", (1, 128, 128, 3))
        assert [found.name for found in session.get_outputs()] == ["regressors", "classificators"]
        assert "LiteRT" in session.get_providers()[-1]
        feeds = feeds_for(plain)
        outputs = session.run(["classificators"], feeds)
        assert np.array_equal(outputs[0], plain.run(["classificators"], feeds)[0])
        assert session.report is not None
        assert session.report.placement == "local"
        for wrong in ({}, {"input": feeds["input"][:, :64]}, {"input": feeds["input"].astype(np.float64)}, {"x": 1}):
            with pytest.raises(ValueError, match="input"):
                session.run(None, wrong)
        with pytest.raises(ValueError, match="output"):
            session.run(["nothing"], feeds)


def test_a_model_may_come_as_bytes() -> None:
    path = zoo.tflite("face")
    feeds = feeds_for(TfliteSession(path))
    with hybrid.InferenceSession(path.read_bytes(), gateway=None) as session:
        assert np.array_equal(session.run(None, feeds)[0], TfliteSession(path).run(None, feeds)[0])
    with pytest.raises(ModelInvalid):
        hybrid.InferenceSession(path.read_bytes()[:5000], gateway=None)


@pytest.mark.parametrize("placement", ["offload", "split"])
def test_a_gateway_computes_it_whole_or_its_tail(gateway: LiveGateway, placement: str) -> None:
    path = zoo.tflite("face")
    options = hybrid.Options(placement=placement, fallback=False)
    with hybrid.InferenceSession(path, gateway=gateway.url, token=gateway.token, options=options) as session:
        feeds = feeds_for(TfliteSession(path))
        assert session.prepare(feeds)
        outputs = session.run(None, feeds)
        report = session.report
        assert report is not None
        assert (report.placement, report.fallback) == (placement, None)
        assert bool(report.cut) == (placement == "split")
        for found, wanted in zip(outputs, TfliteSession(path).run(None, feeds), strict=True):
            assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_a_model_that_remembers_stays_here(gateway: LiveGateway) -> None:
    path = zoo.tflite("wake_word")
    plain = TfliteSession(path)
    requests = voice(plain)
    wanted = [plain.run(None, feeds)[0] for feeds in requests]
    assert len({int(answer.item()) for answer in wanted}) > 3
    with hybrid.InferenceSession(path, gateway=gateway.url, token=gateway.token) as session:
        assert not session.prepare(requests[0], timeout_s=5)
        found = [session.run(None, feeds)[0] for feeds in requests]
        assert all(map(np.array_equal, found, wanted))
        assert "remembers" in session.explain()[0].reason


def test_plan_shows_its_cuts(run_hybrid: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_hybrid("plan", str(zoo.tflite("face")), "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["data"]
    assert len(told["pareto"]) >= 3
    assert told["shape_key"] == {"input": [1, 128, 128, 3]}
