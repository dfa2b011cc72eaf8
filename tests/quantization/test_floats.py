"""What is done to the float model first: it computes the same, and int8 then costs less."""

import numpy as np
import onnx
import pytest
from onnx import helper

from compression.quantization.editing import Weights
from compression.quantization.equalisation import equalize
from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.smoothing import smooth
from compression.quantization.static import quantize
from tests import zoo
from tests.quantization.nets import apart, convnet, images, net


def chain(end="Relu", spread=2.0):
    """Two convolutions and one depthwise in a row, channels of very unlike ranges between them."""
    model = convnet(spread=spread, end=end, batch_norm=False)
    nodes = [node for node in model.graph.node if node.op_type != "Add"]
    next(node for node in nodes if node.op_type == "GlobalAveragePool").input[0] = "c2"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def test_equalisation_goes_through_relu_and_depthwise_and_computes_the_same():
    model, samples = prepare(chain()), images(8)
    alike, n_pairs = equalize(model)
    assert n_pairs == 3  # both sides of the depthwise convolution, and the head behind the pooling
    assert apart(model, alike, images(4, seed=5)) < 1e-5
    before, after = (np.abs(Weights(one)["w0"]).max(axis=(1, 2, 3)) for one in (model, alike))
    assert np.log(after).std() < 0.7 * np.log(before).std()
    one_scale = Int8Recipe(per_channel=False)
    plain = apart(model, quantize(model, samples, one_scale).model, samples)
    evened = quantize(model, samples, Int8Recipe(per_channel=False, equalized=True))
    assert apart(model, evened.model, samples) < 0.7 * plain
    assert evened.notes == ("Equalisation: 3 pairs of layers.",)


def test_relu6_is_passed_only_where_no_sample_is_cut():
    model, samples = prepare(chain(end="Clip", spread=1.0)), images(8)
    assert equalize(model)[1] == 1  # without samples the limits are unknown: the head's pair alone
    alike, n_pairs = equalize(model, samples)
    assert n_pairs == 3
    assert apart(model, alike, samples) < 1e-5
    before, after = Weights(model)["w0"], Weights(alike)["w0"]
    assert not np.allclose(before, after)
    biased = onnx.ModelProto()
    biased.CopyFrom(model)
    Weights(biased)["b0"] = np.full(24, 50, np.float32)  # now every channel is cut
    cut, _ = equalize(biased, samples)
    np.testing.assert_array_equal(Weights(cut)["w0"], Weights(biased)["w0"])


def test_what_two_layers_read_is_not_scaled_for_one():
    model = prepare(convnet(spread=2.0, batch_norm=False))  # the first activation is also the residual
    alike, n_pairs = equalize(model)
    assert n_pairs == 1
    np.testing.assert_array_equal(Weights(alike)["w0"], Weights(model)["w0"])


def test_bias_correction_takes_half_of_a_coarse_net_error_away():
    model, samples, others = convnet(spread=1.5), images(24), images(8, seed=7)
    coarse = Int8Recipe(per_channel=False)
    plain = apart(model, quantize(model, samples, coarse).model, others)
    made = quantize(model, samples, Int8Recipe(per_channel=False, bias_corrected=True))
    assert apart(model, made.model, others) < 0.7 * plain
    assert made.notes[0].startswith("Bias correction: 4 layers")


def test_bias_correction_that_does_not_help_is_skipped():
    """A product of whole numbers below 128 is exact in int8: nothing is left to correct."""
    weight = np.random.default_rng(0).integers(-127, 128, (8, 16)).astype(np.float32)
    weight[:, 0] = 127
    model = net([helper.make_node("Gemm", ["x", "w"], ["y"], name="g", transB=1)], {"w": weight}, (1, 16))
    whole = np.arange(16, dtype=np.float32)[None] * 17
    samples = [{"x": whole}, {"x": whole[:, ::-1].copy()}]
    made = quantize(model, samples, Int8Recipe(bias_corrected=True))
    assert made.notes[0].startswith("Bias correction: skipped")
    assert made.model == quantize(model, samples).model


def normalised(own_readers: bool = True):
    """A layer normalisation with outlying channels before two products, and if wanted a residual beside them."""
    rng = np.random.default_rng(3)
    gain = np.exp(1.5 * rng.standard_normal(64)).astype(np.float32)
    weights = {
        "g": gain, "s": np.zeros(64, np.float32),
        "w1": rng.standard_normal((64, 64)).astype(np.float32) / 8,
        "w2": rng.standard_normal((64, 64)).astype(np.float32) / 8,
    }  # fmt: skip
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g", "s"], ["n"], name="n"),
        helper.make_node("MatMul", ["n", "w1"], ["a"], name="a"),
        helper.make_node("MatMul", ["n", "w2"], ["b"], name="b"),
        helper.make_node("Add", ["a", "b"], ["y" if own_readers else "ab"], name="ab"),
    ]
    if not own_readers:
        nodes.append(helper.make_node("Add", ["ab", "n"], ["y"], name="y"))
    rows = [{"x": rng.standard_normal((1, 7, 64)).astype(np.float32)} for _ in range(8)]
    return net(nodes, weights, (1, 7, 64)), rows


@pytest.mark.parametrize("own_readers", [True, False])
def test_smoothing_computes_the_same_and_calms_outliers(own_readers):
    model, samples = normalised(own_readers)
    model = prepare(model)
    calm, n_sites = smooth(model, samples, 0.5)
    assert n_sites == 1
    assert apart(model, calm, samples) < 1e-6
    n_added = len(calm.graph.node) - len(model.graph.node)
    assert n_added == (0 if own_readers else 1)  # folded into the normalisation where nobody else reads it
    recipe = Int8Recipe(operators="products")
    plain = apart(model, quantize(model, samples, recipe).model, samples)
    smoothed = quantize(model, samples, Int8Recipe(operators="products", smoothed=0.5))
    assert apart(model, smoothed.model, samples) < 0.8 * plain
    assert smoothed.notes == ("SmoothQuant: 1 inputs calmed, alpha 0.5.",)


def test_smoothing_says_when_there_is_nothing_to_smooth():
    made = quantize(convnet(), images(4), Int8Recipe(smoothed=0.5))
    assert made.notes == ("SmoothQuant: skipped, no matrix product reads a layer normalisation.",)


def test_a_trained_transformer_keeps_its_embedding():
    """Its attention mask is the least float, one layer's sums have outliers: rounding everything loses the answer."""
    model = prepare(onnx.load(zoo.path("minilm")))
    seen = [zoo.feeds("minilm", seed) for seed in range(6)]
    whole = quantize(model, seen[:4], Int8Recipe(operators="all"))
    products = quantize(model, seen[:4], Int8Recipe(smoothed=0.7))
    near, far = (apart(model, made.model, seen[4:]) for made in (products, whole))
    assert near < 0.1
    assert far > 3 * near
    assert products.model.ByteSize() < 0.27 * model.ByteSize()
    assert (products.n_int8, products.n_float) == (18, 6)  # products of two activations stay float
