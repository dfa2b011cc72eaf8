"""Calibrations travel with their version: pushed with it, pulled with it, in its zip, each for its own shapes."""

import itertools
import json
from dataclasses import replace

import msgspec
import pytest

from hybrid.artifact.attachments import attach, attachments_in
from hybrid.artifact.folder import from_onnx, open_folder, write_folder
from hybrid.artifact.manifest import canonical_bytes
from hybrid.artifact.signature import public_key_of
from hybrid.artifact.stored_zip import pack, unpack
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.permits import CalibrationFinder, own_folder
from hybrid.calibration.record import Calibration, Cell
from hybrid.errors import ExitCode
from tests import small_models

_numbers = itertools.count(71)
"""Each test has models of its own, since one gateway serves all."""

SHAPES = {'{"x":[1,64]}': 0.001, '{"x":[4,64]}': 0.004}


def word(digest: str, shape_key: str, drop_high: float, **more: object) -> Calibration:
    given = {"model_digest": digest, "metric": "agreement", "n_samples": 500, "data_digest": "d" * 64, "made_s": 1.0}
    cell = Cell(cut="", codec="fp16", n=500, drop=0.0, drop_low=0.0, drop_high=drop_high)
    return Calibration(shape_key=shape_key, cells=(cell,), **(given | more))


@pytest.fixture
def artifact(tmp_path, own_key):
    """A version with a signed calibration for each of two shapes, an unsigned one, and a file that is none."""
    number = next(_numbers)
    bare = from_onnx(small_models.mlp(tmp_path / "mlp.onnx", seed=number), f"along{number}", "1")
    made = write_folder(bare, tmp_path / "artifact")
    for shape_key, drop_high in SHAPES.items():
        attach(made.folder, as_attachment(word(made.manifest.model_digest, shape_key, drop_high), own_key))
    attach(made.folder, as_attachment(word(made.manifest.model_digest, '{"x":[9,64]}', 0.1), None))
    (made.folder / "attachments" / "calibration" / "original" / f"{'0' * 64}.json").write_bytes(b"{")
    return made


def permitted(artifact) -> dict[str, float | None]:
    found = CalibrationFinder(artifact.model_path, artifact.manifest.model_digest)
    found.look()
    return {shape_key: found.drop(shape_key, "", "fp16") for shape_key in SHAPES}


@pytest.fixture
def told(hybrid_here):
    def run(*words: str) -> dict:
        done = hybrid_here(*words, "--json")
        assert done.returncode == ExitCode.OK, done.stdout
        return json.loads(done.stdout)["data"]

    return run


def test_each_shape_has_its_own_word(artifact):
    assert permitted(artifact) == SHAPES


def test_calibrations_go_along_with_a_push_and_come_along_with_a_pull(gateway, artifact, tmp_path, monkeypatch, told):
    """Pushed again, nothing doubles; on another machine they count once the key is trusted."""
    monkeypatch.setenv("HYBRID_TOKEN", gateway.token)
    monkeypatch.setenv("HYBRID_GATEWAY", gateway.url)
    attach(own_folder(artifact.manifest.model_digest), as_attachment(word("e" * 64, '{"x":[1,64]}', 0.1), None))
    for is_new in (True, False):
        pushed = told("models", "push", str(artifact.folder), "--name", artifact.manifest.name)
        assert pushed["is_new"] == is_new
        assert (pushed["attachments"]["n"], pushed["attachments"]["unsigned"]) == (2, 1)
        assert len(pushed["attachments"]["refused"]) == 1
    trusted = public_key_of_own()
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "another machine"))
    pulled = told("models", "pull", artifact.manifest.name, "--out", str(tmp_path / "out"))
    assert len(pulled["attachments"]) == 2
    there = open_folder(tmp_path / "out" / artifact.manifest.name / "1")
    sent, came = (
        {(a.content, a.signature) for a in attachments_in(one.folder, one.manifest.model_digest, "calibration")}
        for one in (artifact, there)
    )
    assert came == {(content, signature) for content, signature in sent if signature is not None}
    assert set(permitted(there).values()) == {None}
    monkeypatch.setenv("HYBRID_PUBLISHERS", trusted)
    assert permitted(there) == SHAPES


def public_key_of_own() -> str:
    from hybrid.artifact.publishers import own_key_path, read_key

    return public_key_of(read_key(own_key_path())).hex()


def test_a_bare_models_own_calibrations_go_along(gateway, tmp_path, own_key, monkeypatch, told):
    model = small_models.mlp(tmp_path / "bare.onnx", seed=next(_numbers))
    digest = from_onnx(model, "bare", "1").manifest.model_digest
    attach(own_folder(digest), as_attachment(word(digest, '{"x":[1,64]}', 0.002), own_key))
    monkeypatch.setenv("HYBRID_TOKEN", gateway.token)
    pushed = told("models", "push", str(model), "--name", "bare", "--gateway", gateway.url)
    assert pushed["attachments"] == {"n": 1, "unsigned": 0, "refused": []}
    pulled = told("models", "pull", "bare", "--gateway", gateway.url)
    assert len(pulled["attachments"]) == 1


def test_a_zip_carries_them_also_where_the_version_was_unpacked_before(artifact, tmp_path, own_key):
    (tmp_path / "x").mkdir()
    pack(artifact, tmp_path / "x" / "one.zip")
    first = unpack(tmp_path / "x" / "one.zip", tmp_path / "unpacked")
    assert permitted(first) == SHAPES
    late = word(artifact.manifest.model_digest, '{"x":[16,64]}', 0.003, made_s=2.0)
    attach(artifact.folder, as_attachment(late, own_key))
    pack(artifact, tmp_path / "x" / "two.zip")
    again = unpack(tmp_path / "x" / "two.zip", tmp_path / "unpacked")
    assert again.folder == first.folder
    found = CalibrationFinder(again.model_path, again.manifest.model_digest)
    found.look()
    assert found.drop('{"x":[16,64]}', "", "fp16") == 0.003


def test_a_packed_bare_model_takes_nothing_along_that_lies_beside_it(tmp_path, own_key):
    bare = from_onnx(small_models.mlp(tmp_path / "mlp.onnx"), "mlp", "1")
    attach(tmp_path, as_attachment(word(bare.manifest.model_digest, '{"x":[1,64]}', 0.001), own_key))
    pack(bare, tmp_path / "bare.zip")
    assert not (unpack(tmp_path / "bare.zip", tmp_path / "unpacked").folder / "attachments").exists()


def test_another_version_of_the_same_model_has_the_same_word(gateway, artifact, tmp_path, monkeypatch, told):
    """They are about the model's digest: a new version that changes nothing in it needs no new calibration."""
    monkeypatch.setenv("HYBRID_TOKEN", gateway.token)
    told("models", "push", str(artifact.folder), "--name", artifact.manifest.name, "--gateway", gateway.url)
    manifest = msgspec.structs.replace(artifact.manifest, version="2", sequence=2)
    other = replace(artifact, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    second = write_folder(other, tmp_path / "second")
    pushed = told("models", "push", str(second.folder), "--name", artifact.manifest.name, "--gateway", gateway.url)
    assert (pushed["is_new"], pushed["attachments"]["n"]) == (True, 0)
    wanted = f"{artifact.manifest.name}:2"
    pulled = told("models", "pull", wanted, "--gateway", gateway.url, "--out", str(tmp_path / "out"))
    assert len(pulled["attachments"]) == 2
