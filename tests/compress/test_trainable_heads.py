"""`--head`: what can learn lies in a file of its own, in the original and in every variant that can have it so."""

import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest

from compression.errors import NotTrainable
from compression.training.heads import packed, unpacked
from edge_agent.install.rules import _differing
from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.folder import open_folder, verify
from hybrid.artifact.manifest import canonical_bytes, variant_files
from hybrid.compress import Job, Result, Watch, compress
from hybrid.compress.journal import Journal
from hybrid.compress.making.maker import Maker
from hybrid.compress.making.recipe import Recipe
from hybrid.compress.material import gathered
from hybrid.compress.timing.agent_timer import _in_one_piece
from hybrid.compress.uncompressed import base_of
from tests.compress import nets
from tests.compress.conftest import MAX_DROP, BySize

SAMPLE = {"x": nets.samples(1, 5)[0]}


@pytest.fixture(scope="module")
def made(net: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, list[str]]:
    """What a job with `--head auto` gives, and what it said."""
    out = tmp_path_factory.mktemp("head") / "small"
    job = Job(
        model=net, data=data / "x.npz", labels=data / "y.npy", out=out, max_drop=MAX_DROP, head="auto"
    )  # fmt: skip
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hybrid.compress.search.space.prunings", lambda _bench: ())
        return compress(job, Watch(said=said.append), timer=lambda _job: BySize()), said


def answered(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, SAMPLE)[0]


def test_original_and_int8_carry_the_same_head_and_run_from_the_folder(made, net):
    result, said = made
    assert result.artifact is not None
    artifact = open_folder(result.artifact.folder)
    verify(artifact)
    original, int8 = artifact.manifest.variants
    assert (original.files, original.trainable_files) == (("net.onnx", "head.bin"), ("head.bin",))
    assert (int8.files, int8.trainable_files) == (("int8/model.onnx", "int8/head.bin"), ("int8/head.bin",))
    assert original.feature_tensor == int8.feature_tensor == "f"
    assert artifact.manifest.files["head.bin"] == artifact.manifest.files["int8/head.bin"]
    assert artifact.manifest.model_digest == result.report.model_digest
    assert np.array_equal(answered(artifact.model_path), answered(net))
    assert answered(artifact.path_of("int8/model.onnx")).argmax() == answered(net).argmax()
    nodes = onnx.load(artifact.path_of("int8/model.onnx")).graph.node
    assert "QuantizeLinear" in {node.op_type for node in nodes}
    assert nodes[-1].name == "last"
    assert list(nodes[-1].input) == ["f", "wf", "bf"], "no DequantizeLinear before its weights"
    assert any("begins at last (Gemm), on 'f'" in line for line in said)
    assert any("begins at last (Gemm), on 'f'" in line for line in result.report.remarks)


def test_a_head_that_learned_is_all_that_differs_and_a_rounds_key_may_change_it(made, tmp_path):
    result, _ = made
    base = result.artifact
    learned = shutil.copytree(base.folder, tmp_path / "learned")
    proto = onnx.load(learned / "int8/model.onnx", load_external_data=False)
    arrays = {name: array + 1 for name, array in unpacked(proto, (learned / "head.bin").read_bytes()).items()}
    before = answered(base.path_of("int8/model.onnx"))
    files = dict(base.manifest.files)
    for name in ("head.bin", "int8/head.bin"):
        (learned / name).write_bytes(packed(proto, arrays))
        files[name] = msgspec.structs.replace(files[name], sha256=_sha256(learned / name))
    manifest = msgspec.structs.replace(base.manifest, files=files, version="2", sequence=2, base=base.digest)
    digest = digest_of_files(variant_files(manifest, manifest.variants[0]))
    manifest = msgspec.structs.replace(manifest, model_digest=digest)
    (learned / "manifest.json").write_bytes(canonical_bytes(manifest))
    verify(open_folder(learned))
    assert _differing(canonical_bytes(manifest), base.manifest_bytes) == ""
    assert not np.allclose(answered(learned / "int8/model.onnx"), before)


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_has_its_head_apart_keeps_it_so(made, job, by_size):
    result, _ = made
    again = compress(replace(job, model=result.artifact.folder, version="2"), timer=by_size)
    assert again.artifact is not None
    assert again.artifact.manifest.model_digest == result.artifact.manifest.model_digest
    assert [each.feature_tensor for each in again.artifact.manifest.variants] == ["f", "f"]


@pytest.mark.parametrize(
    ("head", "said"),
    [("c3", "there is no tensor 'c3'; near it c"), ("x", "the whole model"), ("y", "nothing stands on 'y'")],
)
def test_a_head_that_cannot_be_is_refused_before_any_work(job, by_size, head, said):
    with pytest.raises(NotTrainable, match=said):
        compress(replace(job, head=head), timer=by_size)
    assert list(job.out.parent.glob("small*")) == []


@pytest.fixture
def maker(job, tmp_path):
    base = base_of(replace(job, head="m"), tmp_path / "work")
    with Journal(tmp_path / "work", []) as journal:
        yield Maker(path=base.path, material=gathered(job, base.path), journal=journal, head=base.head)


def test_every_untrained_form_has_the_original_head(maker):
    """Pruned, with float fallback, repaired, with small weights alone: the head stays, and the body is what changes."""
    plain = Recipe(precision="int8")
    change = msgspec.structs.replace
    recipes = (
        Recipe(pruned="graph", ratio=0.25, multiple=4),
        change(plain, pruned="graph", ratio=0.25, multiple=4),
        change(plain, bias_corrected=True, equalized=True),
        change(plain, n_float=1),
        Recipe(precision="weights-16"),
    )
    head = maker.path.with_name("head.bin").read_bytes()
    bodies = {maker.path.read_bytes()}
    for recipe in recipes:
        path, told = maker.model(recipe)
        assert told.feature_tensor == "m", recipe.text
        assert path.with_name("head.bin").read_bytes() == head
        assert answered(path).shape == (1, 6)
        bodies.add(path.read_bytes())
    assert len(bodies) == 1 + len(recipes)


def test_a_box_times_a_model_in_one_piece(maker):
    whole = onnxruntime.InferenceSession(_in_one_piece(maker.path), providers=["CPUExecutionProvider"])
    assert np.array_equal(whole.run(None, SAMPLE)[0], answered(maker.path))


def test_where_bytes_are_wanted_pruning_saves_weights(maker, monkeypatch):
    from compression.errors import NotPrunable
    from compression.pruning import without_source

    seen: list[object] = []

    def caught(*_: object, saving: str, **_more: object) -> None:
        seen.append(saving)
        raise NotPrunable("seen")

    monkeypatch.setattr(without_source, "prune_graph", caught)
    for saving in ("macs", "weights"):
        with pytest.raises(NotPrunable):
            replace(maker, saving=saving).model(Recipe(pruned="graph", ratio=0.5, multiple=4))
    assert seen == ["macs", "weights"]


def test_a_rank_freezes_the_head_and_every_variant_has_the_same_update(
    net: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hybrid.compress.search.space.prunings", lambda _bench: ())
    job = Job(
        model=net, data=data / "x.npz", labels=data / "y.npy", out=tmp_path / "small", max_drop=MAX_DROP,
        head="auto", rank=1,
    )  # fmt: skip
    said: list[str] = []
    compress(job, Watch(said=said.append), timer=lambda _job: BySize())
    assert any("it stays: head.bin has updates of rank 1 beside " in line for line in said)
    manifest = open_folder(job.out).manifest
    original, int8 = (manifest.files[variant.trainable_files[0]] for variant in manifest.variants[:2])
    assert original.sha256 == int8.sha256
    assert np.array_equal(answered(open_folder(job.out).model_path), answered(net))
    with pytest.raises(NotTrainable, match="a rank is of a head that learns"):
        base_of(replace(job, head=""), tmp_path / "work")
