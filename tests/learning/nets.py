"""Small models whose head learns, and samples of three classes that it can tell apart."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hybrid.artifact.folder import Artifact
from hybrid.artifact.trainable import trainable_artifact

_FOLDER = TemporaryDirectory(prefix="learning-nets-")
N_INPUTS, N_FEATURES, N_CLASSES = 16, 12, 3


def model_file(path: Path, *, n_features: int = N_FEATURES, n_inputs: int = N_INPUTS, seed: int = 3) -> Path:
    """A body of one layer, and a head of one layer that was drawn at random."""
    rng = np.random.default_rng(seed)
    body = rng.normal(0, n_inputs**-0.5, (n_inputs, n_features)).astype(np.float32)
    head = rng.normal(0, 0.3, (n_features, N_CLASSES)).astype(np.float32)
    weights = {
        "body": body,
        "lift": np.zeros(n_features, np.float32),
        "head": head,
        "offset": np.zeros(N_CLASSES, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "body", "lift"], ["mixed"], name="body"),
        helper.make_node("Relu", ["mixed"], ["features"], name="relu"),
        helper.make_node("Gemm", ["features", "head", "offset"], ["scores"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", n_inputs])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", N_CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    return path


def artifact_in(folder: Path, *, name: str = "net", **shape: int) -> Artifact:
    """That model as an artifact with its head in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = model_file(folder / "net.onnx", **shape)
    return trainable_artifact(path, folder / "artifact", name=name, head="features")


@cache
def kept_artifact(n_features: int) -> Artifact:
    """That artifact, made once for all tests of a process; nobody writes into it."""
    return artifact_in(Path(_FOLDER.name) / str(n_features), n_features=n_features)


def rows(n: int, seed: int, n_inputs: int = N_INPUTS) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (n, inputs), and the class of each: clouds around three points."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.5, (N_CLASSES, n_inputs))
    classes = rng.integers(0, N_CLASSES, n)
    return (centres[classes] + rng.normal(0, 0.5, (n, n_inputs))).astype(np.float32), classes
