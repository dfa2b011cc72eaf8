"""Two classifiers of different strength over the same noisy points, and the points."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

N_CLASSES, WIDTH = 5, 12


def points(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around five centres, some far from theirs; and the centres' numbers."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((N_CLASSES, WIDTH)).astype(np.float32)
    labels = random.integers(0, N_CLASSES, n)
    spread = random.choice([0.5, 2.0], n)[:, None]
    return (centres[labels] + spread * random.standard_normal((n, WIDTH))).astype(np.float32), labels


def classifier(path: Path, *, used: int, sharpness: float = 1.0, batch: str | int = "rows") -> Path:
    """Scores by distance to each centre, seen in the first `used` of the dimensions; `sharpness` scales them all."""
    centres = np.random.default_rng(99).standard_normal((N_CLASSES, WIDTH)).astype(np.float32)
    seen = np.zeros((WIDTH, N_CLASSES), np.float32)
    seen[:used] = sharpness * centres.T[:used]
    bias = -0.5 * sharpness * (centres[:, :used] ** 2).sum(axis=1)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["scores"])],
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, WIDTH])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, N_CLASSES])],
        [numpy_helper.from_array(seen, "w"), numpy_helper.from_array(bias.astype(np.float32), "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path
