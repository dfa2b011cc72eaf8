"""What was learned comes home: nothing but the head and the golden outputs differ, and boxes accept it."""

import hashlib
import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from edge_agent.install.golden import compare, golden_arrays
from edge_agent.install.rules import Papers, check_learned
from hybrid.artifact.folder import Artifact, open_folder, verify
from hybrid.artifact.manifest import FileEntry, Variant, canonical_bytes, parse
from hybrid.artifact.signature import key_id, new_private_key, public_key_of, sign
from hybrid.artifact.trainable import trainable_artifact
from hybrid.errors import (
    BadMessage,
    Forbidden,
    GoldenDiffers,
    ModelUnsupported,
    ModelUntrainable,
    NotFound,
    TensorMismatch,
    TrainingDiverged,
)
from hybrid.federated.campaign import Training
from hybrid.federated.candidate import Candidate, candidate
from hybrid.federated.learning.head import open_head
from hybrid.federated.lineage import campaign_of, training_of
from tests.training.test_heads import net

PUBLISHER, ROUNDS = new_private_key(), new_private_key()


class Keys:
    def trusted(self, role: str) -> dict[str, bytes]:
        public = public_key_of(PUBLISHER if role == "publisher" else ROUNDS)
        return {key_id(public): public}


@pytest.fixture
def base(tmp_path: Path) -> Artifact:
    onnx.save(net(), tmp_path / "net.onnx")
    return trainable_artifact(tmp_path / "net.onnx", tmp_path / "base", name="net", head="feature")


def learned_arrays(base: Artifact, variant: str = "original", by: float = 0.5) -> dict[str, np.ndarray]:
    head = open_head(base.folder, base.manifest, variant)
    return {name: array + np.float32(by) for name, array in head.arrays.items()}


def laid_out(base: Artifact, found: Candidate, folder: Path) -> Artifact:
    """The candidate as a gateway would store it."""
    shutil.copytree(base.folder, folder)
    (folder / "manifest.json").write_bytes(found.manifest_bytes)
    for name, content in found.files.items():
        (folder / name).write_bytes(content)
    made = open_folder(folder)
    verify(made)
    return made


def accepted(base: Artifact, made: Artifact) -> None:
    papers = Papers(manifest=made.manifest_bytes, signature=sign(made.manifest_bytes, ROUNDS))
    first = Papers(manifest=base.manifest_bytes, signature=sign(base.manifest_bytes, PUBLISHER))
    check_learned(papers, (first,), Keys())


def test_only_the_head_and_the_golden_outputs_differ(base: Artifact, tmp_path: Path) -> None:
    learned = learned_arrays(base)
    found = candidate(base, "original", learned, version="1.r3-k3p9", sequence=2, campaign="k3p9", detail="rounds=3")
    assert set(found.files) == {"head.bin", "golden/output-0.npy"}
    assert (found.sharing, found.unmatched, found.unchecked) == (("original",), (), ())
    made = laid_out(base, found, tmp_path / "made")
    accepted(base, made)
    for name in base.manifest.files:
        same = base.path_of(name).read_bytes() == made.path_of(name).read_bytes()
        assert same == (name not in found.files), name
    assert made.manifest.base == base.digest
    assert made.manifest.lineage[-1] == msgspec.structs.replace(
        made.manifest.lineage[-1], step="rounds:k3p9", artifact_digest=base.digest, detail="rounds=3"
    )
    assert (made.manifest.version, made.manifest.sequence) == ("1.r3-k3p9", 2)
    assert made.manifest.model_digest != base.manifest.model_digest
    assert made.digest == found.digest
    golden = made.manifest.golden
    assert golden is not None
    inputs, outputs = (golden_arrays(Path.read_bytes, made.folder, paths) for paths in (golden.inputs, golden.outputs))
    answer = onnxruntime.InferenceSession(made.model_path).run(None, inputs)[0]
    compare({"scores": answer}, outputs, 1e-6, "net")
    assert np.allclose(open_head(made.folder, made.manifest, "original").arrays["b.b"], learned["b.b"])


def test_how_layers_are_trained_that_stay_on_boxes_is_told_to_those_that_have_none(base: Artifact) -> None:
    plain, told = Training(epochs=3), Training(epochs=3, learning_rate=0.3, personal=("a.*",))
    learned = learned_arrays(base)
    for training, wanted in ((None, None), (plain, None), (told, told)):
        found = candidate(base, "original", learned, version="2", sequence=2, campaign="k3p9", training=training)
        manifest = parse(found.manifest_bytes)
        assert (campaign_of(manifest), training_of(manifest)) == ("k3p9", wanted)
        assert (b'"training"' in found.manifest_bytes) == (wanted is not None)
    for wrong in ({"epochs": "three", "personal": ["a"]}, {"personal": 3}, {}):
        step = msgspec.structs.replace(manifest.lineage[-1], training=wrong)
        assert training_of(msgspec.structs.replace(manifest, lineage=(step,))) is None, "as if nothing were said"
    assert (campaign_of(base.manifest), training_of(base.manifest)) == ("", None)


def test_what_learned_learns_again_from_the_same_publishers_base(base: Artifact, tmp_path: Path) -> None:
    first = laid_out(base, candidate(base, "original", learned_arrays(base), version="2", sequence=2), tmp_path / "1")
    second = candidate(first, "original", learned_arrays(first), version="3", sequence=3)
    assert second.manifest.base == base.digest
    assert [step.artifact_digest for step in second.manifest.lineage] == [base.digest, first.digest]
    accepted(base, laid_out(first, second, tmp_path / "2"))


def test_the_same_head_gives_the_same_bytes(base: Artifact) -> None:
    one, other = (candidate(base, "original", learned_arrays(base), version="2", sequence=2) for _ in range(2))
    assert one == other


def test_fields_that_this_library_does_not_know_stay(base: Artifact) -> None:
    fields = json.loads(base.manifest_bytes) | {"later": {"x": [1, 2.5]}}
    data = json.dumps(fields, indent=1).encode()
    newer = Artifact(folder=base.folder, manifest=parse(data), manifest_bytes=data)
    found = candidate(newer, "original", learned_arrays(base), version="2", sequence=2)
    assert json.loads(found.manifest_bytes)["later"] == {"x": [1, 2.5]}
    signature = sign(found.manifest_bytes, ROUNDS)
    first = Papers(manifest=data, signature=sign(data, PUBLISHER))
    check_learned(Papers(manifest=found.manifest_bytes, signature=signature), (first,), Keys())
    with pytest.raises(Forbidden, match="later"):
        tampered = found.manifest_bytes.replace(b"2.5", b"2.6")
        check_learned(Papers(manifest=tampered, signature=sign(tampered, ROUNDS)), (first,), Keys())


def test_personal_layers_stay_as_the_base_has_them(base: Artifact) -> None:
    shared = {name: array for name, array in learned_arrays(base).items() if name.startswith("a.")}
    found = candidate(base, "original", shared, version="2", sequence=2)
    old, new = (base.folder / "head.bin").read_bytes(), found.files["head.bin"]
    tail = open_head(base.folder, base.manifest, "original").arrays["b.w"].nbytes + 40
    assert old[-tail:] == new[-tail:]
    assert old[:-tail] != new[:-tail]


def with_variant(base: Artifact, folder: Path, *, shift: float, golden: bool = True, blur: float = 0) -> Artifact:
    """A second variant in a folder of its own, whose head is the first one's, or moved, and whose body may be off."""
    shutil.copytree(base.folder, folder)
    (folder / "int8").mkdir()
    for name in ("net.onnx", "head.bin"):
        shutil.copyfile(folder / name, folder / "int8" / name)
    if blur:
        model = onnx.load(folder / "net.onnx", load_external_data=False)
        weight = next(one for one in model.graph.initializer if one.name == "conv.w")
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1 + blur), "conv.w"))
        (folder / "int8" / "net.onnx").write_bytes(model.SerializeToString())
    head = np.frombuffer((folder / "head.bin").read_bytes(), "<f4") + np.float32(shift)
    if shift:
        (folder / "int8" / "head.bin").write_bytes(head.tobytes())
    files = dict(base.manifest.files)
    for name in ("int8/net.onnx", "int8/head.bin"):
        content = (folder / name).read_bytes()
        files[name] = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    variant = Variant(
        id="int8", engine="onnxruntime", precision="int8", files=("int8/net.onnx", "int8/head.bin"),
        feature_tensor="feature", trainable_files=("int8/head.bin",),
    )  # fmt: skip
    manifest = msgspec.structs.replace(base.manifest, files=files, variants=(*base.manifest.variants, variant))
    if not golden:
        manifest = msgspec.structs.replace(
            manifest, golden=None, files={k: v for k, v in files.items() if "golden" not in k}
        )
        shutil.rmtree(folder / "golden")
    (folder / "manifest.json").write_bytes(canonical_bytes(manifest))
    return open_folder(folder)


@pytest.mark.parametrize("variant", ["original", "int8"])
def test_variants_that_shared_a_head_go_on_sharing_it(base: Artifact, tmp_path: Path, variant: str) -> None:
    both = with_variant(base, tmp_path / "both", shift=0)
    found = candidate(both, variant, learned_arrays(both, variant), version="2", sequence=2)
    assert set(found.sharing) == {"original", "int8"}
    assert found.files["head.bin"] == found.files["int8/head.bin"]
    assert found.unmatched == ()
    accepted(both, laid_out(both, found, tmp_path / "made"))


def test_a_variant_with_its_own_head_keeps_it_and_is_told(base: Artifact, tmp_path: Path) -> None:
    both = with_variant(base, tmp_path / "both", shift=1e-5)
    found = candidate(both, "original", learned_arrays(both), version="2", sequence=2)
    assert (found.sharing, found.unmatched) == (("original",), ("int8",))
    assert set(found.files) == {"head.bin", "golden/output-0.npy"}
    with pytest.raises(GoldenDiffers, match="let that one learn"):
        candidate(both, "int8", learned_arrays(both, "int8"), version="2", sequence=2)


@pytest.mark.parametrize("variant", ["original", "int8"])
def test_a_variant_that_never_gave_the_golden_outputs_may_share_what_was_learned(
    base: Artifact, tmp_path: Path, variant: str
) -> None:
    """As int8 beside the golden outputs of float32."""
    both = with_variant(base, tmp_path / "both", shift=0, blur=0.05)
    found = candidate(both, variant, learned_arrays(both, variant), version="2", sequence=2)
    assert set(found.sharing) == {"original", "int8"}
    assert found.unmatched == ("int8",)
    accepted(both, laid_out(both, found, tmp_path / "made"))


def test_a_second_variant_learns_alone_where_nothing_is_golden(base: Artifact, tmp_path: Path) -> None:
    both = with_variant(base, tmp_path / "both", shift=0.01, golden=False)
    found = candidate(both, "int8", learned_arrays(both, "int8"), version="2", sequence=2)
    assert set(found.files) == {"int8/head.bin"}
    assert found.manifest.model_digest == both.manifest.model_digest
    accepted(both, laid_out(both, found, tmp_path / "made"))


def test_a_first_variant_whose_engine_is_not_here_is_told(base: Artifact) -> None:
    far = msgspec.structs.replace(base.manifest.variants[0], requires={"provider": "CUDAExecutionProvider"})
    manifest = msgspec.structs.replace(base.manifest, variants=(far,))
    moved = Artifact(folder=base.folder, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    with pytest.raises(ModelUnsupported, match="CUDAExecutionProvider"):
        candidate(moved, "original", learned_arrays(base), version="2", sequence=2)
    both = msgspec.structs.replace(base.manifest.variants[0], id="gpu", requires=far.requires)
    manifest = msgspec.structs.replace(base.manifest, variants=(base.manifest.variants[0], both))
    moved = Artifact(folder=base.folder, manifest=manifest, manifest_bytes=canonical_bytes(manifest))
    assert candidate(moved, "original", learned_arrays(base), version="2", sequence=2).unchecked == ("gpu",)


def test_what_cannot_be_is_refused(base: Artifact) -> None:
    learned = learned_arrays(base)
    with pytest.raises(NotFound, match="no variant"):
        candidate(base, "int8", learned, version="2", sequence=2)
    with pytest.raises(TensorMismatch, match="no tensor of this head"):
        candidate(base, "original", {"c.w": learned["b.b"]}, version="2", sequence=2)
    with pytest.raises(TensorMismatch, match="the layout says"):
        candidate(base, "original", {"b.b": learned["b.b"][:3]}, version="2", sequence=2)
    with pytest.raises(TrainingDiverged, match="not finite"):
        candidate(base, "original", {"b.b": learned["b.b"] * np.float32("nan")}, version="2", sequence=2)
    with pytest.raises(BadMessage, match="version"):
        candidate(base, "original", learned, version="No Version", sequence=2)
    plain = msgspec.structs.replace(
        base.manifest, variants=(msgspec.structs.replace(base.manifest.variants[0], trainable_files=()),)
    )
    bare = Artifact(folder=base.folder, manifest=plain, manifest_bytes=canonical_bytes(plain))
    with pytest.raises(ModelUntrainable, match="trainable files"):
        candidate(bare, "original", learned, version="2", sequence=2)
