"""A head of low rank, end to end: it begins as nothing, its update alone learns, and it comes home as a version."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from typer.testing import CliRunner

from compression.errors import NotTrainable
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.heads import separate_head
from edge_agent.install.rules import Papers, check_learned
from hybrid.artifact.folder import Artifact, open_folder, verify
from hybrid.artifact.signature import sign
from hybrid.artifact.trainable import separated, trainable_artifact
from hybrid.cli.models import app
from hybrid.federated.campaign import Training
from hybrid.federated.candidate import candidate
from hybrid.federated.learning.body import Body
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import Head, open_head
from hybrid.federated.learning.training import Start, train
from tests.federated.test_candidate import PUBLISHER, ROUNDS, Keys
from tests.training.test_heads import IMAGES, net, run

LABELS = np.arange(8) % 10


def answered(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": IMAGES})[0]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Artifact:
    return trainable_artifact(model, tmp_path / "base", name="net", head="feature", rank=2)


def learned_by(head: Head) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The arrays after training on the images, and the features of these."""
    features = Body(head).features({"image": IMAGES})
    examples = Examples(features, LABELS)
    found = train(head.program, head.layout, examples, Training(epochs=40), start=Start(shared=head.vector))
    assert found.loss_after < found.loss_before - 1
    assert len(found.delta) == len(head.vector)
    return head.layout.arrays(head.vector + found.delta), features


def test_it_begins_as_the_model_and_weighs_a_fraction(model: Path, base: Artifact, tmp_path: Path) -> None:
    verify(base)
    [variant] = base.manifest.variants
    assert (variant.feature_tensor, variant.trainable_files) == ("feature", ("head.bin",))
    assert np.array_equal(answered(base.model_path), run(net()))
    head = open_head(base.folder, base.manifest, "original")
    assert sorted(head.layout.names) == [f"{of}/lora_{part}" for of in ("hidden", "product") for part in "ab"]
    assert not any(array.any() for name, array in head.arrays.items() if name.endswith("lora_b"))
    assert base.manifest.files["head.bin"].size == 4 * 2 * ((32 + 64) + (64 + 10)) == 4 * len(head.vector)
    whole = trainable_artifact(model, tmp_path / "whole", name="net", head="feature")
    assert base.manifest.files["head.bin"].size < 0.2 * whole.manifest.files["head.bin"].size
    again = trainable_artifact(model, tmp_path / "again", name="net", head="feature", rank=2)
    assert again.digest == base.digest


def test_what_its_update_learned_comes_home_and_nothing_else_changes(base: Artifact, tmp_path: Path) -> None:
    head = open_head(base.folder, base.manifest, "original")
    arrays, features = learned_by(head)
    found = candidate(base, "original", arrays, version="2", sequence=2)
    assert set(found.files) == {"head.bin", "golden/output-0.npy"}
    shutil.copytree(base.folder, tmp_path / "made")
    (tmp_path / "made" / "manifest.json").write_bytes(found.manifest_bytes)
    for name, content in found.files.items():
        (tmp_path / "made" / name).write_bytes(content)
    made = open_folder(tmp_path / "made")
    verify(made)
    assert made.model_path.read_bytes() == base.model_path.read_bytes()
    papers = Papers(manifest=found.manifest_bytes, signature=sign(found.manifest_bytes, ROUNDS))
    first = Papers(manifest=base.manifest_bytes, signature=sign(base.manifest_bytes, PUBLISHER))
    check_learned(papers, (first,), Keys())
    answers = answered(made.model_path)
    assert np.abs(answers - head.program.answer(arrays, features)).max() <= 1e-4
    assert (answers.argmax(axis=1) == LABELS).mean() > (answered(base.model_path).argmax(axis=1) == LABELS).mean()


def test_it_stands_beside_an_int8_head_too(tmp_path: Path) -> None:
    int8 = quantize(net(), [{"image": image[None]} for image in IMAGES], Int8Recipe()).model
    onnx.save(int8, tmp_path / "int8.onnx")
    made = trainable_artifact(tmp_path / "int8.onnx", tmp_path / "made", name="net", head="feature", rank=2)
    arrays, _ = learned_by(open_head(made.folder, made.manifest, "original"))
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_its_frozen_weights_stay_frozen_where_the_head_is_separated_again(base: Artifact) -> None:
    apart = separate_head(onnx.load(base.model_path), "feature")
    assert sorted(apart.tensors) == sorted(open_head(base.folder, base.manifest, "original").layout.names)
    assert np.array_equal(apart.arrays()["product/lora_b"], np.zeros((2, 10), np.float32))
    with pytest.raises(NotTrainable, match="has updates of low rank already"):
        separated(base.model_path, "feature", base.folder / "again", rank=1)


def test_the_people_who_push_are_told_what_learns(model: Path, tmp_path: Path) -> None:
    apart = separated(model, "feature", tmp_path / "apart", rank=2)
    assert apart.text.endswith("it stays: head.bin has updates of rank 2 beside 2 of its products, 1360 bytes")
    assert "beside its product, " in separated(model, "auto", tmp_path / "auto", rank=2).text
    done = CliRunner().invoke(app, ["push", str(model), "--name", "net", "--rank", "2"])
    assert done.exit_code == 2
    assert "--head" in done.output


def test_ranks_that_save_nothing_and_heads_without_a_product_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotTrainable, match=r"at rank 40: the largest is 32 x 64; choose a rank of at most 21, or let"):
        trainable_artifact(model, tmp_path / "made", name="net", head="feature", rank=40)
    assert trainable_artifact(model, tmp_path / "most", name="net", head="feature", rank=21).manifest.variants
    with pytest.raises(NotTrainable, match="a rank of 0"):
        trainable_artifact(model, tmp_path / "made", name="net", head="feature", rank=0)
    alone = onnx.load(model)
    last = alone.graph.node[-1].output[0]
    alone.graph.node.append(onnx.helper.make_node("Sigmoid", [last], ["shown"], name="shown"))
    alone.graph.output[0].name = "shown"
    onnx.save(alone, model)
    with pytest.raises(NotTrainable, match=r"no product by a constant matrix stands on .*, only Sigmoid"):
        trainable_artifact(model, tmp_path / "made", name="net", head=last, rank=2)
    assert not (tmp_path / "made").exists()
