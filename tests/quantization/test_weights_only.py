"""Small weights under float arithmetic: bytes, nearness, and refusals."""

import numpy as np
import onnx
import pytest
from onnx import helper

from compression.errors import NotQuantizable
from compression.quantization.weights_only import half_weights, weights_only
from tests import zoo
from tests.quantization.nets import apart, convnet, images, net
from tests.shaped_nets import mobilenet_v2


@pytest.mark.parametrize(("bits", "most_apart", "most_bytes"), [(8, 0.03, 0.27), (4, 0.25, 0.23)])
def test_a_trained_transformer_in_few_bits(bits, most_apart, most_bytes):
    model = onnx.load(zoo.path("minilm"))
    small = weights_only(model, bits)
    onnx.checker.check_model(small)
    assert apart(model, small, [zoo.feeds("minilm")]) < most_apart
    assert small.ByteSize() < most_bytes * model.ByteSize()
    kinds = [node.op_type for node in small.graph.node]
    assert "MatMulNBits" in kinds
    assert "DequantizeLinear" not in kinds  # engines would widen the weights at every run


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("n_in", [64, 100])
def test_blocks_of_any_size_and_rows_that_do_not_fill_them(block, n_in):
    weight = np.random.default_rng(0).standard_normal((n_in, 48)).astype(np.float32)
    model = net([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": weight}, ("n", n_in))
    rows = [{"x": np.random.default_rng(1).standard_normal((5, n_in)).astype(np.float32)}]
    eight, four = (apart(model, weights_only(model, bits, block), rows) for bits in (8, 4))
    assert eight < 0.02
    assert eight < four < 0.2


def test_a_convnet_in_eight_bits_and_in_halves():
    model = mobilenet_v2(size=32, width=0.25, n_classes=10)
    samples = [{"image": feeds["x"]} for feeds in images(3, side=32)]
    before = model.SerializeToString()
    assert apart(model, weights_only(model), samples) < 0.05
    assert apart(model, half_weights(model), samples) < 5e-3
    light = onnx.load(zoo.path(zoo.EFFICIENTNET))
    assert weights_only(light).ByteSize() < 0.27 * light.ByteSize()
    assert half_weights(light).ByteSize() < 0.51 * light.ByteSize()
    assert model.SerializeToString() == before


def test_halves_leave_what_they_cannot_hold():
    huge = np.full((64, 64), 1e5, np.float32)
    tiny = np.full((64, 64), 1e-9, np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "huge"], ["a"], name="a"),
        helper.make_node("MatMul", ["a", "tiny"], ["y"], name="y"),
    ]
    model = net(nodes, {"huge": huge, "tiny": tiny}, (1, 64))
    with pytest.raises(NotQuantizable, match="float16 can hold"):
        half_weights(model)


@pytest.mark.parametrize(("options", "said"), [({"bits": 3}, "bits is 3"), ({"block": 20}, "block is 20")])
def test_other_widths_are_refused(options, said):
    with pytest.raises(NotQuantizable, match=said):
        weights_only(convnet(), **options)


def test_a_model_with_small_weights_alone_is_refused():
    model = net([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((4, 4), np.float32)}, (1, 4))
    with pytest.raises(NotQuantizable, match="nothing would become smaller"):
        weights_only(model)


def test_four_bits_of_a_net_without_matrix_products_are_refused_and_not_eight_bits_by_another_name():
    model = mobilenet_v2(size=32, width=0.25, n_classes=10)
    weights_only(model, 8)
    with pytest.raises(NotQuantizable, match="no MatMul by a constant matrix"):
        weights_only(model, 4)
