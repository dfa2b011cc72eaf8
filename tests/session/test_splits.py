"""Splits of an artifact in sessions: forced, permitted, refused, damaged; against a real gateway."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import hybrid
from compression.bottleneck.prior import Prior
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.publishers import create_key, own_key_path, read_key
from hybrid.errors import PlacementUnavailable, TensorMismatch, UnknownSplit, Warming
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor
from tests.live_gateway import LiveGateway
from tests.session import split_artifacts
from tests.session.split_artifacts import CROSSING, SHAPE_KEY, Made, feeds, permit

SLOW_LINK = Shape(up=Direction(rate_bps=1_000_000.0, delay_s=0.002), down=Direction(delay_s=0.002))
"""The input takes 0.4 s, what crosses 0.26 s, its int8 at most 0.07 s."""

SPLITS = {"split:int8", "split:learned"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("splits")
    return split_artifacts.make(folder / "net", folder / "cut")


@pytest.fixture(scope="module")
def holder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that holds the artifact."""
    with LiveGateway(tmp_path_factory.mktemp("holder") / "data", "--no-announce") as running:
        running.push(made.artifact.folder, "net")
        yield running


@pytest.fixture
def own(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """The artifact in a folder of this test, whose user has a key."""
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    create_key(own_key_path())
    return made.copied(tmp_path / "net")


@pytest.fixture
def key(own: Made) -> bytes:
    return read_key(own_key_path())


@pytest.fixture
def slow_device() -> Iterator[None]:
    pace.set_factor(200.0)
    yield
    pace.set_factor(1.0)


def forced(gateway: LiveGateway, made: Made, split: str, **more: object) -> hybrid.InferenceSession:
    options = hybrid.Options(
        **({"placement": f"split:{made.cut}", "codec": f"split:{split}", "fallback": False, "deadline_s": 20.0} | more)  # type: ignore[arg-type]
    )
    return hybrid.InferenceSession(str(made.model), gateway=gateway.url, token=gateway.token, options=options)


def run_at(made: Made, crossing: np.ndarray) -> np.ndarray:
    tail = onnxruntime.InferenceSession(str(made.prepared.tail_path(made.cut)))
    return tail.run(None, {CROSSING: crossing})[0]


def through(made: Made, name: str, given: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(made.artifact.folder / name))
    return session.run(None, {session.get_inputs()[0].name: given})[0]


def head_of(made: Made, sample: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(str(made.prepared.head_path(made.cut))).run([CROSSING], sample)[0]


def test_an_int8_head_before_the_models_own_tail(holder: LiveGateway, own: Made) -> None:
    sample = feeds(50)
    with forced(holder, own, "int8") as session:
        outputs = session.run(None, sample)
        report = session.report
        assert report is not None
        assert (report.placement, report.codec, report.fallback) == ("split", "split:int8", None)
        assert report.bytes_up < 9000
    crossing = through(own, "int8.onnx", sample["x"])
    carried = Tensor.of(CROSSING, crossing, "q8z").to_array()
    np.testing.assert_allclose(outputs[0], run_at(own, carried), atol=1e-4)
    assert np.abs(run_at(own, carried) - run_at(own, head_of(own, sample))).max() > 1e-4


def test_a_bottleneck_on_both_sides(holder: LiveGateway, own: Made) -> None:
    sample = feeds(51)
    with forced(holder, own, "learned") as session:
        outputs = session.run(None, sample)
        report = session.report
        assert report is not None
        assert (report.placement, report.codec, report.fallback) == ("split", "split:learned", None)
    prior = Prior.from_json((own.artifact.folder / "prior.json").read_bytes())
    latent = through(own, "encoder.onnx", head_of(own, sample))
    assert report.bytes_up == len(prior.encode(latent))
    np.testing.assert_allclose(outputs[0], run_at(own, through(own, "decoder.onnx", latent)), atol=1e-4)
