"""Splits that one side does not hold, or holds damaged: they cost only themselves, and are refused by a typed error."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

import hybrid
from compression.bottleneck.prior import Prior
from compression.tensor import TensorSpec
from hybrid.errors import (
    BadMessage,
    PlacementUnavailable,
    TensorMismatch,
    UnknownSplit,
    Warming,
)
from hybrid.scouting.offer import Offer, ask
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor
from tests.live_gateway import LiveGateway
from tests.session import split_artifacts
from tests.session.split_artifacts import CROSSING, SHAPE_KEY, Made, damage, feeds

CROSSING_SPEC = TensorSpec(name=CROSSING, dtype="FP32", shape=(1, 8, 32, 32))


@pytest.fixture(scope="module")
def other(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The same model and the same names; the bottleneck was made otherwise."""
    folder = tmp_path_factory.mktemp("others")
    return split_artifacts.make(folder / "net", folder / "cut", version="2", levels=40.0)


@pytest.fixture(scope="module")
def plain(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that holds the model without its artifact."""
    with LiveGateway(tmp_path_factory.mktemp("plain") / "data", "--no-announce") as running:
        running.push(made.model, "net")
        yield running


@pytest.fixture
def client(holder: LiveGateway) -> Iterator[GatewayClient]:
    found = acquire(holder.url, holder.token, trust=Trust())
    assert found.wait_settled(10) == "ready"
    yield found
    release(found)


def forced(gateway: LiveGateway, made: Made, split: str, **more: object) -> hybrid.InferenceSession:
    given = {"placement": f"split:{made.cut}", "codec": f"split:{split}", "fallback": False, "deadline_s": 20.0}
    options = hybrid.Options(**(given | more))  # type: ignore[arg-type]
    return hybrid.InferenceSession(str(made.model), gateway=gateway.url, token=gateway.token, options=options)


def refused(why: str) -> "pytest.RaisesExc[PlacementUnavailable]":
    return pytest.raises(PlacementUnavailable, match=why)


def placement(gateway: LiveGateway, made: Made, split: str) -> str:
    with forced(gateway, made, split) as session:
        session.run(None, feeds())
        assert session.report is not None
        assert session.report.codec == f"split:{split}"
        return session.report.placement


def latent_of(made: Made) -> np.ndarray:
    head = onnxruntime.InferenceSession(str(made.prepared.head_path(made.cut)))
    encoder = onnxruntime.InferenceSession(str(made.artifact.folder / "encoder.onnx"))
    return encoder.run(None, {encoder.get_inputs()[0].name: head.run([CROSSING], feeds())[0]})[0]


def request(made: Made, payload: bytes, **changes: object) -> InferRequest:
    wanted = InferRequest(
        inputs=(Tensor(spec=CROSSING_SPEC, codec="split:learned", payload=payload),),
        model_digest=made.artifact.manifest.model_digest,
        shape_key=SHAPE_KEY,
        cut=made.cut,
        split=made.digest("learned"),
    )
    return replace(wanted, **changes)  # type: ignore[arg-type]


def answered(client: GatewayClient, wanted: InferRequest) -> InferResponse:
    until_s = time.monotonic() + 10
    while True:
        try:
            return client.infer(wanted, stall_s=5, timeout_s=10).result(10)
        except Warming:
            assert time.monotonic() < until_s
            time.sleep(0.05)


def test_a_head_needs_nothing_of_the_gateway_a_decoder_does(plain: LiveGateway, made: Made) -> None:
    assert placement(plain, made, "int8") == "split"
    with forced(plain, made, "learned", deadline_s=3.0) as session, refused("at no gateway"):
        session.run(None, feeds())


def test_a_gateway_says_which_decoders_it_holds(holder: LiveGateway, client: GatewayClient, made: Made) -> None:
    offer = ask(client, made.artifact.manifest.model_digest, SHAPE_KEY)
    assert offer.splits == (made.digest("learned"),)
    assert ask(client, made.artifact.manifest.model_digest, '{"x":[1,3,32,32]}').splits == ()
    assert msgspec.json.decode(b'{"state": "ready"}', type=Offer).splits == ()  # an older gateway


def test_another_artifact_with_the_same_names(holder: LiveGateway, other: Made) -> None:
    assert placement(holder, other, "int8") == "split"
    with forced(holder, other, "learned", deadline_s=3.0) as session, refused("at no gateway"):
        session.run(None, feeds())


def test_a_payload_is_decoded_and_nothing_else(client: GatewayClient, made: Made, other: Made) -> None:
    prior = Prior.from_json((made.artifact.folder / "prior.json").read_bytes())
    payload = prior.encode(latent_of(made))
    good = answered(client, request(made, payload))
    assert good.outputs[0].to_array().shape == (1, 10)
    assert good.compute_s > 0
    refusals = [
        (UnknownSplit, {"split": other.digest("learned")}),
        (UnknownSplit, {"split": made.digest("int8")}),
        (UnknownSplit, {"split": "learned"}),
        (UnknownSplit, {"cut": made.prepared.table.interior[0].id, "inputs": (renamed(payload),)}),
        (TensorMismatch, {"split": ""}),
        (TensorMismatch, {"cut": "", "inputs": (Tensor.of("x", feeds()["x"]), *request(made, payload).inputs)}),
    ]
    for kind, changes in refusals:
        with pytest.raises(kind):
            answered(client, request(made, payload, **changes))


def renamed(payload: bytes) -> Tensor:
    spec = TensorSpec(name="c0", dtype="FP32", shape=CROSSING_SPEC.shape)
    return Tensor(spec=spec, codec="split:learned", payload=payload)


def test_damaged_payloads_are_refused(client: GatewayClient, made: Made) -> None:
    prior = Prior.from_json((made.artifact.folder / "prior.json").read_bytes())
    payload = prior.encode(latent_of(made))
    answered(client, request(made, payload))
    random = np.random.default_rng(0)
    n_refused = 0
    for damaged in [b"", payload[:-1], payload + b"\0", b"\xff" * 4000, *(random.bytes(n) for n in (1, 9, 300, 9000))]:
        with pytest.raises((TensorMismatch, BadMessage)):
            answered(client, request(made, damaged))
        n_refused += 1
    assert n_refused == 8
    for at in random.integers(0, len(payload), 12):  # a flipped bit may be another latent, or none
        flipped = bytearray(payload)
        flipped[at] ^= 1 << int(at) % 8
        try:
            found = answered(client, request(made, bytes(flipped))).outputs[0].to_array()
        except TensorMismatch:
            continue
        assert np.isfinite(found).all()
    answered(client, request(made, payload))  # the gateway is well


@pytest.mark.parametrize(("role", "shown"), [("encoder", "encoder of split"), ("prior", "prior of split")])
def test_damage_on_the_device_costs_that_split_alone(
    holder: LiveGateway, made: Made, tmp_path: Path, role: str, shown: str
) -> None:
    mine = made.copied(tmp_path / "net")
    damage(mine.artifact.path_of(getattr(mine.artifact.manifest.splits[1], role)))  # type: ignore[index]
    assert placement(holder, mine, "int8") == "split"
    with forced(holder, mine, "learned", deadline_s=3.0) as session:
        with pytest.raises(PlacementUnavailable):
            session.run(None, feeds())
        assert any(shown in candidate.reason for candidate in session.explain()), session.explain()


def test_a_gateway_that_lost_its_artifact_is_asked_anew(made: Made, tmp_path: Path) -> None:
    """It refuses by a typed error, the way is taken back, and the device answers; an int8 head needs no artifact."""
    data = tmp_path / "data"
    with LiveGateway(data, "--no-announce", "--no-auth") as running:
        running.push(made.artifact.folder, "net")
        with forced(running, made, "learned", fallback=True) as session:
            assert session.prepare(feeds(), timeout_s=20)
            wanted = session.run(None, feeds())
            assert session.report is not None
            assert session.report.placement == "split"
            running.stop()
            (data / "manifests" / f"{made.artifact.digest}.json").unlink()
            running.start()
            said = set()
            until_s = time.monotonic() + 15
            while "unknown_split" not in said and time.monotonic() < until_s:
                outputs = session.run(None, feeds())
                assert session.report.placement == "local"
                said.add((session.report.fallback or "").partition(":")[0])
                time.sleep(0.05)
            assert "unknown_split" in said, said
            assert np.abs(outputs[0] - wanted[0]).max() < 0.3 * np.abs(outputs[0]).max()
            assert not session.prepare(feeds(), timeout_s=1.0)
        assert placement(running, made, "int8") == "split"


def test_a_cut_that_the_model_does_not_have(holder: LiveGateway, made: Made, tmp_path: Path) -> None:
    splits = tuple(msgspec.structs.replace(split, cut="0" * 16) for split in made.artifact.manifest.splits)  # type: ignore[union-attr]
    strange = split_artifacts.with_splits(made, splits, tmp_path / "net")
    options = hybrid.Options(placement="split", fallback=False, deadline_s=20.0)
    with hybrid.InferenceSession(
        str(strange.model), gateway=holder.url, token=holder.token, options=options
    ) as session:
        session.run(None, feeds())
        assert session.report is not None
        assert session.report.codec in ("none", "lossless")
