"""Splits part by part: what stays open of them, what a calibration says of them, how a box passes them on."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import onnxruntime
import pytest

from compression.tensor import TensorSpec
from hybrid.artifact.manifest import canonical_bytes, parse
from hybrid.artifact.publishers import create_key, own_key_path, read_key
from hybrid.artifact.splits import SplitFiles, splits_of
from hybrid.calibration.calibrate import Wish, calibrate, signature_of
from hybrid.calibration.permits import CalibrationFinder
from hybrid.calibration.record import parse_calibration
from hybrid.calibration.samples import open_samples
from hybrid.cli.main import main
from hybrid.errors import BadMessage, CorruptContent, ExitCode, ModelInvalid
from hybrid.route.departure import headed, outgoing
from hybrid.route.engine import Settings, open_piece
from hybrid.route.holding import Holding
from hybrid.route.route import Route
from hybrid.route.this_machine import ThisMachine
from hybrid.route.way import Crossing, Way
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Prospect
from hybrid.scouting import heads as heads_module
from hybrid.scouting.background import BackgroundEngine
from hybrid.scouting.heads import VARIABLE, OpenHeads, close
from hybrid.scouting.splits import Splits
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.split_coding import latent_shape
from tests.session import split_artifacts
from tests.session.split_artifacts import CROSSING, SHAPE, SHAPE_KEY, Made, feeds


@pytest.fixture
def engine(made: Made) -> BackgroundEngine:
    settings = Settings()
    return BackgroundEngine(open_piece(made.model, settings).run, partial(open_piece, settings=settings))


@pytest.fixture
def holding() -> Iterator[Holding]:
    """A gateway that is away."""
    client = acquire("http://127.0.0.1:9", None, trust=Trust())
    yield Holding(client, None, {}, ("none", "q8z"))
    release(client)


def named(made: Made, split_id: str) -> SplitFiles:
    return next(split for split in splits_of(made.artifact) if split.id == split_id)


def crossing(made: Made, holding: Holding, split_id: str = "") -> Crossing:
    split = named(made, split_id) if split_id else None
    found = Crossing(holding, made.prepared.table.get(made.cut), split, verified=True)
    codec = split.codec if split is not None else "none"
    prospect = Prospect(placement="split", cut=made.cut, codec=codec, gateway=holding.client.url)
    found.ways.append(Way(prospect, found))
    return found


def test_a_quantized_head_is_no_place_to_go_on_from(made, engine, holding, monkeypatch):
    monkeypatch.setattr(heads_module, "GAIN_RATIO", 0.0)  # the head of this net is light
    heads, route = OpenHeads(engine), Route((("x", SHAPE),), "latency", ThisMachine(n_cores=2, attempt_s=0.0))
    route.take_sample(feeds())
    route.reference, _ = engine.timed_whole(["y"], feeds(), n_runs=1)
    route.scheduler.profile_local(10.0, is_settled=True)
    crossings = [crossing(made, holding, split_id) for split_id in ("int8", "learned")]
    for one in crossings:
        heads.open(made.prepared, one, crossings)
    heads.go_on(made.prepared, route, ("y",), crossings)
    assert [one.rest is not None for one in crossings] == [False, True]
    here = headed(crossings[1].ways[0], feeds(), ("y",))
    np.testing.assert_array_equal(
        here.held[CROSSING],
        onnxruntime.InferenceSession(str(made.prepared.head_path(made.cut))).run([CROSSING], feeds())[0],
    )
    sent = outgoing(
        crossings[1].ways[0], here, ("y",), model_digest="d", shape_key=SHAPE_KEY, deadline_s=None, traceparent=""
    )
    assert sent.request.split == made.digest("learned")
    plain = headed(crossings[0].ways[0], feeds(), ("y",))
    sent = outgoing(
        crossings[0].ways[0], plain, ("y",), model_digest="d", shape_key=SHAPE_KEY, deadline_s=None, traceparent=""
    )
    assert (sent.request.split, sent.request.inputs[0].codec) == ("", "q8z")


def test_heads_and_encoders_count_against_the_budget(made, engine, holding, monkeypatch):
    monkeypatch.setattr(heads_module, "LEAST_BYTES", 0)
    monkeypatch.setenv(VARIABLE, "0.0001")
    for split_id in ("int8", "learned"):
        assert VARIABLE in OpenHeads(engine).obstacle(
            made.prepared, made.prepared.table.get(made.cut), named(made, split_id)
        )
    monkeypatch.setattr(heads_module, "LEAST_BYTES", 1 << 20)
    crossings = [crossing(made, holding, split_id) for split_id in ("", "learned", "int8")]
    heads = OpenHeads(engine)
    for one in crossings:
        assert not heads.open(made.prepared, one, crossings)
    assert crossings[1].head.run is crossings[0].head.run  # the bottleneck has the cut's own head
    assert crossings[0].head.coder is None
    assert heads.fitting(made.prepared, crossings) == crossings
    wanted = {one.head_id for one in crossings}
    assert len(wanted) == heads_module.MOST_HEADS == 2
    close(crossings[0])
    assert heads.open(made.prepared, crossings[0], crossings) is False
    assert crossings[0].head.run is crossings[1].head.run


def test_which_splits_a_session_considers(made, holding):
    ids = [(Options(), {"int8", "learned"}), (Options(codec="split:int8"), {"int8"}), (Options(codec="q8"), set())]
    ids += [(Options(placement=f"split:{made.cut}"), {"int8", "learned"}), (Options(placement="offload"), set())]
    ids += [(Options(placement=f"split:{'0' * 16}"), set())]
    tails = dict.fromkeys([made.cut])
    whole = Holding(holding.client, None, tails, ("none", "q8z"), (made.digest("learned"),))
    for options, wanted in ids:
        found = Splits(splits_of(made.artifact), options).at(made.prepared, whole)
        assert {split.id for _, split in found} == wanted
    every = Splits(splits_of(made.artifact), Options())
    older = Holding(holding.client, None, tails, ("none", "lossless"))
    assert every.at(made.prepared, older) == []
    assert every.at(made.prepared, Holding(holding.client, None, {}, whole.codecs, whole.splits)) == []
    assert every.at(None, whole) == []


# -- the manifest's word, and the files'


def test_a_splits_digest_is_of_all_that_it_is(made):
    manifest = made.artifact.manifest
    plain, learned = manifest.splits
    changed = [
        msgspec.structs.replace(plain, carrier="q8"),
        msgspec.structs.replace(plain, id="other"),
        msgspec.structs.replace(plain, shape_key='{"x":[2,3,64,64]}'),
        learned,
    ]
    digests = {made.digest("int8")}
    for number, split in enumerate(changed):
        found = msgspec.structs.replace(manifest, splits=(split,))
        (files,) = splits_of(replace(made.artifact, manifest=found))
        digests.add(files.digest)
        assert len(digests) == number + 2
    with pytest.raises(BadMessage, match="carrier"):
        canonical_bytes(msgspec.structs.replace(manifest, splits=(msgspec.structs.replace(plain, carrier="Q 8"),)))
    older = json.loads(made.artifact.manifest_bytes)
    del older["splits"][0]["carrier"]
    assert parse(json.dumps(older).encode()).splits[0].carrier == "lossless"


def test_files_are_compared_with_the_manifest(made, tmp_path):
    mine = made.copied(tmp_path / "net")
    split = named(mine, "learned")
    assert split.prior_bytes() == (mine.artifact.folder / "prior.json").read_bytes()
    (mine.artifact.folder / "prior.json").write_bytes(b"{" * split.files["prior"].size)
    with pytest.raises(CorruptContent, match="prior of split 'learned'"):
        split.prior_bytes()
    (mine.artifact.folder / "encoder.onnx").unlink()
    with pytest.raises(ModelInvalid, match="encoder"):
        split.graph_path("encoder")


def test_a_latent_is_no_larger_than_it_can_be():
    spec = TensorSpec(name="t", dtype="FP32", shape=(1, 4, 8, 8))
    assert latent_shape([1, 4, 8, 8], spec, "a decoder") == (1, 4, 8, 8)
    for given in ([1, 4, "h", 8], [1, 4, None, 8], [1, 4096, 8, 8]):
        with pytest.raises(ModelInvalid, match="a decoder: its latent is"):
            latent_shape(given, spec, "a decoder")


# -- calibrated


def test_a_calibration_has_a_cell_for_each_split(made, tmp_path):
    np.savez(tmp_path / "x.npz", x=np.stack([feeds(seed)["x"] for seed in range(8)]))
    samples = open_samples(tmp_path / "x.npz", signature_of(made.model)[0])
    digest = made.artifact.manifest.model_digest
    wish = Wish(codecs=("fp16",), splits=splits_of(made.artifact), metric="fidelity", tolerance=0.03)
    found = calibrate(made.model, digest, samples, wish, cache=tmp_path / "graphs", drafts=tmp_path / "drafts")
    cells = {cell.codec: cell for cell in found.cells if cell.cut == made.cut}
    assert set(cells) == {"fp16", "split:int8", "split:learned"}
    assert {name: cell.split for name, cell in cells.items()} == {
        "fp16": "",
        "split:int8": made.digest("int8"),
        "split:learned": made.digest("learned"),
    }
    assert all(
        cell.is_lossy and cell.n == 8 and cell.n_bytes < cell.raw_bytes / 2 for cell in cells.values() if cell.split
    )
    assert cells["split:int8"].drop == 0.0
    assert cells["split:learned"].sqnr_db < cells["split:int8"].sqnr_db
    again = calibrate(made.model, digest, samples, wish, cache=tmp_path / "graphs", drafts=tmp_path / "drafts")
    assert again.cells == found.cells  # all of it was known
    assert parse_calibration(found.content) == found


def test_a_permit_holds_for_the_files_that_were_measured(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    create_key(own_key_path())
    mine = made.copied(tmp_path / "net")
    split_artifacts.permit(mine, read_key(own_key_path()), "int8", drop_high=0.004)
    finder = CalibrationFinder(mine.model, mine.artifact.manifest.model_digest)
    finder.look()
    assert finder.drop(SHAPE_KEY, mine.cut, "split:int8", mine.digest("int8")) == pytest.approx(0.004)
    assert finder.drop(SHAPE_KEY, mine.cut, "split:int8", mine.digest("learned")) is None
    assert finder.drop(SHAPE_KEY, mine.cut, "split:int8") is None
    assert finder.codecs(SHAPE_KEY, mine.cut) == ()


def test_the_command_measures_an_artifacts_splits(made, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "x.npz", x=np.stack([feeds(seed)["x"] for seed in range(6)]))
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    words = [
        "calibrate",
        str(made.artifact.folder),
        "--data",
        str(tmp_path / "x.npz"),
        "--out",
        str(tmp_path),
        "--json",
    ]
    assert main([*words, "--codecs", "split:int8,q8", "--cuts", made.cut]) == ExitCode.OK
    told = json.loads(capsys.readouterr().out)["data"]
    cells = {cell["codec"]: cell for cell in told["calibrations"][0]["cells"]}
    assert set(cells) == {"split:int8", "q8"}
    assert cells["split:int8"]["split"] == made.digest("int8")
    assert main([*words, "--codecs", "split:other"]) == ExitCode.NOT_FOUND
    assert "split:int8, split:learned" in capsys.readouterr().out
