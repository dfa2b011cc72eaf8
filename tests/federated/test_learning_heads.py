"""Which heads can learn, and what is said of those that cannot."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hybrid.errors import ModelUntrainable
from hybrid.federated.learning.head import read_head
from tests.federated.learning_making import external, made, node, reference_model

RANDOM = np.random.default_rng(7)
LINEAR = node("Gemm", "x w b", "z")


def drawn(*shape: int) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * 0.5).astype(np.float32)


W = {"w": drawn(6, 5), "b": drawn(5)}


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    model = made([LINEAR, node("Softplus", "z", "y")], W, ["n", 6], {"y": ["n", 5]})
    path = external(model, ["w", "b"], tmp_path)
    with pytest.raises(ModelUntrainable, match=r"Softplus at 'y'.*choose a feature tensor") as told:
        read_head(path, "x", {"head.bin": 140})
    assert told.value.fields["operator"] == "Softplus"


def test_what_hangs_on_more_than_the_features_is_refused(tmp_path: Path) -> None:
    nodes = [
        node("Relu", "x", "h"),
        node("Gemm", "h w b", "z"),
        node("MatMul", "x v", "beside"),
        node("Add", "z beside", "y"),
    ]
    model = made(nodes, W | {"v": drawn(6, 5)}, ["n", 6], {"y": ["n", 5]})
    path = external(model, ["w", "b"], tmp_path)
    with pytest.raises(ModelUntrainable, match="needs"):
        read_head(path, "h", {"head.bin": 140})


def test_a_tensor_before_the_features_is_refused(tmp_path: Path) -> None:
    path = reference_model(tmp_path)
    with pytest.raises(ModelUntrainable, match=r"b1, w1 may learn.*features 'hidden' are made with it"):
        read_head(path, "hidden", {"head.bin": path.with_name("head.bin").stat().st_size})


def test_a_head_that_mixes_samples_is_refused(tmp_path: Path) -> None:
    nodes = [LINEAR, node("ReduceMean", "z axes", "m", keepdims=1), node("Sub", "z m", "y")]
    model = made(nodes, W | {"axes": np.array([0])}, ["n", 6], {"y": ["n", 5]})
    path = external(model, ["w", "b"], tmp_path)
    head = read_head(path, "x", {"head.bin": 140})
    with pytest.raises(ModelUntrainable, match="mixes the samples"):
        head.program.check_rows(head.arrays, drawn(3, 6))


def test_nodes_in_any_order(tmp_path: Path) -> None:
    """Quantizers leave nodes in another order than that of computation."""
    path = reference_model(tmp_path, learns=("w2", "b2"))
    model = onnx.load(path, load_external_data=False)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    head = read_head(path, "hidden", {"head.bin": path.with_name("head.bin").stat().st_size})
    assert [step.output for step in head.program.steps] == ["scores", "probabilities"]
    assert head.program.form == "probabilities"


def test_one_of_two_outputs_is_named(tmp_path: Path) -> None:
    nodes = [LINEAR, node("Relu", "z", "y"), node("Sigmoid", "z", "other")]
    model = made(nodes, W, ["n", 6], {"y": ["n", 5], "other": ["n", 5]})
    path = external(model, ["w", "b"], tmp_path)
    with pytest.raises(ModelUntrainable, match="name one of them"):
        read_head(path, "x", {"head.bin": 140})
    assert read_head(path, "x", {"head.bin": 140}, output="other").program.output == "other"
    with pytest.raises(ModelUntrainable, match="no float output 'z'"):
        read_head(path, "x", {"head.bin": 140}, output="z")


def test_outputs_that_show_the_same_scores_are_one(tmp_path: Path) -> None:
    """Logits, their softmax and the best class: what classifiers often give."""
    nodes = [LINEAR, node("Softmax", "z", "y"), node("ArgMax", "z", "best", axis=1)]
    model = made(nodes, W, ["n", 6], {"z": ["n", 5], "y": ["n", 5]})
    model.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["n", 1]))
    path = external(model, ["w", "b"], tmp_path)
    program = read_head(path, "x", {"head.bin": 140}).program
    assert (program.output, program.scores) == ("z", "z")


def test_whole_numbers_cannot_learn(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [node("MatMulInteger", "x w", "y")], "made",
        [helper.make_tensor_value_info("x", TensorProto.INT8, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, ["n", 5])],
        [onnx.numpy_helper.from_array(np.ones((6, 5), np.int8), "w")],
    )  # fmt: skip
    path = external(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), ["w"], tmp_path
    )
    with pytest.raises(ModelUntrainable, match="INT8"):
        read_head(path, "x", {"head.bin": 30})


def test_weights_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = reference_model(tmp_path)
    model = onnx.load(path, load_external_data=False)
    first, second = (one for one in model.graph.initializer if one.name in ("b1", "b2"))
    places = {entry.key: entry.value for entry in first.external_data}
    for entry in second.external_data:
        if entry.key == "offset":
            entry.value = places["offset"]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelUntrainable, match="share bytes"):
        read_head(path, "image", {"head.bin": path.with_name("head.bin").stat().st_size})


def test_a_feature_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = reference_model(tmp_path)
    with pytest.raises(ModelUntrainable, match="no tensor 'gone'"):
        read_head(path, "gone", {"head.bin": path.with_name("head.bin").stat().st_size})
