"""Graphs made at random of operators that keep rows apart or mix them: any axis may be the one that they work on."""

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LINE, TWO, CUBE = (4,), (4, 4), (3, 4, 4)
W = np.random.default_rng(7).standard_normal((4, 4), dtype=np.float32)


def _any_axis(draw: random.Random, rank: int) -> int:
    return draw.randrange(-rank, rank)


def _node(draw: random.Random, x: str, rank: int, y: str, weights: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """One operator with attributes and constants at random, the axis of the rows among them."""

    def constant(value: np.ndarray) -> str:
        name = f"c{len(weights)}"
        weights[name] = value
        return name

    axis = _any_axis(draw, rank)
    sizes = [draw.choice([1, 1, 2, 4]) for _ in range(draw.randrange(rank + 1))]
    order = draw.sample(range(rank), rank)
    table: list[Callable[[], list[onnx.NodeProto]]] = [
        lambda: [helper.make_node(draw.choice(["Relu", "Tanh", "Neg", "Identity"]), [x], [y])],
        lambda: [helper.make_node("Softmax", [x], [y], axis=axis)],
        lambda: [helper.make_node("ReduceMean", [x], [y], axes=[axis], keepdims=draw.choice([0, 1]))],
        lambda: [helper.make_node("ReduceSum", [x, constant(np.array([axis], np.int64))], [y + "s"]),
                 helper.make_node("Sub", [x, y + "s"], [y])],
        lambda: [helper.make_node("Transpose", [x], [y], perm=order)],
        lambda: [helper.make_node("Unsqueeze", [x, constant(np.array([draw.randrange(rank + 1)], np.int64))], [y])],
        lambda: [helper.make_node("Squeeze", [x, constant(np.array([axis], np.int64))], [y])],
        lambda: [helper.make_node("Flatten", [x], [y], axis=draw.randrange(rank + 1))],
        lambda: [helper.make_node("Reshape", [x, constant(np.array(
            draw.choice([[-1, 4], [4, -1], [0, -1], [-1, 2, 4], [0, 0, -1], [1, -1, 4], [-1, 4, 4], [2, -1], [-1]]),
            np.int64))], [y])],
        lambda: [helper.make_node("MatMul", [x, constant(W)], [y])],
        lambda: [helper.make_node("MatMul", [constant(W), x], [y])],
        lambda: [helper.make_node("MatMul", [x, x], [y])],
        lambda: [helper.make_node("Transpose", [x], [y + "t"], perm=order),
                 helper.make_node(draw.choice(["MatMul", "Add"]), [x, y + "t"], [y])],
        lambda: [helper.make_node("Add", [x, constant(np.ones(sizes, np.float32))], [y])],
        lambda: [helper.make_node("Gather", [x, constant(np.array(draw.choice([0, [0], [0, 0]]), np.int64))], [y],
                                  axis=axis)],
        lambda: [helper.make_node("Slice", [x, *(constant(np.array([v], np.int64)) for v in
                                                 (0, draw.choice([1, 2, 2**31 - 1]), axis))], [y])],
        lambda: [helper.make_node("Concat", [x, x], [y], axis=axis)],
        lambda: [helper.make_node("CumSum", [x, constant(np.array(axis, np.int64))], [y])],
        lambda: [helper.make_node("LayerNormalization", [x, constant(np.ones(4, np.float32))], [y], axis=axis)],
        lambda: [helper.make_node("ArgMax", [x], [y + "a"], axis=axis, keepdims=draw.choice([0, 1])),
                 helper.make_node("Cast", [y + "a"], [y], to=TensorProto.FLOAT)],
        lambda: [helper.make_node("TopK", [x, constant(np.array([1], np.int64))], [y, y + "k"], axis=axis)],
        lambda: [helper.make_node("Expand", [x, constant(np.array(sizes, np.int64))], [y])],
        lambda: [helper.make_node("GlobalAveragePool", [x], [y])],
        lambda: [helper.make_node("Shape", [x], [y + "s"]),
                 helper.make_node("Gather", [y + "s", constant(np.array([draw.choice([0, -1])], np.int64))], [y + "g"]),
                 helper.make_node(draw.choice(["Expand", "Tile"]),
                                  [y + "g", constant(np.array([draw.choice([1, 4])], np.int64))], [y + "e"]),
                 helper.make_node("Cast", [y + "e"], [y + "f"], to=TensorProto.FLOAT),
                 helper.make_node("Add", [x, y + "f"], [y])],
        lambda: [helper.make_node("Shape", [x], [y + "s"]),
                 helper.make_node("Gather", [y + "s", constant(np.array(
                     draw.choice([[0], [0, -1], [-1, 0]]), np.int64))], [y + "g"]),
                 helper.make_node("Concat", [y + "g", constant(np.array([-1], np.int64))], [y + "c"], axis=0),
                 helper.make_node("Reshape", [x, y + "c"], [y])],
    ]  # fmt: skip
    return draw.choice(table)()


def random_model(seed: int) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    draw = random.Random(seed)
    shape = draw.choice([LINE, TWO, CUBE])
    weights: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    x, rank = "x", 1 + len(shape)
    for number in range(draw.randrange(1, 5)):
        y = f"t{number}"
        added = _node(draw, x, rank, y, weights)
        nodes += added
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info(y, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type
        x, rank = y, max(1, len(inferred.shape.dim)) if inferred.HasField("shape") else rank
    return model, shape
