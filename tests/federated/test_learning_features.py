"""From samples to features and targets: the body alone runs, once a sample, and labels are read strictly."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.heads import head_nodes, low_rank_head, separate_head
from hybrid.artifact.manifest import FileEntry, Manifest, Variant, canonical_bytes, parse
from hybrid.artifact.trainable import trainable_artifact
from hybrid.errors import DataUnfit, EngineFailed, ModelUntrainable, NotFound, TensorMismatch
from hybrid.federated.campaign import Training
from hybrid.federated.learning.body import Body, body_key, body_model
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.features import FeatureShelf
from hybrid.federated.learning.head import Head, full_arrays, open_head, read_head
from hybrid.federated.learning.labels import chosen, is_held_out, of_one_kind, target_of, targets_of
from hybrid.federated.learning.training import Start, train
from tests.federated.learning_making import external, reference_model
from tests.learning.nets import artifact_in, model_file
from tests.training.test_heads import IMAGES, net


@pytest.fixture
def artifact(tmp_path: Path):
    onnx.save(net(), tmp_path / "net.onnx")
    return trainable_artifact(tmp_path / "net.onnx", tmp_path / "made", name="net", head="feature")


def test_features_and_head_come_to_what_the_model_answers(artifact) -> None:
    head = open_head(artifact.folder, artifact.manifest, "original")
    assert head.layout.names == ("a.w", "a.b", "b.w", "b.b")
    features = Body(head).features({"image": IMAGES})
    assert features.shape == (8, 32)
    wanted = onnxruntime.InferenceSession(artifact.model_path, providers=["CPUExecutionProvider"])
    answers = wanted.run(None, {"image": IMAGES})[0]
    assert np.abs(head.program.answer(head.arrays, features) - answers).max() <= 1e-5
    body = body_model(head)
    assert body is not None
    assert [node.op_type for node in body.graph.node] == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]


def test_an_update_of_low_rank_learns_beside_a_frozen_head(tmp_path: Path) -> None:
    apart = low_rank_head(net(), "feature", 2)
    (tmp_path / "head.bin").write_bytes(apart.content)
    (tmp_path / "net.onnx").write_bytes(apart.model.SerializeToString())
    head = read_head(tmp_path / "net.onnx", "feature", {"head.bin": len(apart.content)})
    assert head.layout.names == apart.tensors
    features = Body(head).features({"image": IMAGES})
    examples = Examples(features, np.arange(8) % 10)
    found = train(head.program, head.layout, examples, Training(epochs=40), start=Start(shared=head.vector))
    assert found.loss_after < found.loss_before - 1
    learned = head.packed(head.layout.arrays(head.vector + found.delta))["head.bin"]
    before = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"image": IMAGES})[0]
    (tmp_path / "head.bin").write_bytes(learned)
    after = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(None, {"image": IMAGES})[0]
    assert not np.allclose(before, after)
    arrays = head.layout.arrays(head.vector + found.delta)
    assert np.abs(head.program.answer(arrays, features) - after).max() <= 1e-4


def test_a_body_whose_weights_lie_in_a_file_is_run_from_there(tmp_path: Path) -> None:
    apart = separate_head(net(), "feature")
    inline = read_head_of(tmp_path / "inline", apart)
    model = onnx.ModelProto()
    model.CopyFrom(apart.model)
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "x")
    path = external_body(tmp_path / "outside", apart)
    outside = read_head(path, "feature", {"head.bin": len(apart.content)})
    body = body_model(outside)
    assert body is not None
    assert len(body.SerializeToString()) < 1500
    assert np.array_equal(Body(outside).features({"image": IMAGES}), Body(inline).features({"image": IMAGES}))
    assert sorted(one.name for one in path.parent.iterdir()) == ["body.bin", "head.bin", "net.onnx"]


def read_head_of(folder: Path, apart):
    folder.mkdir()
    (folder / "head.bin").write_bytes(apart.content)
    (folder / "net.onnx").write_bytes(apart.model.SerializeToString())
    return read_head(folder / "net.onnx", "feature", {"head.bin": len(apart.content)})


def external_body(folder: Path, apart) -> Path:
    model = onnx.ModelProto()
    model.CopyFrom(apart.model)
    path = external(model, ["conv.w"], folder, "body.bin")
    (folder / "head.bin").write_bytes(apart.content)
    return path.rename(folder / "net.onnx")


def test_weights_that_an_old_exporter_lists_among_the_inputs_are_none(tmp_path: Path) -> None:
    apart = separate_head(net(), "feature")
    for tensor in apart.model.graph.initializer:
        value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        apart.model.graph.input.append(value)
    head = read_head_of(tmp_path / "made", apart)
    wanted = Body(read_head_of(tmp_path / "plain", separate_head(net(), "feature"))).features({"image": IMAGES})
    assert np.array_equal(Body(head).features({"image": IMAGES}), wanted)


def test_features_that_are_the_input_need_no_engine(tmp_path: Path) -> None:
    path = reference_model(tmp_path)
    head = read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})
    assert body_model(head) is None
    x = np.ones((1, 64), np.float64)
    assert Body(head).features({"image": x, "other": x}).dtype == np.float32
    with pytest.raises(TensorMismatch, match="lacks input 'image'"):
        Body(head).features({"picture": x})


def test_a_run_that_is_stopped_is_an_engine_that_failed(artifact) -> None:
    head = open_head(artifact.folder, artifact.manifest, "original")
    stop = onnxruntime.RunOptions()
    stop.terminate = True
    body = Body(head)
    with pytest.raises(EngineFailed):
        body.features({"image": IMAGES}, stop)
    assert body.features({"image": IMAGES[:1]}).shape == (1, 32)


def test_a_variant_without_a_head_of_its_own_is_refused(artifact, tmp_path: Path) -> None:
    manifest = artifact.manifest
    with pytest.raises(NotFound, match="it has original"):
        open_head(artifact.folder, manifest, "int8")
    data = canonical_bytes(manifest).replace(b'"trainable_files":["head.bin"]', b'"trainable_files":[]')
    with pytest.raises(ModelUntrainable, match="hybrid compress --head"):
        open_head(artifact.folder, parse(data), "original")
    data = canonical_bytes(manifest).replace(b'"trainable_files":["head.bin"]', b'"trainable_files":["net.onnx"]')
    with pytest.raises(ModelUntrainable, match="model file itself"):
        open_head(artifact.folder, parse(data), "original")


def test_a_tensorflow_lite_variant_is_refused(tmp_path: Path) -> None:
    content = b"\x1c\0\0\0TFL3" + bytes(64)
    (tmp_path / "net.tflite").write_bytes(content)
    (tmp_path / "head.bin").write_bytes(b"1234")
    names = ("net.tflite", "head.bin")
    entries = {}
    for name in names:
        data = (tmp_path / name).read_bytes()
        entries[name] = FileEntry(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    variant = Variant(
        id="original", engine="tflite", precision="native", files=names, feature_tensor="f", trainable_files=names[1:]
    )
    manifest = Manifest(
        schema=1, name="net", version="1", sequence=1, model_digest="0" * 64, files=entries, variants=(variant,)
    )
    with pytest.raises(ModelUntrainable, match="TensorFlow Lite"):
        open_head(tmp_path, manifest, "original")


def test_the_key_of_features_outlives_the_head(artifact) -> None:
    manifest = artifact.manifest
    [variant] = manifest.variants
    other = FileEntry(sha256="1" * 64, size=manifest.files["head.bin"].size)
    learned = Manifest(
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
        | {"files": {**manifest.files, "head.bin": other}}
    )
    moved = Manifest(
        **{name: getattr(manifest, name) for name in manifest.__struct_fields__}
        | {"files": {**manifest.files, "net.onnx": other}}
    )
    assert body_key(learned, variant) == body_key(manifest, variant)
    assert body_key(moved, variant) != body_key(manifest, variant)


def test_arrays_that_are_not_the_heads_are_refused(artifact) -> None:
    head = open_head(artifact.folder, artifact.manifest, "original")
    assert head.packed(head.arrays) == {"head.bin": (artifact.folder / "head.bin").read_bytes()}
    assert full_arrays(head, {"b.b": np.ones(10, np.float32)})["a.b"] is head.arrays["a.b"]
    with pytest.raises(TensorMismatch, match="strange"):
        full_arrays(head, {"strange": np.ones(10, np.float32)})
    with pytest.raises(TensorMismatch, match="float64"):
        head.packed({**head.arrays, "b.b": np.ones(10)})


def test_large_weights_inside_of_a_models_file_are_read_from_there(tmp_path: Path) -> None:
    """Nor does an open body keep the model's message, in which all of them are."""
    artifact = artifact_in(tmp_path, n_inputs=400, n_features=120)
    head = open_head(artifact.folder, artifact.manifest, "original")
    model = body_model(head)
    assert model is not None
    assert 100 * len(model.SerializeToString()) < 400 * 120 * 4
    body, inputs = Body(head), np.random.default_rng(3).standard_normal((2, 400)).astype(np.float32)
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in head.model.graph.initializer if one.name == "body"}
    wanted = np.maximum(inputs @ weights["body"], 0)
    np.testing.assert_allclose(body.features({"x": inputs}), wanted, atol=1e-4)
    assert not [one for one in vars(body).values() if isinstance(one, (Head, onnx.ModelProto))]
    with pytest.raises(TensorMismatch, match="'x' is 2x300, the model wants"):
        body.features({"x": inputs[:, :300]})


def test_a_model_whose_file_is_gone_is_one_that_cannot_be_learned(tmp_path: Path) -> None:
    """And no failure of the disk: it was replaced after its head was read."""
    artifact = artifact_in(tmp_path)
    head = open_head(artifact.folder, artifact.manifest, "original")
    head.path.write_bytes(b"")
    with pytest.raises(ModelUntrainable, match="cannot be read any more"):
        Body(head)
    head.path.unlink()
    with pytest.raises(ModelUntrainable, match="cannot be read any more"):
        Body(head)


def test_an_input_that_is_learned_from_itself_has_the_models_size(tmp_path: Path) -> None:
    """The newest sample says the size of all others: it must not be one that the model cannot take."""
    made = trainable_artifact(model_file(tmp_path / "net.onnx"), tmp_path / "made", name="net", head="input")
    body = Body(open_head(made.folder, made.manifest, "original"))
    assert body.features({"x": np.ones((1, 16), np.float32)}).shape == (1, 16)
    with pytest.raises(TensorMismatch, match="'x' is 1x17, the model wants"):
        body.features({"x": np.ones((1, 17), np.float32)})


def test_a_shelf_holds_no_more_than_it_may() -> None:
    shelf = FeatureShelf(most_bytes=10 * 4 * 5)
    names = [f"s{at}" for at in range(8)]
    shelf.begin("body", names)
    kept = [shelf.put(name, np.full((1, 10), at, np.float32)) for at, name in enumerate(names)]
    assert kept == [True] * 5 + [False] * 3
    assert (shelf.n_bytes, len(shelf), shelf.has_room("s5")) == (200, 5, False)
    assert [row[0] for row in shelf.rows(["s3", "s1"])] == [3, 1]
    shelf.begin("body", ["new", *names])
    assert shelf.has_room("new"), "the oldest leaves for it"
    assert shelf.put("new", np.ones((1, 10), np.float32))
    assert (shelf.n_bytes, "s3" in shelf, "s4" in shelf) == (200, True, False)
    shelf.begin("body", names[3:])
    assert (shelf.n_bytes, len(shelf), "s3" in shelf, "s0" in shelf) == (40, 1, True, False)
    assert shelf.put("s7", np.ones((1, 10), np.float32))
    shelf.begin("another body", names)
    assert (shelf.n_bytes, len(shelf)) == (0, 0)
    assert shelf.put("s0", np.ones((1, 4), np.float32))


def test_a_shelf_takes_one_finite_row_a_sample_all_of_one_shape() -> None:
    shelf = FeatureShelf()
    shelf.begin("body", ["a", "b"])
    shelf.put("a", np.ones((1, 4), np.float32))
    with pytest.raises(TensorMismatch, match="2 rows"):
        shelf.put("b", np.ones((2, 4), np.float32))
    with pytest.raises(TensorMismatch, match="one size"):
        shelf.put("b", np.ones((1, 5), np.float32))
    with pytest.raises(TensorMismatch, match="not finite"):
        shelf.put("b", np.full((1, 4), np.inf, np.float32))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('{"class": 3}', 3), ("3", 3), ('{"class": "dog"}', 1), ('"cat"', 0), ("", None), ("null", None),
        ('{"class": null}', None), ('{"class": 2, "by": "somebody"}', 2), ('{"values": [1, 0.5]}', (1.0, 0.5)),
        ("[2]", (2.0,)),
    ],
)  # fmt: skip
def test_labels_are_read(text: str, wanted: object) -> None:
    assert target_of(text, ("cat", "dog", "owl", "cow")) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "{", '{"class": 4}', '{"class": -1}', '{"class": 1.5}', '{"class": true}', '{"class": "bird"}', '{"klass": 1}',
        '{"class": 1, "values": [1]}', '{"class": [1]}', '{"values": 1}', '{"values": []}', '{"values": [1, "x"]}',
        '{"values": [1e999]}', '{"values": [true]}', "true", "[" * 5000, "1" * 70000,
        "9" * 4000, "[" + "9" * 400 + "]", "[1e39]",
    ],
)  # fmt: skip
def test_labels_that_say_something_else_are_refused(text: str) -> None:
    with pytest.raises(DataUnfit):
        target_of(text, ("cat", "dog", "owl", "cow"))


def test_small_samples_are_brought_together_and_large_ones_stay() -> None:
    rows, classes = [np.full(3, at, np.float32) for at in range(4)], np.arange(4)
    small = Examples(rows, classes).together()
    assert isinstance(small.features, np.ndarray)
    features, targets = small.some(np.array([2, 0]))
    assert features.tolist() == [[2.0] * 3, [0.0] * 3]
    assert targets.tolist() == [2, 0]
    for kept in ([np.zeros(1 << 18, np.float32)] * 4, [*rows[:3], np.zeros((3, 1), np.float32)], []):
        examples = Examples(kept, classes[: len(kept)])
        assert examples.together() is examples


def test_without_names_of_classes_numbers_alone_are_labels() -> None:
    assert target_of('{"class": 999}') == 999
    with pytest.raises(DataUnfit, match="give its number"):
        target_of('{"class": "dog"}')


def test_no_sample_is_both_trained_on_and_held_out() -> None:
    labels = [(f"{at:012x}", "" if at % 10 == 0 else '{"class": 1}') for at in range(2000)]
    found = chosen(labels, ("a", "b"), corrections={labels[1][0]: '{"class": 0}', labels[2][0]: "{"})
    assert not set(found.training) & set(found.held_out)
    assert found.n_unlabelled == 200
    assert list(found.refused) == [labels[2][0]]
    assert len(found.training) + len(found.held_out) == 1799
    assert 0.17 < len(found.held_out) / 1799 < 0.23
    assert (found.training | found.held_out)[labels[1][0]] == 0
    assert all(is_held_out(one) for one in found.held_out)
    assert not any(is_held_out(one) for one in found.training)


def test_targets_are_of_one_kind() -> None:
    assert of_one_kind({"a": 1, "b": (2.0,), "c": 3, "d": (1.0, 2.0)}) == {"a": 1, "c": 3}
    assert of_one_kind({"a": 1, "b": (2.0,), "c": (3.0,)}) == {"b": (2.0,), "c": (3.0,)}
    assert of_one_kind({}) == {}
    assert targets_of([3, 1]).dtype == np.int64
    assert targets_of([(1.0, 2.0), (3.0, 4.0)]).shape == (2, 2)
    for mixed in ([1, (2.0,)], [(1.0,), (1.0, 2.0)]):
        with pytest.raises(DataUnfit, match="one kind"):
            targets_of(mixed)


@pytest.mark.parametrize("kind", ["float head", "frozen head with low rank"])
def test_heads_of_a_quantized_model_learn(tmp_path: Path, kind: str) -> None:
    samples = [{"image": image[None]} for image in IMAGES]
    if kind == "float head":
        model = quantize(net(), samples, Int8Recipe(kept_float=head_nodes(prepare(net()), "feature"))).model
        apart = separate_head(model, "feature")
    else:
        apart = low_rank_head(quantize(net(), samples, Int8Recipe()).model, "feature", 2)
    head = read_head_of(tmp_path / "made", apart)
    features = Body(head).features({"image": IMAGES})
    session = onnxruntime.InferenceSession(head.path, providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"image": IMAGES})[0]
    found = head.program.answer(head.arrays, features)
    assert np.abs(found - wanted).max() <= (1e-5 if kind == "float head" else 0.05 * np.abs(wanted).max())
    learned = train(
        head.program, head.layout, Examples(features, np.arange(8)), Training(), start=Start(shared=head.vector)
    )
    assert learned.loss_after < learned.loss_before
