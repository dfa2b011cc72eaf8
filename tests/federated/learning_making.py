"""Models with heads that learn, made on the spot: the reference task's, and others of one operator each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

OPSET = 18


def external(model: onnx.ModelProto, names: Sequence[str], folder: Path, file: str = "head.bin") -> Path:
    """Writes a model with these tensors in a file of their own."""
    content = b""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            raw = numpy_helper.to_array(tensor).tobytes()
            tensor.ClearField("float_data")
            tensor.raw_data = raw
            set_external_data(tensor, location=file, offset=len(content), length=len(raw))
            tensor.ClearField("raw_data")
            content += raw
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def made(
    nodes: Sequence[onnx.NodeProto],
    weights: Mapping[str, np.ndarray],
    features: Sequence[int | str],
    outputs: Mapping[str, Sequence[int | str] | None],
    *,
    source: str = "x",
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model of these nodes; the inputs are float32."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, list(features))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    """A node whose inputs are words."""
    return helper.make_node(
        op, ["" if one == "-" else one for one in inputs.split()], [output], name=output, **attributes
    )


def reference_weights(seed: int = 0, n_hidden: int = 64) -> dict[str, np.ndarray]:
    """The weights of the MLP 64-64-10: 4,810 parameters."""
    r = np.random.default_rng(seed)
    return {
        "w1": (r.normal(size=(64, n_hidden)) * np.sqrt(2 / 64)).astype(np.float32),
        "b1": np.zeros(n_hidden, np.float32),
        "w2": (r.normal(size=(n_hidden, 10)) * np.sqrt(1 / n_hidden)).astype(np.float32),
        "b2": np.zeros(10, np.float32),
    }


def reference_model(folder: Path, *, seed: int = 0, learns: Sequence[str] = ("w1", "b1", "w2", "b2")) -> Path:
    """The MLP as a model: image (n, 64) -> probabilities (n, 10), `hidden` between."""
    nodes = [
        node("Gemm", "image w1 b1", "before"),
        node("Relu", "before", "hidden"),
        node("Gemm", "hidden w2 b2", "scores"),
        node("Softmax", "scores", "probabilities", axis=-1),
    ]
    model = made(nodes, reference_weights(seed), ["n", 64], {"probabilities": ["n", 10]}, source="image")
    return external(model, learns, folder)


def digits(n_boxes: int = 10, alpha: float = 0.5, seed: int = 0):
    """Parts of the digits, one a box (Dirichlet), and a test set: ([(x, y), …], (x, y))."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = (found.data / 16.0).astype(np.float32), found.target.astype(np.int64)
    order = np.random.default_rng(1234).permutation(len(x))
    x, y = x[order], y[order]
    test, x, y = (x[:360], y[:360]), x[360:], y[360:]
    random = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(n_boxes)]
    for digit in range(10):
        indices = np.where(y == digit)[0]
        random.shuffle(indices)
        cuts = (np.cumsum(random.dirichlet([alpha] * n_boxes)) * len(indices)).astype(int)[:-1]
        for box, some in enumerate(np.split(indices, cuts)):
            parts[box] += list(some)
    return [(x[part], y[part]) for part in map(np.array, parts)], test
