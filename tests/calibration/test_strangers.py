"""A manifest that somebody else may have laid above a model vouches for nobody; one that its owner wrote does."""

import os
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hybrid.artifact.attachments import attach
from hybrid.artifact.digest import HashedFile, digest_of_files
from hybrid.artifact.folder import from_onnx, write_papers
from hybrid.artifact.manifest import canonical_bytes
from hybrid.artifact.signature import new_private_key, sign
from hybrid.calibration.calibrate import as_attachment
from hybrid.calibration.permits import CalibrationFinder, artifact_of
from hybrid.calibration.record import Calibration, Cell
from tests import small_models

SHAPES = '{"x":[1,64]}'
STRANGER, OTHER = 54321, 54322
"""Users of whom this machine knows nothing."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A signed artifact in `shared/`, whose model lies in a folder below, and a calibration by its publisher."""
    shared = tmp_path / "shared"
    (shared / "mine").mkdir(parents=True)
    path = small_models.mlp(shared / "mine" / "mlp.onnx")
    bare, publisher = from_onnx(path, "mlp", "1"), new_private_key()
    entry = bare.manifest.files["mlp.onnx"]
    manifest = msgspec.structs.replace(
        bare.manifest,
        files={"mine/mlp.onnx": entry},
        variants=(msgspec.structs.replace(bare.manifest.variants[0], files=("mine/mlp.onnx",)),),
        model_digest=digest_of_files([HashedFile(name="mlp.onnx", size=entry.size, sha256=entry.sha256)]),
    )
    artifact = replace(bare, folder=shared, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    write_papers(artifact.signed(sign(artifact.manifest_bytes, publisher)), shared)
    cells = (Cell(cut="", codec="fp16", n=500, drop=0.0, drop_low=0.0, drop_high=0.004),)
    word = Calibration(
        model_digest=manifest.model_digest, shape_key=SHAPES, metric="agreement", n_samples=500,
        data_digest="d" * 64, cells=cells,
    )  # fmt: skip
    attach(shared, as_attachment(word, publisher))
    for place in (shared, path.parent, path, shared / "manifest.json", shared / "manifest.sig"):
        place.chmod(0o755 if place.is_dir() else 0o644)
    return path


def permits(model: Path) -> bool:
    found = CalibrationFinder(model, from_onnx(model, "mlp", "1").manifest.model_digest)
    found.look()
    return found.codecs(SHAPES, "") == ("fp16",)


def test_an_artifact_of_ones_own_vouches(model):
    assert permits(model)


@pytest.mark.parametrize("mode", [0o1777, 0o1775, 0o777])
def test_a_folder_in_which_others_may_lay_a_manifest_vouches_for_nobody(model, mode):
    (model.parent.parent).chmod(mode)
    assert not permits(model)


@pytest.mark.parametrize("paper", ["manifest.json", "manifest.sig"])
@pytest.mark.parametrize("mode", [0o646, 0o664])
def test_papers_that_others_may_write_vouch_for_nobody(model, paper, mode):
    (model.parent.parent / paper).chmod(mode)
    assert not permits(model)


def test_a_link_that_leads_to_papers_elsewhere_vouches_for_nobody(model, tmp_path):
    paper = model.parent.parent / "manifest.json"
    paper.symlink_to(paper.rename(tmp_path / "elsewhere.json"))
    assert not permits(model)


def test_who_may_change_the_model_may_vouch_for_it(model):
    """Everything for the group, as with a umask of 002; or a folder for all: what is above adds no danger."""
    for place in (model, model.parent, model.parent.parent, *model.parent.parent.glob("manifest.*")):
        place.chmod(place.stat().st_mode | 0o020)
    assert permits(model)
    model.parent.chmod(0o777)
    model.parent.parent.chmod(0o777)
    assert permits(model)


def test_a_sticky_folder_for_all_is_nobodys_although_the_model_lies_in_it(tmp_path, model):
    """As a model and a manifest in /tmp: all may add, none may change what is there."""
    folder = model.parent.parent
    bare = from_onnx(model.rename(folder / "mlp.onnx"), "mlp", "1")
    model.parent.rmdir()
    write_papers(bare, folder)
    assert artifact_of(folder / "mlp.onnx") is not None
    folder.chmod(0o1777)
    assert artifact_of(folder / "mlp.onnx") is None


def test_a_model_behind_a_link_belongs_to_the_artifact_where_it_really_lies(model, tmp_path):
    (tmp_path / "link").symlink_to(model.parent)
    assert permits(tmp_path / "link" / "mlp.onnx")
    model.parent.parent.chmod(0o1777)
    assert not permits(tmp_path / "link" / "mlp.onnx")


@pytest.mark.root
@pytest.mark.parametrize("place", ["", "manifest.json", "manifest.sig"])
def test_papers_of_another_user_vouch_for_nobody(model, place):
    os.chown(model.parent.parent / place, STRANGER, STRANGER)
    assert not permits(model)


@pytest.mark.root
def test_the_models_owner_vouches_also_to_root(model):
    """As in a container that runs as root on a folder of its user; a third one's papers count for nothing."""
    folder = model.parent.parent
    for place in (model, model.parent, folder, *folder.glob("manifest.*")):
        os.chown(place, STRANGER, STRANGER)
    assert permits(model)
    os.chown(folder / "manifest.sig", OTHER, OTHER)
    assert not permits(model)
