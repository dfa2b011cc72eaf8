"""A small convolutional network that learns whole, and the digits as images for it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.folder import Artifact
from hybrid.artifact.trainable import trainable_artifact

NAME = "net"


def small_net(seed: int = 0, *, pixels: int = 8) -> onnx.ModelProto:
    """Image (n, 1, 8, 8) -> scores (n, 10): two convolutions, normalisation, two pools, 2,130 weights."""
    r = np.random.default_rng(seed)
    weights = {
        "conv1.w": r.normal(0, (2 / 9) ** 0.5, (8, 1, 3, 3)), "conv1.b": np.zeros(8),
        "norm.scale": np.ones(8), "norm.shift": np.zeros(8), "norm.mean": np.full(8, 0.2), "norm.variance": np.ones(8),
        "conv2.w": r.normal(0, (2 / 72) ** 0.5, (16, 8, 3, 3)), "conv2.b": np.zeros(16),
        "last.w": r.normal(0, 16**-0.5, (16, 10)), "last.b": np.zeros(10),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "conv1.w", "conv1.b"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c1", *(f"norm.{of}" for of in ("scale", "shift", "mean", "variance"))], ["n1"],
             name="norm"),
        node("Relu", ["n1"], ["r1"], name="relu1"),
        node("MaxPool", ["r1"], ["p1"], name="pool1", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p1", "conv2.w", "conv2.b"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"], name="relu2"),
        node("GlobalMaxPool", ["r2"], ["p2"], name="pool2"),
        node("Flatten", ["p2"], ["f"], name="flat"),
        node("Gemm", ["f", "last.w", "last.b"], ["scores"], name="last"),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, NAME, [value("image", TensorProto.FLOAT, ["n", 1, pixels, pixels])],
        [value("scores", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def whole_artifact(folder: Path, *, version: str = "1", seed: int = 0) -> Artifact:
    """The network as an artifact, all of which may learn."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.onnx"
    onnx.save(small_net(seed), path)
    return trainable_artifact(path, folder, name=NAME, version=version, head="input")


def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797, (n, 1, 8, 8) and their classes, in a fixed random order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(1234).permutation(len(found.target))
    return (found.images[order, None] / 16.0).astype(np.float32), found.target[order].astype(np.int64)
