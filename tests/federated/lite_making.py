"""A small ONNX model, the same body as a TensorFlow Lite file, and an artifact of both."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.folder import Artifact
from hybrid.federated.lite_variant import lite_artifact
from tests.tflite.made import dense

_FOLDER = TemporaryDirectory(prefix="lite-nets-")
N_INPUTS, N_FEATURES, N_CLASSES = 16, 12, 3


def body_weights(n_features: int = N_FEATURES, seed: int = 3) -> np.ndarray:
    """(inputs, features)."""
    return np.random.default_rng(seed).normal(0, N_INPUTS**-0.5, (N_INPUTS, n_features)).astype(np.float32)


def model_file(path: Path, *, n_features: int = N_FEATURES, body: np.ndarray | None = None) -> Path:
    """`x` to `scores` and `chances`; the head stands on `mixed`."""
    rng = np.random.default_rng(5)
    head = rng.normal(0, 0.3, (n_features, N_CLASSES)).astype(np.float32)
    weights = {
        "body": body_weights(n_features) if body is None else body,
        "head": head,
        "offset": np.zeros(N_CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "body"], ["mixed"], name="body"),
        helper.make_node("Relu", ["mixed"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "head", "offset"], ["scores"], name="head"),
        helper.make_node("Softmax", ["scores"], ["chances"], name="softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", N_INPUTS])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", N_CLASSES]) for name in ("scores", "chances")],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def body_file(path: Path, *, n_features: int = N_FEATURES, seed: int = 3) -> Path:
    """The same body in LiteRT."""
    return dense(path, np.ascontiguousarray(body_weights(n_features, seed).T))


@cache
def kept_artifact() -> Artifact:
    """Made once a process; nobody writes into it."""
    folder = Path(_FOLDER.name)
    model, body = model_file(folder / "net.onnx"), body_file(folder / "some.tflite")
    return lite_artifact(model, body, folder / "artifact", name="net", head="mixed")


def rows(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, inputs), and the class of each: clouds around three points."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.5, (N_CLASSES, N_INPUTS))
    classes = rng.integers(0, N_CLASSES, n)
    return (centres[classes] + rng.normal(0, 0.5, (n, N_INPUTS))).astype(np.float32), classes
