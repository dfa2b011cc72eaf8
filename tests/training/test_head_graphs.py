"""A body that is changed by itself leaves the head behind it as it was, byte for byte."""

import numpy as np
import onnx
import pytest
from onnx import helper

from compression.errors import NotTrainable
from compression.pruning.without_source import prune_graph
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.head_graphs import around, body_of, joined, stand_of
from compression.training.heads import separate_head
from tests.training.test_heads import IMAGES, net, run


def deep() -> onnx.ModelProto:
    """The net with one more convolution, whose channels nothing but the body reads."""
    made = net()
    chance = np.random.default_rng(3)
    first = (0.3 * chance.normal(size=(16, 3, 3, 3))).astype(np.float32)
    made.graph.initializer.append(onnx.numpy_helper.from_array(first, "first.w"))
    wide = next(one for one in made.graph.initializer if one.name == "conv.w")
    wide.CopyFrom(onnx.numpy_helper.from_array((0.1 * chance.normal(size=(32, 16, 3, 3))).astype(np.float32), "conv.w"))
    made.graph.node[0].input[0] = "first.relu"
    made.graph.node.insert(0, helper.make_node("Relu", ["first"], ["first.relu"], name="first.relu"))
    made.graph.node.insert(
        0, helper.make_node("Conv", ["image", "first.w"], ["first"], name="first", pads=[1, 1, 1, 1])
    )
    return made


SAMPLES = [{"image": image[None]} for image in IMAGES]


def test_the_last_product_is_where_a_head_begins_unless_one_is_named() -> None:
    assert stand_of(net()).tensor == "calm"
    assert stand_of(net()).node == "product (MatMul)"
    assert stand_of(net(), "feature").node == "hidden (Gemm)"
    turned = net()
    turned.graph.node[6].CopyFrom(helper.make_node("MatMul", ["calm", "turned"], ["product"], name="product"))
    turned.graph.node.insert(6, helper.make_node("Transpose", ["b.t"], ["turned"], name="turned"))
    weight = next(one for one in turned.graph.initializer if one.name == "b.w")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).T.copy(), "b.t"))
    assert stand_of(turned).tensor == "calm"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("featur", "there is no tensor 'featur'; near it feature"), ("image", "the whole model stands on 'image'")],
)
def test_a_tensor_that_is_none_is_refused_and_near_ones_are_named(wanted: str, said: str) -> None:
    with pytest.raises(NotTrainable, match=said):
        stand_of(net(), wanted)


def test_a_head_without_a_product_is_refused_with_what_it_has() -> None:
    with pytest.raises(NotTrainable, match="no product by weights stands on 'product', only Add"):
        separate_head(net(), "product")
    bare = net()
    del bare.graph.node[4:]
    bare.graph.node.append(helper.make_node("Relu", ["feature"], ["scores"], name="scores"))
    bare.graph.node[0].input[1] = "image"
    with pytest.raises(NotTrainable, match="no Gemm, MatMul, Conv by float weights"):
        stand_of(bare)


@pytest.mark.parametrize("way", ["int8", "pruned", "both"])
def test_a_changed_body_keeps_the_head(way: str) -> None:
    def change(body: onnx.ModelProto) -> onnx.ModelProto:
        if way != "int8":
            body = prune_graph(body, SAMPLES, 0.25, 4).model
        recipe = Int8Recipe(bias_corrected=True, equalized=True)
        return quantize(body, SAMPLES, recipe).model if way != "pruned" else body

    model = deep()
    made = around(model, "feature", change)
    onnx.checker.check_model(made)
    apart, whole = separate_head(made, "feature"), separate_head(model, "feature")
    assert (apart.content, apart.tensors) == (whole.content, whole.tensors)
    assert [node.name for node in made.graph.node][-4:] == ["hidden", "calm", "product", "scores"]
    assert np.abs(run(made) - run(model)).max() < 0.3 * np.abs(run(model)).max()


def test_names_that_meet_and_older_operator_sets_change_nothing() -> None:
    """The body comes back in a later operator set, and calls something of its own as the head calls its weight."""
    model = net()
    wanted = run(model)

    def change(body: onnx.ModelProto) -> onnx.ModelProto:
        body = onnx.version_converter.convert_version(body, 18)
        for tensor in body.graph.initializer:
            tensor.name = "a.w"
        body.graph.node[0].input[1] = "a.w"
        return body

    made = around(model, "feature", change)
    assert made.opset_import[0].version == 18
    assert np.array_equal(run(made), wanted)
    assert separate_head(made, "feature").content == separate_head(model, "feature").content


def test_a_body_that_lacks_what_the_head_reads_is_refused() -> None:
    model = net()
    body = body_of(model, "feature")
    assert [value.name for value in body.graph.output] == ["feature"]
    assert {one.name for one in body.graph.initializer} == {"conv.w"}
    body.graph.output[0].name = "relu"
    with pytest.raises(NotTrainable, match="lacks feature"):
        joined(body, model, "feature")


def test_constants_alone_are_no_body() -> None:
    """Exporters leave Constant nodes in a graph; they are not computed from the input."""
    made = net()
    wanted = onnx.numpy_helper.from_array(np.zeros(1, np.float32))
    made.graph.node.insert(0, helper.make_node("Constant", [], ["left"], name="left", value=wanted))
    with pytest.raises(NotTrainable, match="the whole model stands on 'image'"):
        stand_of(made, "image")
    assert stand_of(made, "feature").node == "hidden (Gemm)"
