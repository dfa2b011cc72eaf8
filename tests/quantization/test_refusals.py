"""What cannot be quantized is refused before any work, and the message says what to do."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compression.errors import CompressionError, NotQuantizable
from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.quantization.weights_only import half_weights
from tests import zoo
from tests.quantization.nets import answers, apart, convnet, images, net
from tests.shaped_nets import mobilenet_v2


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"activations": "int4"}, "activations is 'int4', wanted one of uint8, int8"),
        ({"weights": "float"}, "weights is 'float'"),
        ({"ranges": "all"}, "ranges is 'all'"),
        ({"operators": "some"}, "operators is 'some'"),
        ({"smoothed": 1.5}, "smoothed is 1.5, wanted an alpha"),
        ({"kept_float": "head"}, "kept_float is one string"),
    ],
)
def test_recipes_that_mean_nothing(fields, said):
    with pytest.raises(NotQuantizable, match=said):
        Int8Recipe(**fields)


def changed(**arrays):
    return [*images(1), arrays]


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([], "no sample was given"),
        (changed(), "sample 1 lacks 'x'"),
        (changed(x=images(1)[0]["x"], z=np.zeros(1)), "sample 1 has 'z'; the model's inputs are 'x'"),
        (changed(x=images(1)[0]["x"].astype(np.float64)), "dtype float64, wanted float32"),
        (changed(x=images(1)[0]["x"][0]), r"shape \(3, 16, 16\), wanted \(1, 3, 16, 16\)"),
        (changed(x=images(1, side=20)[0]["x"]), r"shape \(1, 3, 20, 20\)"),
        (changed(x=np.full((1, 3, 16, 16), np.nan, np.float32)), "sample 1, input 'x': holds NaN"),
        (changed(x=np.full((1, 3, 16, 16), np.inf, np.float32)), "holds NaN or infinity"),
    ],
)
def test_samples_that_do_not_fit(samples, said):
    with pytest.raises(NotQuantizable, match=said):
        quantize(convnet(), samples)


def test_a_number_that_becomes_infinite_inside():
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], name="e"),
        helper.make_node("MatMul", ["e", "w"], ["y"], name="m"),
    ]
    model = net(nodes, {"w": np.ones((4, 4), np.float32)}, (1, 4))
    with pytest.raises(NotQuantizable, match="sample 1: tensor 'e' holds NaN or infinity"):
        quantize(model, [{"x": np.zeros((1, 4), np.float32)}, {"x": np.full((1, 4), 1e3, np.float32)}])


def test_a_quantized_model():
    made = quantize(convnet(), images(2)).model
    with pytest.raises(NotQuantizable, match=r"quantized already .* hand the float model"):
        quantize(made, images(2))


def test_a_model_without_products():
    model = net([helper.make_node("Relu", ["x"], ["y"])], {}, (1, 4))
    with pytest.raises(NotQuantizable, match="int8 would make nothing smaller"):
        prepare(model)
    with pytest.raises(NotQuantizable, match="has no Conv"):
        prepare(onnx.load(zoo.path("silero_if")))


def test_a_model_that_keeps_everything_float():
    with pytest.raises(NotQuantizable, match="no product became int8"):
        quantize(convnet(), images(2), Int8Recipe(kept_float=("c0", "c1", "c2", "head")))


def test_a_node_that_is_not_there():
    with pytest.raises(NotQuantizable, match=r"no node 'c9'; it has .* take names from prepare"):
        quantize(convnet(), images(2), Int8Recipe(kept_float=("c9",)))


def test_half_precision():
    model = convnet(batch_norm=False)
    half = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(model.graph.initializer[2]).astype(np.float16), "w0")
    model.graph.initializer[2].CopyFrom(half)
    with pytest.raises(NotQuantizable, match=r"float16 \(the first: 'w0'\), wanted float32"):
        quantize(model, images(2))


def test_weights_that_are_only_kept_in_half_precision_are_taken():
    """As `half_weights` writes them, among others: each is widened to float32 before anything computes with it."""
    model = mobilenet_v2(size=32, width=0.25, n_classes=10)
    samples = [{"image": feeds["x"]} for feeds in images(2, side=32)]
    half = half_weights(model)
    assert any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in half.graph.initializer)
    assert quantize(half, samples).n_int8 == quantize(model, samples).n_int8 > 0


def test_weights_that_were_not_loaded(tmp_path):
    onnx.save(convnet(), tmp_path / "net.onnx", save_as_external_data=True, location="w", size_threshold=0)
    bare = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    with pytest.raises(NotQuantizable, match=r"not loaded .* onnx.load\(path\)"):
        quantize(bare, images(2))
    whole = onnx.load(tmp_path / "net.onnx")
    assert quantize(whole, images(2)).n_int8 == 4


def test_more_than_two_gigabytes(monkeypatch):
    from compression.quantization import prepare as room

    monkeypatch.setattr(room, "_MOST_BYTES", 1_000)
    with pytest.raises(NotQuantizable, match="wanted less than 2 GB"):
        quantize(convnet(), images(2))


def test_a_model_that_no_engine_opens():
    model = convnet()
    model.graph.node[0].op_type = "Fold"
    with pytest.raises(NotQuantizable, match="onnxruntime cannot run the model") as refused:
        quantize(model, images(2))
    assert isinstance(refused.value, CompressionError)
    assert refused.value.code == "not_quantizable"


def test_an_old_opset_is_upgraded():
    model = convnet(opset=9, batch_norm=False)
    made = quantize(model, images(4))
    assert made.n_int8 == 4
    assert {entry.domain: entry.version for entry in made.model.opset_import}[""] >= 13
    assert apart(model, made.model, images(2, seed=3)) < 0.06


def test_two_versions_of_the_operators():
    model = convnet()
    model.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    with pytest.raises(NotQuantizable, match="imports 2 versions"):
        quantize(model, images(2))


def test_inputs_of_every_kind_may_stand_beside_floats():
    table = np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((32, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["g"], name="g"),
        helper.make_node("MatMul", ["g", "w"], ["y"], name="m"),
    ]
    model = net(nodes, {"table": table, "w": weight}, ("n",), dtype=TensorProto.INT64)
    words = [{"x": np.arange(start, start + 9, dtype=np.int64)} for start in (0, 10, 30)]
    made = quantize(model, words, Int8Recipe(operators="products"))
    assert apart(model, made.model, words) < 0.02
    assert answers(made.model, words)[0].shape == (9, 8)
    rows = next(t for t in made.model.graph.initializer if list(t.dims) == [50, 32])
    assert rows.data_type == TensorProto.INT8
