"""Heads in a file of their own compute the same, learn without the body changing a byte, and weigh what they say."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.errors import NotTrainable
from compression.quantization.prepare import prepare
from compression.quantization.recipe import Int8Recipe
from compression.quantization.static import quantize
from compression.training.heads import (
    SeparatedHead,
    head_nodes,
    low_rank_head,
    packed,
    separate_head,
    unpacked,
)

CHANCE = np.random.default_rng(0)
IMAGES = CHANCE.normal(size=(8, 3, 8, 8)).astype(np.float32)


def net(wide: int = 32, classes: int = 10) -> onnx.ModelProto:
    """A convolution, the mean (the feature), and two products with a ReLU between them."""
    chance = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array((chance.normal(size=shape) * 0.3).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["image", "conv.w"], ["conv"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], name="relu"),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"], name="pooled"),
        helper.make_node("Flatten", ["pooled"], ["feature"], name="feature"),
        helper.make_node("Gemm", ["feature", "a.w", "a.b"], ["hidden"], name="hidden", transB=1),
        helper.make_node("Relu", ["hidden"], ["calm"], name="calm"),
        helper.make_node("MatMul", ["calm", "b.w"], ["product"], name="product"),
        helper.make_node("Add", ["product", "b.b"], ["scores"], name="scores"),
    ]
    weights = [
        weight("conv.w", wide, 3, 3, 3),
        weight("a.w", 64, wide),
        weight("a.b", 64),
        weight("b.w", 64, classes),
        weight("b.b", classes),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", classes])
    graph = helper.make_graph(nodes, "net", [image], [scores], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def run(model: onnx.ModelProto, images: np.ndarray = IMAGES) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"image": images})[0]


def run_files(folder: Path, head: SeparatedHead, content: bytes | None = None) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(head.model.SerializeToString())
    (folder / head.file).write_bytes(head.content if content is None else content)
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"image": IMAGES})[0]


def test_a_separate_head_computes_the_same_and_learns_alone(tmp_path: Path) -> None:
    model = net()
    before = model.SerializeToString()
    head = separate_head(model, "feature")
    assert model.SerializeToString() == before
    assert head.tensors == ("a.w", "a.b", "b.w", "b.b")
    assert head.n_bytes == 4 * (64 * 32 + 64 + 64 * 10 + 10)
    assert head.nodes == ("hidden", "calm", "product", "scores") == head_nodes(model, "feature")
    assert np.array_equal(run_files(tmp_path / "same", head), run(model))
    arrays = {name: array.copy() for name, array in head.arrays().items()}
    arrays["b.b"] += 3
    learned = run_files(tmp_path / "learned", head, packed(head.model, arrays))
    assert np.allclose(learned, run(model) + 3, atol=1e-5)
    (tmp_path / "same" / "model.onnx").write_bytes(head.model.SerializeToString())
    onnx.checker.check_model(str(tmp_path / "same" / "model.onnx"))
    assert separate_head(net(), "feature").model.SerializeToString() == head.model.SerializeToString()
    assert len(head.model.SerializeToString()) < len(before) - head.n_bytes + 400


def test_a_quantized_body_keeps_a_float_head(tmp_path: Path) -> None:
    samples = [{"image": image[None]} for image in IMAGES]
    quantized = quantize(net(), samples, Int8Recipe(kept_float=head_nodes(prepare(net()), "feature"))).model
    head = separate_head(quantized, "feature")
    assert {"a.w", "a.b", "b.w", "b.b"} == set(head.tensors)
    assert np.array_equal(run_files(tmp_path, head), run(quantized))
    with pytest.raises(NotTrainable, match=r"is quantized .*keep head_nodes"):
        separate_head(quantize(net(), samples, Int8Recipe()).model, "feature")


def test_an_update_of_low_rank_begins_as_nothing_and_is_small(tmp_path: Path) -> None:
    model = net()
    head = low_rank_head(model, "feature", rank=2, seed=4)
    assert head.n_bytes == 4 * 2 * ((32 + 64) + (64 + 10))
    assert head.n_bytes < 0.2 * separate_head(model, "feature").n_bytes
    assert np.array_equal(run_files(tmp_path / "same", head), run(model))
    arrays = {name: array.copy() for name, array in head.arrays().items()}
    first = next(name for name in arrays if name == "product/lora_a")
    chance = np.random.default_rng(2)
    arrays["product/lora_b"] = chance.normal(size=(2, 10)).astype(np.float32)
    whole = net()
    weight = next(one for one in whole.graph.initializer if one.name == "b.w")
    moved = numpy_helper.to_array(weight) + arrays[first] @ arrays["product/lora_b"]
    weight.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), "b.w"))
    learned = run_files(tmp_path / "learned", head, packed(head.model, arrays))
    assert np.allclose(learned, run(whole), atol=1e-4)
    one, other = (low_rank_head(model, "feature", 2, seed=seed).content for seed in (4, 5))
    assert one == head.content != other


def test_an_update_stands_beside_an_int8_head_too(tmp_path: Path) -> None:
    quantized = quantize(net(), [{"image": image[None]} for image in IMAGES], Int8Recipe()).model
    head = low_rank_head(quantized, "feature", rank=3)
    assert head.n_bytes == 4 * 3 * ((32 + 64) + (64 + 10))
    assert np.allclose(run_files(tmp_path, head), run(quantized), atol=0.15)


def test_products_that_would_not_shrink_are_left_alone() -> None:
    assert low_rank_head(net(classes=2), "feature", rank=2).n_bytes == 4 * 2 * (32 + 64)
    with pytest.raises(NotTrainable, match="no product behind 'feature' becomes smaller at rank 40"):
        low_rank_head(net(), "feature", rank=40)
    with pytest.raises(NotTrainable, match="a rank of 0"):
        low_rank_head(net(), "feature", rank=0)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ("nowhere", "there is no tensor 'nowhere'; the model has calm, conv,"),
        ("scores", "nothing stands on 'scores'"),
        ("image", "the whole model stands on 'image'"),
        ("conv", None),
    ],
)
def test_a_tensor_that_carries_no_head_is_refused(tensor: str, said: str | None) -> None:
    if said is None:
        assert head_nodes(net(), tensor)[0] == "relu"
        return
    with pytest.raises(NotTrainable, match=said):
        separate_head(net(), tensor)


def test_heads_that_cannot_learn_alone_are_refused() -> None:
    shared = net()
    shared.graph.node.insert(3, helper.make_node("MatMul", ["other", "b.w"], ["shared"], name="shared"))
    shared.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 64]))
    with pytest.raises(NotTrainable, match=r"shares b\.w with the body"):
        separate_head(shared, "feature")
    bare = net()
    del bare.graph.node[4:]
    bare.graph.node.append(helper.make_node("Relu", ["feature"], ["scores"], name="scores"))
    with pytest.raises(NotTrainable, match="no float weights stand on 'feature'"):
        separate_head(bare, "feature")
    nameless = net()
    nameless.graph.node[5].name = ""
    with pytest.raises(NotTrainable, match="has no name"):
        head_nodes(nameless, "feature")
    with pytest.raises(NotTrainable, match="without a folder"):
        separate_head(net(), "feature", file="deep/head.bin")


def test_a_file_of_another_head_is_refused() -> None:
    head = separate_head(net(), "feature")
    with pytest.raises(NotTrainable, match="it is another one's"):
        unpacked(head.model, head.content[:-4])
    arrays = head.arrays()
    with pytest.raises(NotTrainable, match="hand over each of them"):
        packed(head.model, {**arrays, "b.b": arrays["b.b"][:3]})
    assert packed(head.model, arrays) == head.content


def test_constants_that_are_rearranged_first_belong_to_the_head() -> None:
    """Some exporters leave `Transpose(weight)` in the graph; it reads no input, and yet its weight learns."""
    model = net()
    model.graph.node[4].CopyFrom(helper.make_node("MatMul", ["feature", "turned"], ["hidden"], name="hidden"))
    model.graph.node.insert(4, helper.make_node("Transpose", ["a.w"], ["turned"], name="turned"))
    assert "a.w" in separate_head(model, "feature").tensors
