"""Models with external data for the tests of artifacts, and a cache of their own."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of this test alone."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


MakeModel = Callable[..., Path]


@pytest.fixture
def make_external(tmp_path: Path) -> MakeModel:
    """Writes a model whose weights lie in external files; each `location` holds one tensor of 2048 floats."""

    def make(*locations: str, folder: str = "model", name: str = "net.onnx", write: bool = True) -> Path:
        under = tmp_path / folder
        under.mkdir(exist_ok=True)
        tensors, nodes = [], []
        for index, location in enumerate(locations):
            array = np.random.default_rng(index).standard_normal(2048).astype(np.float32)
            tensor = numpy_helper.from_array(array, f"w{index}")
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", location), ("offset", "0"), ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=value)
            tensors.append(tensor)
            nodes.append(helper.make_node("Add", ["x" if index == 0 else f"y{index - 1}", f"w{index}"], [f"y{index}"]))
            if write:
                (under / location).parent.mkdir(parents=True, exist_ok=True)
                (under / location).write_bytes(array.tobytes())
        graph = helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2048])],
            [helper.make_tensor_value_info(f"y{len(locations) - 1}", TensorProto.FLOAT, [2048])],
            tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = under / name
        path.write_bytes(model.SerializeToString())
        return path

    return make


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    """A sound model of a few hundred bytes."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    path = tmp_path / "small.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
