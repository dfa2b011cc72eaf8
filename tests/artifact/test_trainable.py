"""An artifact whose head is a file of its own: it runs as before, and only that file changes when the head learns."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compression.errors import NotTrainable
from compression.training.heads import HEAD_FILE, packed, unpacked
from hybrid.artifact.digest import model_digest
from hybrid.artifact.folder import open_folder, verify
from hybrid.artifact.stored_zip import pack, unpack
from hybrid.artifact.trainable import trainable_artifact
from hybrid.errors import Conflict
from tests.training.test_heads import IMAGES, net, run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def answered(path: Path, images: np.ndarray = IMAGES) -> np.ndarray:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]


def test_the_artifact_answers_as_the_model_and_says_what_can_learn(model: Path, tmp_path: Path) -> None:
    artifact = trainable_artifact(model, tmp_path / "made", name="net", head="feature", inputs={"image": IMAGES})
    verify(open_folder(tmp_path / "made"))
    [variant] = artifact.manifest.variants
    assert (variant.feature_tensor, variant.trainable_files) == ("feature", (HEAD_FILE,))
    assert variant.files == ("net.onnx", HEAD_FILE)
    assert artifact.manifest.model_digest == model_digest(artifact.model_path)
    assert np.array_equal(answered(artifact.model_path), run(net()))
    assert artifact.manifest.golden is not None
    golden = np.load(artifact.path_of(artifact.manifest.golden.outputs["scores"]))
    assert np.array_equal(golden, run(net()))
    assert (artifact.model_path.stat().st_mode & 0o777) == (tmp_path / "net.onnx").stat().st_mode & 0o777


def test_the_same_model_gives_the_same_artifact_with_drawn_inputs_too(model: Path, tmp_path: Path) -> None:
    one, other = (trainable_artifact(model, tmp_path / name, name="net") for name in ("one", "other"))
    assert one.digest == other.digest
    assert one.manifest.variants[0].feature_tensor == "calm"


def test_a_head_that_learned_changes_its_own_file_and_travels_in_a_zip(model: Path, tmp_path: Path) -> None:
    artifact = trainable_artifact(model, tmp_path / "made", name="net", head="feature")
    body = artifact.model_path.read_bytes()
    proto = onnx.load(artifact.model_path, load_external_data=False)
    arrays = {key: array.copy() for key, array in unpacked(proto, (tmp_path / "made" / HEAD_FILE).read_bytes()).items()}
    pack(artifact, tmp_path / "made.zip")
    travelled = unpack(tmp_path / "made.zip", tmp_path / "unpacked")
    arrays["b.b"] += 3
    (travelled.folder / HEAD_FILE).write_bytes(packed(proto, arrays))
    assert travelled.model_path.read_bytes() == body
    assert np.allclose(answered(travelled.model_path), run(net()) + 3, atol=1e-5)


def test_what_cannot_be_separated_leaves_nothing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotTrainable, match="near it feature"):
        trainable_artifact(model, tmp_path / "made", name="net", head="features")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    with pytest.raises(Conflict, match="not empty"):
        trainable_artifact(model, tmp_path / "taken", name="net")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "taken"]


def conv_net() -> onnx.ModelProto:
    """Everything that a whole model may hold and that no gradient reaches: means, bounds, scales."""
    r = np.random.default_rng(0)
    weights = {
        "k": r.normal(0, 0.3, (4, 3, 3, 3)), "kb": np.zeros(4), "gain": np.ones(4), "shift": np.zeros(4),
        "mean": np.full(4, 0.1), "variance": np.full(4, 2.0), "low": np.array([0.0]), "scales": np.array([1, 1, 2, 2]),
        "w": r.normal(0, 0.1, (64, 5)),
    }  # fmt: skip
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "k", "kb"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "gain", "shift", "mean", "variance"], ["n"], name="norm"),
        node("MaxPool", ["n"], ["p"], name="pool", kernel_shape=[4, 4], strides=[4, 4]),
        node("Resize", ["p", "", "scales"], ["r"], name="resize", mode="nearest",
             coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
        node("Flatten", ["r"], ["f"], name="flat"),
        node("MatMul", ["f", "w"], ["scores"], name="last"),
    ]  # fmt: skip
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "conv-net", [value("image", 1, ["n", 3, 8, 8])], [value("scores", 1, ["n", 5])],
        [onnx.numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("said", ["input", "image"])
def test_a_whole_model_learns_where_its_input_is_named(tmp_path: Path, said: str) -> None:
    onnx.save(conv_net(), tmp_path / "net.onnx")
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    artifact = trainable_artifact(tmp_path / "net.onnx", tmp_path / "made", name="net", head=said)
    [variant] = artifact.manifest.variants
    assert (variant.feature_tensor, variant.trainable_files) == ("image", (HEAD_FILE,))
    model = onnx.load(artifact.model_path, load_external_data=False)
    moved = {one.name for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL}
    assert moved == {"k", "kb", "gain", "shift", "w"}
    assert np.array_equal(answered(artifact.model_path, images), answered(tmp_path / "net.onnx", images))


def test_what_cannot_learn_whole_is_refused_with_advice(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    two = conv_net()
    two.graph.input.append(onnx.helper.make_tensor_value_info("other", 1, ["n", 5]))
    rounded = conv_net()
    rounded.graph.node[5].op_type = "MatMulInteger"
    for model, rank, said in (
        (two, None, r"has 2 inputs \(image, other\).*name a tensor"),
        (rounded, None, r"is quantized \(last\); let the float model learn, and make int8 of what was learned"),
        (conv_net(), 4, "a rank is of a head behind a body"),
    ):
        onnx.save(model, tmp_path / "net.onnx")
        with pytest.raises(NotTrainable, match=said):
            trainable_artifact(tmp_path / "net.onnx", folder, name="net", head="input", rank=rank)
    assert not folder.exists()
