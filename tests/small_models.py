"""Small ONNX models made on the spot: each one a shape of question that a server must answer."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = [helper.make_opsetid("", 17)]
IR_VERSION = 9
MLP_SIZES = (64, 256, 256, 10)


def _save(path: Path, nodes: list, inputs: list, outputs: list, weights: list | None = None) -> Path:
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, weights or [])
    model = helper.make_model(graph, opset_imports=OPSET, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def _value(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def mlp(path: Path, seed: int = 0) -> Path:
    """x FP32 [n, 64] -> y FP32 [n, 10], a softmax; 64-256-256-10."""
    random = np.random.default_rng(seed)
    nodes, weights, current = [], [], "x"
    for i, (n_in, n_out) in enumerate(pairwise(MLP_SIZES)):
        matrix = (random.standard_normal((n_in, n_out)) * (2 / n_in) ** 0.5).astype(np.float32)
        weights += [numpy_helper.from_array(matrix, f"w{i}"), numpy_helper.from_array(np.zeros(n_out, "f4"), f"b{i}")]
        nodes.append(helper.make_node("Gemm", [current, f"w{i}", f"b{i}"], [f"g{i}"]))
        current = f"g{i}"
        if i < 2:
            nodes.append(helper.make_node("Relu", [current], [f"r{i}"]))
            current = f"r{i}"
    nodes.append(helper.make_node("Softmax", [current], ["y"]))
    ends = [_value("x", TensorProto.FLOAT, ["n", 64])], [_value("y", TensorProto.FLOAT, ["n", 10])]
    return _save(path, nodes, *ends, weights)


def conv(path: Path) -> Path:
    """x FP32 [1, 3, 224, 224] -> y FP32 [1, 64]: three strided 3x3 convolutions and a mean."""
    random = np.random.default_rng(1)
    nodes, weights, current, n_in = [], [], "x", 3
    for i, n_out in enumerate((16, 32, 64)):
        kernel = (random.standard_normal((n_out, n_in, 3, 3)) * (2 / (9 * n_in)) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"k{i}"))
        nodes.append(helper.make_node("Conv", [current, f"k{i}"], [f"c{i}"], strides=[2, 2], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        current, n_in = f"r{i}", n_out
    nodes.append(helper.make_node("GlobalAveragePool", [current], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["y"]))
    ends = [_value("x", TensorProto.FLOAT, [1, 3, 224, 224])], [_value("y", TensorProto.FLOAT, [1, 64])]
    return _save(path, nodes, *ends, weights)


def heavy(path: Path, n_megabytes: int = 96) -> Path:
    """x FP32 [1, 1024] -> y: one wide product whose weights take a while to load."""
    matrix = np.ones((1024, n_megabytes * 256), np.float32)
    ends = [_value("x", TensorProto.FLOAT, [1, 1024])], [_value("y", TensorProto.FLOAT, [1, matrix.shape[1]])]
    return _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], *ends, [numpy_helper.from_array(matrix, "w")])


def add_sub(path: Path) -> Path:
    """INPUT0, INPUT1 INT32 [1, 16] -> OUTPUT0 (sum), OUTPUT1 (difference): the model of Triton's examples."""
    ports = [_value(f"INPUT{i}", TensorProto.INT32, [1, 16]) for i in (0, 1)]
    results = [_value(f"OUTPUT{i}", TensorProto.INT32, [1, 16]) for i in (0, 1)]
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    return _save(path, nodes, ports, results)


def echo(path: Path, kind: int, shape: list) -> Path:
    """x -> y, the same tensor of an ONNX datatype."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _save(path, nodes, [_value("x", kind, shape)], [_value("y", kind, shape)])


def reshape(path: Path) -> Path:
    """x FP32 [n] and s INT64 [k] -> x in the shape s: fails inside the engine where they do not fit."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    ports = [_value("x", TensorProto.FLOAT, ["n"]), _value("s", TensorProto.INT64, ["k"])]
    return _save(path, nodes, ports, [_value("y", TensorProto.FLOAT, ["a", "b"])])


def loop(path: Path) -> Path:
    """n INT64 [], x FP32 [128, 128] -> y: n products, so that a caller decides how long it takes."""
    square = numpy_helper.from_array(np.eye(128, dtype=np.float32), "eye")
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "eye"], ["product"]),
            helper.make_node("MatMul", ["product", "eye"], ["next_state"]),
            helper.make_node("Identity", ["go_on"], ["still"]),
        ],
        "body",
        [
            _value("i", TensorProto.INT64, []),
            _value("go_on", TensorProto.BOOL, []),
            _value("state", TensorProto.FLOAT, [128, 128]),
        ],
        [_value("still", TensorProto.BOOL, []), _value("next_state", TensorProto.FLOAT, [128, 128])],
        [square],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)]
    ports = [_value("n", TensorProto.INT64, []), _value("x", TensorProto.FLOAT, [128, 128])]
    return _save(path, nodes, ports, [_value("y", TensorProto.FLOAT, [128, 128])])
