"""A small trained classifier, its samples and labels: large enough that int8 pays, small enough for a second."""

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

N_CLASSES, SIZE, CHANNELS = 6, 12, (64, 128, 128)


@cache
def samples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy pictures of one of six patterns, and which it is."""
    random = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((N_CLASSES, 1, SIZE, SIZE))
    labels = random.integers(0, N_CLASSES, n)
    noise = random.standard_normal((n, 1, SIZE, SIZE))
    return (patterns[labels] + 0.9 * noise).astype(np.float32), labels


def graph(path: Path, batch: int | str = 1, seed: int = 0, channels: tuple[int, ...] = CHANNELS) -> Path:
    """x FP32 [batch, 1, 12, 12] -> y FP32 [batch, 6]: convolutions drawn, and a last layer fitted to samples."""
    random = np.random.default_rng(seed)
    weights, nodes, current, n_in = [], [], "x", 1
    for at, n_out in enumerate(channels):
        kernel = random.standard_normal((n_out, n_in, 3, 3)) * (2 / (9 * n_in)) ** 0.5
        weights += [numpy_helper.from_array(kernel.astype(np.float32), f"w{at}")]
        weights += [numpy_helper.from_array((0.05 * random.standard_normal(n_out)).astype(np.float32), f"b{at}")]
        nodes.append(helper.make_node("Conv", [current, f"w{at}", f"b{at}"], [f"c{at}"], f"conv{at}", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{at}"], [f"r{at}"], f"relu{at}"))
        current, n_in = f"r{at}", n_out
    nodes.append(helper.make_node("MaxPool", [current], ["m"], "pool", kernel_shape=[4, 4], strides=[4, 4]))
    nodes.append(helper.make_node("Flatten", ["m"], ["f"], "flat"))
    n_features = n_in * (SIZE // 4) ** 2
    body = model(nodes, weights, batch, ("f", n_features))
    x, labels = samples(1200, 7)
    features = np.concatenate([_run(body, x[start : start + 1]) for start in range(len(x))])
    wanted = np.eye(N_CLASSES, dtype=np.float32)[labels] - 1 / N_CLASSES
    inner = features.T @ features + 30.0 * np.eye(n_features, dtype=np.float32) * features.var()
    fitted = np.linalg.solve(inner, features.T @ wanted) * 8
    weights += [numpy_helper.from_array(fitted.astype(np.float32), "wf")]
    weights += [numpy_helper.from_array(np.zeros(N_CLASSES, np.float32), "bf")]
    nodes.append(helper.make_node("Gemm", ["f", "wf", "bf"], ["y"], "last"))
    onnx.save(model(nodes, weights, batch, ("y", N_CLASSES)), str(path))
    return path


def model(nodes: list, weights: list, batch: int | str, output: tuple[str, int]) -> onnx.ModelProto:
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 1, SIZE, SIZE]),
        helper.make_tensor_value_info(output[0], TensorProto.FLOAT, [batch, output[1]]),
    ]
    made = helper.make_graph(nodes, "net", ends[:1], ends[1:], weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    global _open
    if _open is None or _open[0] is not model:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        _open = (model, onnxruntime.InferenceSession(model.SerializeToString(), options))
    return _open[1].run(None, {"x": x})[0]


_open: tuple | None = None
