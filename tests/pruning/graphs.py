"""Small ONNX graphs with seeded weights, written node by node, and samples for them."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Graph:
    """Adds nodes one after the other; every method returns the name of the tensor that it makes."""

    def __init__(self, n_channels: int = 3, size: int = 8, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.weights = [], []
        self.shape = [1, n_channels, size, size]

    def weight(self, *shape: int, gain: float = 1.0) -> str:
        return self.constant(self.rng.standard_normal(shape).astype(np.float32) * np.float32(gain))

    def constant(self, value: np.ndarray) -> str:
        name = f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, *inputs: str, n_outputs: int = 1, **attributes) -> str:
        name = f"{operator.lower()}{len(self.nodes)}"
        outputs = [name, *(f"{name}.{place}" for place in range(1, n_outputs))]
        self.nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return name

    def conv(self, at: str, n_in: int, n_out: int, size: int = 3, *, bias: bool = True, group: int = 1, **more) -> str:
        kernel = self.weight(n_out, n_in // group, size, size, gain=(2 / (n_in // group * size * size)) ** 0.5)
        inputs = [at, kernel, *([self.weight(n_out, gain=0.3)] if bias else [])]
        return self.add("Conv", *inputs, group=group, **{"pads": [size // 2] * 4, **more})

    def relu(self, at: str) -> str:
        return self.add("Relu", at)

    def linear(self, at: str, n_in: int, n_out: int) -> str:
        kernel = self.weight(n_out, n_in, gain=n_in**-0.5)
        return self.add("Gemm", at, kernel, self.weight(n_out), transB=1)

    def head(self, at: str, n_in: int, n_classes: int = 5) -> str:
        return self.linear(self.add("Flatten", self.add("GlobalAveragePool", at)), n_in, n_classes)

    def done(self, *outputs: str, opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_empty_tensor_value_info(name) for name in outputs],
            self.weights,
        )
        model = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        )
        onnx.checker.check_model(model)
        return model

    def samples(self, n: int = 24) -> list[dict[str, np.ndarray]]:
        """Noise that is smooth over the picture, so that channels have something to do with one another."""
        rng = np.random.default_rng(1)
        coarse = rng.standard_normal((n, self.shape[1], 3, 3))
        fine = np.kron(coarse, np.ones((1, 1, 6, 6)))[:, :, : self.shape[2], : self.shape[3]]
        noisy = fine + 0.3 * rng.standard_normal(fine.shape)
        return [{"x": one[None].astype(np.float32)} for one in noisy]


def chain() -> Graph:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 32))
    at = graph.add("MaxPool", at, kernel_shape=[2, 2], strides=[2, 2])
    at = graph.add("LeakyRelu", graph.conv(at, 32, 32, strides=[2, 2]), alpha=0.1)
    at = graph.add("Flatten", at)
    at = graph.relu(graph.linear(at, 32 * 4, 24))
    graph.linear(at, 24, 5)
    return graph


def residual() -> Graph:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 32))
    inner = graph.relu(graph.conv(at, 32, 48, bias=False))
    at = graph.relu(graph.add("Add", graph.conv(inner, 48, 32), at))
    graph.head(at, 32)
    return graph


def inverted() -> Graph:
    graph = Graph()
    at = graph.conv("x", 3, 16)
    inner = graph.add("Clip", graph.conv(at, 16, 64, 1), graph.constant(np.float32(0)), graph.constant(np.float32(6)))
    inner = graph.add("HardSwish", graph.conv(inner, 64, 64, group=64))
    gate = graph.add("GlobalAveragePool", inner)
    gate = graph.add("Sigmoid", graph.conv(graph.relu(graph.conv(gate, 64, 16, 1)), 16, 64, 1))
    at = graph.add("Add", graph.conv(graph.add("Mul", inner, gate), 64, 16, 1), at)
    graph.head(graph.add("BatchNormalization", at, *(graph.constant(np.ones(16, np.float32)) for _ in range(4))), 16)
    return graph


def dense() -> Graph:
    graph = Graph()
    at, width = graph.relu(graph.conv("x", 3, 24)), 24
    for _ in range(2):
        normed = graph.add("Mul", at, graph.weight(width, 1, 1))
        made = graph.relu(graph.conv(graph.relu(normed), width, 16))
        at, width = graph.add("Concat", at, made, axis=1), width + 16
    twice = graph.add("Concat", graph.add("GlobalAveragePool", at), graph.add("GlobalMaxPool", at), axis=1)
    at = graph.add("Squeeze", twice, graph.constant(np.array([2, 3], np.int64)))
    graph.linear(at, 2 * width, 5)
    return graph


def decoder() -> Graph:
    graph = Graph()
    at = graph.relu(graph.conv("x", 3, 32, strides=[2, 2]))
    up = graph.weight(32, 24, 2, 2, gain=0.2)
    at = graph.relu(graph.add("ConvTranspose", at, up, graph.weight(24), strides=[2, 2]))
    at = graph.add("Resize", at, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    graph.conv(graph.add("Pad", at, graph.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))), 24, 2)
    return graph


def tokens() -> Graph:
    """The wide layer of a transformer, over tokens: products on the last axis, and a gate of two branches."""
    graph = Graph(n_channels=6, size=16)
    graph.shape = [1, 6, 16]
    wide = graph.add("Add", graph.add("MatMul", "x", graph.weight(16, 64, gain=0.3)), graph.weight(64, gain=0.3))
    gate = graph.add("Sigmoid", graph.add("MatMul", "x", graph.weight(16, 64, gain=0.3)))
    at = graph.add("MatMul", graph.add("Mul", graph.add("Tanh", wide), gate), graph.weight(64, 16, gain=0.2))
    graph.add("Add", at, "x")
    return graph


def token_samples(n: int = 40) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.standard_normal((1, 6, 16), dtype=np.float32)} for _ in range(n)]
