"""Models as shipped: bound, folded, weights in one file; each thing wrong with one is said by name."""

from contextlib import suppress

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from hybrid.errors import ModelInvalid, ModelUnsupported, TensorMismatch
from hybrid.graph.normalise import GRAPH_FILE, WEIGHTS_FILE, hide_weights, normalise
from hybrid.graph.shape_key import ShapeKey
from tests import zoo
from tests.odd_models import ODD, text

KEY = ShapeKey((("x", (1, 8)),))


def save(model, tmp_path, **how):
    onnx.save(model, tmp_path / "model.onnx", **how)
    return tmp_path / "model.onnx"


def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    return folder


def test_dimensions_are_bound_constants_folded_and_weights_external(tmp_path):
    graph = normalise(zoo.path("ppocr_det"), ShapeKey.of(zoo.feeds("ppocr_det")), out(tmp_path)).graph
    shipped = onnx.load(zoo.path("ppocr_det"), load_external_data=False)
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 320, 320]
    assert len(graph.node) < 0.6 * len(shipped.graph.node)
    assert not any(node.op_type in ("Constant", "Identity", "Shape") for node in graph.node)
    assert (tmp_path / "out" / GRAPH_FILE).stat().st_size < 100_000
    assert (tmp_path / "out" / WEIGHTS_FILE).stat().st_size > 9_000_000
    inline = [tensor for tensor in graph.initializer if tensor.data_location != TensorProto.EXTERNAL]
    assert all(len(tensor.raw_data) < 1024 for tensor in inline)


def test_dimensions_that_paddle_leaves_open_are_bound(tmp_path):
    shipped = onnx.load(zoo.path("ppocr_cls"), load_external_data=False)
    dims = shipped.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == [-1, 3, "?", "?"]
    graph = normalise(zoo.path("ppocr_cls"), ShapeKey.of(zoo.feeds("ppocr_cls")), out(tmp_path)).graph
    assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 48, 192]


def test_weights_are_taken_off_the_list_of_inputs(tmp_path):
    odd = ODD["weights_listed_as_inputs"]()
    assert odd.model.ir_version == 3
    graph = normalise(save(odd.model, tmp_path), ShapeKey.of(odd.feeds), out(tmp_path))
    assert [value.name for value in graph.graph.input] == ["x"]
    assert graph.ir_version >= 4


def test_a_default_that_is_fed_stays_an_input(tmp_path):
    odd = ODD["weights_listed_as_inputs"]()
    feeds = odd.feeds | {"w": np.zeros((8, 4), np.float32)}
    graph = normalise(save(odd.model, tmp_path), ShapeKey.of(feeds), out(tmp_path)).graph
    assert [value.name for value in graph.input] == ["x", "w"]
    assert not graph.initializer
    hide_weights(odd.model, keep=frozenset())
    assert [value.name for value in odd.model.graph.input] == ["x"]


def test_a_branch_that_contradicts_the_shapes_does_not_forbid_them(tmp_path):
    """The 8 kHz branch of this model does not accept the 16 kHz frame; it is not taken."""
    graph = normalise(zoo.path("silero_if"), ShapeKey.of(zoo.feeds("silero_if")), out(tmp_path)).graph
    assert [node.op_type for node in graph.node].count("If") == 1


def test_external_weights_are_read_from_the_models_folder(tmp_path):
    odd = ODD["weights_in_constant_nodes"]()
    path = save(
        odd.model, tmp_path, save_as_external_data=True, location="w.data", size_threshold=0, convert_attribute=True
    )
    assert (tmp_path / "w.data").stat().st_size >= 8 * 4 * 4
    assert normalise(path, ShapeKey.of(odd.feeds), out(tmp_path)).graph.node


def broken(tmp_path, what):
    path = tmp_path / "model.onnx"
    if what == "missing":
        return path
    if what == "a folder":
        path.mkdir()
        return path
    content = zoo.path("ppocr_cls").read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello, world\n" * 50, "half": content[: len(content) // 2],
                      "html": b"<html><body>404</body></html>"}[what])  # fmt: skip
    return path


@pytest.mark.parametrize("what", ["missing", "a folder", "empty", "text", "half", "html"])
def test_a_file_that_is_no_model_is_named(what, tmp_path):
    path = broken(tmp_path, what)
    with pytest.raises(ModelInvalid, match=r"model\.onnx") as caught:
        normalise(path, KEY, out(tmp_path))
    assert caught.value.fields["path"] == str(path)


def test_bytes_that_are_flipped_anywhere_are_a_typed_error_or_another_model(tmp_path):
    content = zoo.path("silero").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "model.onnx"
    key = ShapeKey.of(zoo.feeds("silero"))
    for _ in range(40):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content) if rng.random() < 0.3 else 3000))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with suppress(ModelInvalid, ModelUnsupported, TensorMismatch):
            normalise(path, key, out(tmp_path))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "w.data").unlink(), "weights file 'w.data' is missing"),
        (lambda folder: (folder / "w.data").write_bytes(b"short"), "'w.data', which has 5"),
    ],
)
def test_external_weights_that_are_missing_or_short_are_named(damage, said, tmp_path):
    odd = ODD["sparse_weights"]()
    odd.model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 4), np.float32), "big"))
    odd.model.graph.node[0].input[0] = "big"
    path = save(odd.model, tmp_path, save_as_external_data=True, location="w.data", size_threshold=0)
    damage(tmp_path)
    with pytest.raises(ModelInvalid, match=said):
        normalise(path, ShapeKey.of(odd.feeds), out(tmp_path))


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../b", ""])
def test_external_weights_outside_the_models_folder_are_refused(location, tmp_path):
    model = text("g (float[1,8] x) => (float[1,8] y) { y = Add(x, w) }", w=np.zeros((1, 8), np.float32))
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalid, match="'w'"):
        normalise(tmp_path / "model.onnx", KEY, out(tmp_path))


@pytest.mark.parametrize("numbers", [("-4", "32"), ("0", "-1"), ("x", "32"), ("0", "9" * 30)])
def test_external_weights_with_nonsense_offsets_are_refused(numbers, tmp_path):
    model = text("g (float[1,8] x) => (float[1,8] y) { y = Add(x, w) }", w=np.zeros((1, 8), np.float32))
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", numbers[0]), ("length", numbers[1])):
        weight.external_data.add(key=key, value=value)
    (tmp_path / "w.data").write_bytes(bytes(64))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelInvalid, match="'w'"):
        normalise(tmp_path / "model.onnx", KEY, out(tmp_path))


UNSUPPORTED = {
    "an operator of nobody": (text("g (float[1,8] x) => (float[1,8] y) { y = Frobnicate(x) }"), "Frobnicate"),
    "an operator of a domain of nobody": (
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "acme" : 1]> '
            "g (float[1,8] x) => (float[1,8] y) { y = acme.Anvil(x) }"
        ),
        "Anvil",
    ),
    "a datatype without a kernel": (
        text("g (float[1,8] x) => (bfloat16[1,8] y) { a = Cast<to = 16>(x) y = Erf(a) }"),
        "Erf",
    ),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_no_engine_runs_is_named_with_its_operator(what, tmp_path):
    model, operator = UNSUPPORTED[what]
    path = save(model, tmp_path)
    with pytest.raises(ModelUnsupported, match=operator) as caught:
        normalise(path, KEY, out(tmp_path))
    assert caught.value.fields["path"] == str(path)
    assert operator in caught.value.fields["operator"]


@pytest.mark.parametrize("change", ["opset", "ir"])
def test_a_version_of_the_future_is_unsupported(change, tmp_path):
    model = ODD["one_node"]().model
    if change == "opset":
        model.opset_import[0].version = 999
    else:
        model.ir_version = 99
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelUnsupported, match=r"model\.onnx"):
        normalise(path, KEY, out(tmp_path))


INVALID = {
    "a tensor from nowhere": "g (float[1,8] x) => (float[1,8] y) { y = Add(x, nowhere) }",
    "an output that nobody makes": "g (float[1,8] x) => (float[1,8] y) { a = Exp(x) }",
    "shapes that contradict": """g (float[1,8] x) => (float[1,8] y) {
        k = Constant<value_floats = [1.0, 2.0, 3.0]>() y = Add(x, k) }""",
    "a circle": "g (float[1,8] x) => (float[1,8] y) { a = Add(x, b) b = Exp(a) y = Neg(b) }",
}


@pytest.mark.parametrize("what", INVALID)
def test_a_graph_that_makes_no_sense_is_named(what, tmp_path):
    with pytest.raises(ModelInvalid, match=r"model\.onnx"):
        normalise(save(text(INVALID[what]), tmp_path), KEY, out(tmp_path))


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"x": (1, 4, 64, 64)}, r"input 'x' has shape \[1, 4, 64, 64\]; the model wants \['\?', 3, '\?', '\?'\]"),
        ({"x": (1, 3, 64)}, "input 'x' has shape"),
        ({"z": (1, 3, 64, 64)}, r"names the inputs \['z'\], the model wants \['x'\]"),
        ({}, "names the inputs"),
        ({"x": (1, 3, 64, 64), "y": (1,)}, "names the inputs"),
        ({"x": (1, 3, 33, 47)}, "does not accept the shapes"),  # the neck adds maps whose sizes then differ
    ],
)
def test_shapes_that_are_not_the_models_are_refused(shapes, said, tmp_path):
    with pytest.raises(TensorMismatch, match=said):
        normalise(zoo.path("ppocr_det"), ShapeKey(tuple(shapes.items())), out(tmp_path))
