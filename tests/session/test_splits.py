"""Splits of an artifact in sessions: forced, permitted, refused, damaged; against a real gateway."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hybrid
from compression.bottleneck.prior import Prior
from devices import pace
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.publishers import create_key, own_key_path, read_key
from hybrid.wire.tensor import Tensor
from tests.live_gateway import LiveGateway
from tests.session import split_artifacts
from tests.session.split_artifacts import CROSSING, Made, feeds, permit

SLOW_LINK = Shape(up=Direction(rate_bps=1_000_000.0, delay_s=0.002), down=Direction(delay_s=0.002))
"""The input takes 0.4 s, what crosses 0.26 s, its int8 at most 0.07 s."""

SPLITS = {"split:int8", "split:learned"}
MOST_REQUESTS = 40
"""Until what is chosen must have been chosen: on a busy machine it takes more of them to be scouted."""


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


# -- chosen where it pays


@pytest.fixture
def placed(holder: LiveGateway, own: Made, slow_device: None) -> Callable[..., list[hybrid.RunReport]]:
    """Runs a session that may choose, over the slow link; its reports, every answer having been checked."""

    def run(
        *, n_requests: int = 6, hurry: bool = False, until: str = "", **options: object
    ) -> tuple[list, list[hybrid.Candidate]]:
        one_thread = onnxruntime.SessionOptions()
        one_thread.intra_op_num_threads = 1
        reports = []
        with ShapedProxy(holder.port) as link:
            link.set(SLOW_LINK)
            with hybrid.InferenceSession(
                str(own.model),
                one_thread,
                gateway=f"http://127.0.0.1:{link.port}",
                token=holder.token,
                options=hybrid.Options(**options),  # type: ignore[arg-type]
            ) as session:
                assert session.prepare(split_artifacts.noise(0), timeout_s=30)
                for seed in range(MOST_REQUESTS):
                    if seed >= n_requests and (not until or until in used(reports)):
                        break
                    if hurry and seed == n_requests // 2:
                        link.set(replace(SLOW_LINK, up=replace(SLOW_LINK.up, rate_bps=150_000.0)))
                    sample = split_artifacts.noise(seed)
                    outputs = session.run(None, sample)
                    check(own, sample, outputs[0], session.report)
                    reports.append(session.report)
                return reports, session.explain()

    return run


def check(made: Made, sample: dict[str, np.ndarray], found: np.ndarray, report: hybrid.RunReport) -> None:
    """An answer is the whole model's, or where a split gave it what that split gives."""
    wanted = onnxruntime.InferenceSession(str(made.model)).run(None, sample)[0]
    if report.codec == "split:int8" and report.placement == "split":
        crossing = through(made, "int8.onnx", sample["x"])
        wanted = run_at(made, Tensor.of(CROSSING, crossing, "q8z").to_array())
    elif report.codec == "split:learned" and report.placement == "split":
        latent = through(made, "encoder.onnx", head_of(made, sample))
        wanted = run_at(made, through(made, "decoder.onnx", latent))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def used(reports: list[hybrid.RunReport]) -> set[str]:
    return {report.codec for report in reports if report.placement != "local"}


def test_a_permitted_int8_head_is_chosen_and_hedged_right(placed, own, key):
    permit(own, key, "int8")
    reports, candidates = placed(n_requests=10, hurry=True, until="split:int8")
    assert "split:int8" in used(reports), candidates
    assert "split:learned" not in used(reports)
    row = next(candidate for candidate in candidates if candidate.codec == "split:int8")
    assert row.accuracy_drop == pytest.approx(0.004)
    said = next(candidate for candidate in candidates if candidate.codec == "split:learned")
    assert "not calibrated" in said.reason


def test_a_permitted_bottleneck_is_chosen(placed, own, key):
    permit(own, key, "learned")
    reports, candidates = placed(until="split:learned")
    assert "split:learned" in used(reports), candidates


def test_what_is_not_permitted_is_never_chosen(placed, own, key):
    """One is above the limit; of the other another split of its name was measured."""
    permit(own, key, "int8", drop_high=0.02)
    permit(own, key, "learned", digests={"learned": "0" * 64})
    reports, candidates = placed(n_requests=4, max_accuracy_drop=0.01)
    assert not used(reports) & SPLITS
    reasons = {candidate.codec: candidate.reason for candidate in candidates if candidate.codec in SPLITS}
    assert reasons["split:int8"] == "accuracy drop 0.020 is above 0.010"
    assert "not calibrated" in reasons["split:learned"]


def test_a_model_that_was_pulled_by_name_brings_its_splits(holder: LiveGateway, own: Made) -> None:
    options = hybrid.Options(placement=f"split:{own.cut}", codec="split:learned", fallback=False, deadline_s=20.0)
    with hybrid.InferenceSession("net", gateway=holder.url, token=holder.token, options=options) as session:
        session.run(None, feeds())
        assert session.report is not None
        assert (session.report.codec, session.report.fallback) == ("split:learned", None)
