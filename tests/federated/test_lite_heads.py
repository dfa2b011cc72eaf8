"""A TensorFlow Lite body with a head of its own: it answers as the ONNX model, learns in numpy, and comes home."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import hybrid
from cloud_gateway.rounds.commands import export
from cloud_gateway.rounds.evaluation import judge_of
from cloud_gateway.rounds.messages import LearnedPart
from devices.errors import ModelRejected
from devices.tflite_magic import engine_of
from edge_agent.install import rehearsal
from edge_agent.install.golden import compare, golden_arrays
from edge_agent.install.rehearsal import chosen_variant, runs_here
from edge_agent.install.rehearsing import play
from hybrid.artifact.folder import Artifact, open_folder, verify
from hybrid.artifact.manifest import LineageStep
from hybrid.errors import ModelInvalid, ModelUnsupported, ModelUntrainable
from hybrid.federated.campaign import Training
from hybrid.federated.candidate import candidate
from hybrid.federated.learning.body import Body, body_key
from hybrid.federated.learning.evaluation import evaluate
from hybrid.federated.learning.examples import Examples
from hybrid.federated.learning.head import open_head
from hybrid.federated.learning.lite_form import LiteBody
from hybrid.federated.learning.lite_session import LiteFeatures, LiteHeadSession
from hybrid.federated.learning.training import Start, train
from hybrid.federated.lite_variant import lite_artifact, onnx_twin
from hybrid.graph.model_file import declared_inputs
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.worker import prepare_into
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.tflite.model_file import schema
from tests.federated.lite_making import N_FEATURES, N_INPUTS, body_file, kept_artifact, model_file, rows
from tests.federated.test_candidate import accepted, laid_out
from tests.tflite.made import dense

X = rows(1, 7)[0]


def twin_answers(artifact: Artifact, x: np.ndarray = X) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(artifact.path_of("onnx/net.onnx")).run(None, {"x": x})


@pytest.mark.parametrize("part", ["body.tflite", "head.bin"])
def test_weights_outside_of_its_folder_are_never_read(part: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    shutil.copytree(kept_artifact().folder, folder)
    (folder / part).rename(tmp_path / part)
    data = (folder / "net.onnx").read_bytes()
    model = onnx.ModelProto.FromString(data)
    held = [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    held += [one.t for node in model.graph.node for one in node.attribute if one.HasField("t")]
    for entry in (entry for one in held for entry in one.external_data if entry.value == part):
        entry.value = f"../{part}"
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelRejected, match=r"must lie in the model's folder"):
        LiteHeadSession(folder / "net.onnx")


def test_it_answers_as_the_model_does() -> None:
    artifact = kept_artifact()
    first, second = artifact.manifest.variants
    assert (first.engine, first.files) == ("tflite-head", ("net.onnx", "body.tflite", "head.bin"))
    assert (second.engine, second.id) == ("onnxruntime", "onnx")
    assert engine_of(artifact.model_path) == "tflite-head"
    declared = declared_inputs(onnx.load(artifact.model_path, load_external_data=False))
    assert declared == {"x": (1, N_INPUTS)}, "the body's sizes, which are fixed"
    wanted = twin_answers(artifact)
    with hybrid.InferenceSession(artifact.folder) as session:
        here = session.run(None, {"x": X})
        assert [port.name for port in session.get_outputs()] == ["scores", "chances"]
    service = open_engine(artifact.model_path, EngineSettings(n_intra_threads=1), facts_of(artifact.model_path))
    assert [(spec.name, spec.dtype, spec.shape) for spec in service.signature.inputs] == [("x", "FP32", (1, N_INPUTS))]
    for found in (here, service.run({"x": X})):
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert np.abs(wanted[0]).max() > 0.1


def test_an_engine_alone_refuses_it_by_name() -> None:
    """Nobody gets features for scores: onnxruntime, and a library older than this form, refuse the file."""
    with pytest.raises(Exception, match=r"hybrid\.tflite:Body"):
        onnxruntime.InferenceSession(kept_artifact().model_path)


def test_a_box_without_litert_takes_the_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = kept_artifact().manifest
    assert chosen_variant(manifest, runs_here).id == "original"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen_variant(manifest, runs_here).id == "onnx"


def test_a_box_rehearses_it_and_finds_the_golden_outputs() -> None:
    artifact = kept_artifact()
    golden = artifact.manifest.golden
    assert golden is not None
    piece = rehearsal.Piece(
        name="net:1",
        model=str(artifact.model_path),
        engine="tflite-head",
        inputs={name: str(artifact.path_of(path)) for name, path in golden.inputs.items()},
        outputs={name: str(artifact.path_of(path)) for name, path in golden.outputs.items()},
        tolerance=golden.tolerance["tflite-head"],
    )
    assert play(piece).code == ""


def test_it_is_computed_whole(tmp_path: Path) -> None:
    key = ShapeKey.parse('{"x":[1,16]}')
    with pytest.raises(ModelUnsupported, match="computed whole"):
        prepare_into(kept_artifact().model_path, "0" * 64, key, tmp_path)


def test_the_head_learns_and_the_twin_gets_it_too(tmp_path: Path) -> None:
    artifact = kept_artifact()
    head = open_head(artifact.folder, artifact.manifest, "original")
    body = Body(head)
    inputs, classes = rows(60, 1)
    features = np.concatenate([body.features({"x": row[None]}) for row in inputs])
    twin = open_head(artifact.folder, artifact.manifest, "onnx")
    np.testing.assert_allclose(features, Body(twin).features({"x": inputs}), atol=1e-5)
    examples = Examples(list(features), classes)
    before = evaluate(head.program, head.arrays, examples)
    plan = Training(epochs=8, learning_rate=0.3)
    trained = train(head.program, head.layout, examples, plan, start=Start(shared=head.vector))
    arrays = head.layout.arrays(head.vector + trained.delta)
    after = evaluate(head.program, arrays, examples)
    assert after.n_right > before.n_right + 3
    judge = judge_of(head, {"x": inputs, "labels": classes})
    assert judge.accuracy(arrays) == after.n_right / len(inputs), (
        "a gateway, whose set has more rows than the body takes"
    )

    found = candidate(artifact, "original", arrays, version="2", sequence=2)
    assert (found.sharing, found.unmatched, found.unchecked) == (("original", "onnx"), (), ())
    made = laid_out(artifact, found, tmp_path / "learned")
    accepted(artifact, made)
    same = {name for name in artifact.manifest.files if made.manifest.files[name] == artifact.manifest.files[name]}
    assert same == {"net.onnx", "body.tflite", "onnx/net.onnx", "golden/input-0.npy"}
    assert body_key(made.manifest, made.manifest.variants[0]) == body_key(
        artifact.manifest, artifact.manifest.variants[0]
    )
    session = LiteHeadSession(made.model_path, 1)
    right = [
        int(session.run(["scores"], {"x": row[None]})[0].argmax()) == one
        for row, one in zip(inputs, classes, strict=True)
    ]
    assert sum(right) == after.n_right
    np.testing.assert_allclose(session.run(None, {"x": X})[1], twin_answers(made)[1], atol=1e-5)
    golden = made.manifest.golden
    assert golden is not None
    wanted = golden_arrays(Path.read_bytes, made.folder, golden.outputs)
    feeds = golden_arrays(Path.read_bytes, made.folder, golden.inputs)
    compare(dict(zip(("scores", "chances"), session.run(None, feeds), strict=True)), wanted, 1e-6, "net")


def test_a_step_leaves_as_the_twins_file(tmp_path: Path) -> None:
    """`hybrid rounds export`: what comes of it is an ordinary ONNX model."""
    artifact = kept_artifact()
    head = open_head(artifact.folder, artifact.manifest, "original")
    step = LineageStep(step="rounds:k3p9")
    part = LearnedPart(
        campaign="k3p9", step=1, model="net", version="1", variant="original", base_digest=artifact.digest,
        layout=head.layout, lineage=(step, step), sha256="", n_bytes=0, first=0, content=b"",
    )  # fmt: skip
    doubled = {name: 2 * array for name, array in head.arrays.items()}
    out = tmp_path / "learned.onnx"
    export._written(part, head.layout.vector(doubled).astype("<f4").tobytes(), artifact, out)
    (found,) = onnxruntime.InferenceSession(out).run(["scores"], {"x": X})
    lite = LiteHeadSession(artifact.model_path, 1, changed=doubled)
    np.testing.assert_allclose(found, lite.run(["scores"], {"x": X})[0], atol=1e-5)
    body = body_file(tmp_path / "b.tflite")
    made = lite_artifact(out, body, tmp_path / "next", name="net", head="mixed")
    assert made.manifest.lineage[0] == step
    alone = msgspec.structs.replace(artifact.manifest, variants=artifact.manifest.variants[:1])
    with pytest.raises(ModelUntrainable, match="no variant for onnxruntime beside it has its head"):
        onnx_twin(alone, "original")


def test_a_head_in_memory_stands_in_for_the_file() -> None:
    artifact = kept_artifact()
    zero = {"head": np.zeros((N_FEATURES, 3), np.float32), "offset": np.array([1, 2, 3], np.float32)}
    session = LiteHeadSession(artifact.model_path, 1, changed=zero)
    np.testing.assert_array_equal(session.run(["scores"], {"x": X})[0], [[1, 2, 3]])
    facts, settings = facts_of(artifact.model_path), EngineSettings(n_intra_threads=1)
    service = open_engine(artifact.model_path, settings, facts, zero)
    np.testing.assert_array_equal(service.run({"x": X}, ["scores"])[0], [[1, 2, 3]])


def test_an_8_bit_body_is_told_and_its_twin_is_given_room(tmp_path: Path) -> None:
    whole = np.random.default_rng(2).integers(-20, 21, (N_FEATURES, N_INPUTS)).astype(np.int8)
    body = dense(tmp_path / "b.tflite", whole, kind=schema().TensorType.INT8)  # its scale is 0.05
    model = model_file(tmp_path / "net.onnx", body=(whole.T * np.float32(0.05)).astype(np.float32))
    artifact = lite_artifact(model, body, tmp_path / "artifact", name="net", head="mixed")
    first, twin = artifact.manifest.variants
    assert (first.precision, twin.precision) == ("int8", "native")
    golden = artifact.manifest.golden
    assert golden is not None
    assert golden.tolerance["tflite-head"] == 1e-3
    assert 1e-3 < golden.tolerance["onnxruntime"] < 0.1
    feeds = golden_arrays(Path.read_bytes, artifact.folder, golden.inputs)
    found = dict(zip(("scores", "chances"), twin_answers(artifact, feeds["x"]), strict=True))
    wanted = golden_arrays(Path.read_bytes, artifact.folder, golden.outputs)
    compare(found, wanted, golden.tolerance["onnxruntime"], "net")
    assert max(np.abs(found[name] - wanted[name]).max() for name in found) > 1e-4


def test_a_body_is_never_what_learns() -> None:
    manifest = kept_artifact().manifest
    first = msgspec.structs.replace(manifest.variants[0], trainable_files=("body.tflite", "head.bin"))
    wrong = msgspec.structs.replace(manifest, variants=(first, manifest.variants[1]))
    with pytest.raises(ModelUntrainable, match=r"body\.tflite is named as trainable, but no weight"):
        open_head(kept_artifact().folder, wrong, "original")


def test_bodies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = model_file(tmp_path / "net.onnx")

    def made(body: Path, head: str = "mixed") -> None:
        lite_artifact(model, body, tmp_path / "artifact", name="net", head=head)

    with pytest.raises(ModelUntrainable, match=r"answers \[1, 9\], the feature tensor 'mixed' is \[1, 12\]"):
        made(body_file(tmp_path / "narrow.tflite", n_features=9))
    with pytest.raises(ModelUntrainable, match=r"of the largest value away.*other weights"):
        made(body_file(tmp_path / "other.tflite", seed=4))
    with pytest.raises(ModelUntrainable, match=r"reads 'x' as tensor\(float\) \[1, 5\], the model's 'x' is"):
        made(dense(tmp_path / "short.tflite", np.ones((12, 5), np.float32)))
    with pytest.raises(ModelInvalid, match="no TensorFlow Lite file"):
        made(tmp_path / "gone.tflite")
    with pytest.raises(ModelUntrainable, match="of the largest value away"):
        made(body_file(tmp_path / "right.tflite"), head="features")
    assert not (tmp_path / "artifact").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_connection_around_the_features_is_refused(tmp_path: Path) -> None:
    model = onnx.load(model_file(tmp_path / "net.onnx"))
    model.graph.node.append(helper.make_node("MatMul", ["x", "past"], ["beside"], name="past"))
    model.graph.node.append(helper.make_node("Add", ["scores", "beside"], ["sum"], name="sum"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((N_INPUTS, 3), np.float32), "past"))
    model.graph.output[0].name = "sum"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(ModelUntrainable, match="does not stand on 'mixed' alone"):
        lite_artifact(tmp_path / "net.onnx", body_file(tmp_path / "b.tflite"), tmp_path / "a", name="net", head="mixed")


def test_damage_is_told_when_it_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(kept_artifact().folder, folder)
    body = folder / "body.tflite"
    content = body.read_bytes()
    body.write_bytes(content[:-4])
    with pytest.raises(ModelInvalid, match=r"body\.tflite"):
        open_folder(folder)
    with pytest.raises(ModelRejected, match=r"body\.tflite"):
        LiteHeadSession(folder / "net.onnx")
    body.write_bytes(body_file(tmp_path / "narrow.tflite", n_features=9).read_bytes())
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    held = next(one.t for one in model.graph.node[0].attribute if one.name == "file")
    held.dims[0] = body.stat().st_size
    next(one for one in held.external_data if one.key == "length").value = str(body.stat().st_size)
    (folder / "net.onnx").write_bytes(model.SerializeToString(deterministic=True))
    with pytest.raises(ModelRejected, match=r"does not take features of \[1, 9\]"):
        LiteHeadSession(folder / "net.onnx")
    with pytest.raises(ModelInvalid):
        verify(open_folder(folder))


def test_features_in_whole_numbers_are_given_as_what_they_mean(tmp_path: Path) -> None:
    weights = np.array([[1, 2], [3, 4], [5, 6]], np.int8)
    kind = schema().TensorType.INT8
    path = dense(tmp_path / "int8.tflite", weights, activations=kind, kind=kind)  # all scales are 0.05, all zeros 0
    body = LiteFeatures(LiteBody(file=path, inputs=(("a", "x"),), feature="f", output="y"))
    found = body.run({"a": np.array([[20, -40]], np.int8)})
    assert found.dtype == np.float32
    wanted = (np.array([[20, -40]]) * 0.05) @ (weights.T * 0.05)
    np.testing.assert_allclose(found, wanted, atol=0.026)
    assert np.abs(wanted).min() > 0.1
