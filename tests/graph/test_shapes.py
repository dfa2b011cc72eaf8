"""Shapes are known to the last tensor that can be, and work is counted from them."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from hybrid.graph.normalise import normalise
from hybrid.graph.read import read_view
from hybrid.graph.shape_key import ShapeKey
from hybrid.graph.shapes import infer
from tests import zoo
from tests.odd_models import ODD, text


def view_of(path: Path, feeds, folder: Path):
    folder.mkdir(exist_ok=True)
    key = ShapeKey.of(feeds)
    model = normalise(path, key, folder)
    return read_view(model, infer(model, key, folder))


def odd_view(name, tmp_path):
    odd = ODD[name]()
    onnx.save(odd.model, tmp_path / "model.onnx")
    return view_of(tmp_path / "model.onnx", odd.feeds, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "variant"),
    [(n, v) for n in zoo.TRAINED if n != "silero_if" for v in range(zoo.n_variants(n))] + [("densenet121", 0)],
)
def test_every_tensor_of_a_real_model_is_sized(name, variant, tmp_path):
    view = view_of(zoo.path(name), zoo.feeds(name, variant=variant), tmp_path / "out")
    assert view.n_unsized == 0
    assert all(view.specs[tensor].n_bytes is not None for node in view.nodes for tensor in node.outputs)
    assert all(node.inputs for node in view.nodes)


def test_operators_that_only_the_engine_knows_are_sized(tmp_path):
    view = odd_view("operators_of_the_engine", tmp_path)
    assert view.specs["a"].shape == view.specs["b"].shape == (3, 8)
    assert [node.op for node in view.nodes][:2] == ["com.microsoft:QuickGelu", "com.microsoft:FastGelu"]
    assert view.n_unsized == 0


def test_a_size_that_the_data_decides_stays_open(tmp_path):
    view = odd_view("data_dependent", tmp_path)
    assert view.specs["n"].shape == (2, None)
    assert view.specs["c"].shape == (None, 2)
    assert view.n_unsized == 4  # n, t, c, y


def test_constants_and_what_depends_on_them_alone_are_no_nodes(tmp_path):
    view = odd_view("quantised", tmp_path)
    assert [node.op for node in view.nodes] == ["Mul", "Tanh", "Mul", "Exp"]
    assert odd_view("constant_output", tmp_path).constant_outputs == {"k"}


def test_control_flow_is_one_node_with_what_it_captures(tmp_path):
    view = odd_view("branches_that_capture", tmp_path)
    (branch,) = [node for node in view.nodes if node.op == "If"]
    assert set(branch.inputs) >= {"h", "x"}
    assert set(branch.outputs) == {"m"}


def test_what_nobody_reads_is_left_out(tmp_path):
    view = odd_view("unused_results", tmp_path)
    assert "Neg" not in [node.op for node in view.nodes]


WORK = {
    "Conv": ("[1,4,8,8] x) => (float[1,6,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", {"w": (6, 4, 3, 3)}, 384 * 36),
    "grouped": (
        "[1,4,8,8] x) => (float[1,4,8,8] y) { y = Conv<pads=[1,1,1,1], group=4>(x, w) }", {"w": (4, 1, 3, 3)}, 256 * 9
    ),
    "ConvTranspose": (
        "[1,4,8,8] x) => (float[1,6,16,16] y) { y = ConvTranspose<strides=[2,2]>(x, w) }", {"w": (4, 6, 2, 2)}, 256 * 24
    ),
    "MatMul": ("[2,5,8] x) => (float[2,5,3] y) { y = MatMul(x, w) }", {"w": (8, 3)}, 30 * 8),
    "Gemm": ("[8,5] x) => (float[5,3] y) { y = Gemm<transA=1>(x, w) }", {"w": (8, 3)}, 15 * 8),
    "LSTM": (
        "[6,2,5] x) => (float[6,1,2,3] y) { y = LSTM<hidden_size=3>(x, w, r) }",
        {"w": (1, 12, 5), "r": (1, 12, 3)},
        12 * (60 + 36),
    ),
    "elements": ("[2,5,8] x) => (float[2,5,8] y) { y = Tanh(x) }", {}, 40),
    "a reduction": ("[2,50] x) => (float[2,1] y) { y = ReduceMean<axes=[1]>(x) }", {}, 50),
    "Reshape": ("[2,50] x) => (float[1,100] y) { y = Flatten<axis=0>(x) }", {}, 0),
}  # fmt: skip
"""The multiply-adds (two operations each) of one node; elements count as half of one here."""


@pytest.mark.parametrize("what", WORK)
def test_work_is_counted_as_the_textbook_does(what, tmp_path):
    body, weights, wanted = WORK[what]
    rng = np.random.default_rng(0)
    model = text(
        f"g (float{body}", **{name: rng.standard_normal(shape, dtype=np.float32) for name, shape in weights.items()}
    )
    onnx.save(model, tmp_path / "model.onnx")
    shape = tuple(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    view = view_of(tmp_path / "model.onnx", {"x": np.zeros(shape, np.float32)}, tmp_path / "out")
    assert view.nodes[0].work == 2 * wanted
