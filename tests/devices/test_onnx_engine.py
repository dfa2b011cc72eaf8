"""What onnxruntime says of broken models becomes typed errors that name file and operator."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from devices import onnx_engine
from devices.errors import DeviceError, ModelFileMissing, ModelRejected, OperatorUnsupported


def model(
    operator: str, *, domain: str = "", opset: int = 17, inputs: tuple[str, ...] = ("x",), kind: int = 1
) -> bytes:
    node = helper.make_node(operator, list(inputs), ["y"], domain=domain, name="the_node")
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 2])],
    )
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def test_a_good_model_opens_from_path_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "relu.onnx"
    path.write_bytes(model("Relu"))
    for source in (path, str(path), path.read_bytes()):
        session = onnx_engine.open_session(source, providers=["CPUExecutionProvider"])
        [y] = session.run(None, {"x": np.array([[-1.0, 2.0]], np.float32)})
        assert y.tolist() == [[0.0, 2.0]]
    inputs, outputs = onnx_engine.ports(session)
    assert inputs == (onnx_engine.Port(name="x", type="tensor(float)", shape=("n", 2)),)
    assert [port.name for port in outputs] == ["y"]


@pytest.mark.parametrize(
    ("broken", "operator", "kind"),
    [
        (model("Frobnicate"), "Frobnicate", OperatorUnsupported),
        (model("Foo", domain="my.domain"), "my.domain:Foo", OperatorUnsupported),
        (model("Relu", kind=TensorProto.BFLOAT16), "Relu", OperatorUnsupported),
        (model("Relu", opset=99), None, OperatorUnsupported),
        (model("Relu", kind=TensorProto.STRING), "Relu", ModelRejected),
        (model("Add", inputs=("x", "nowhere")), None, ModelRejected),
        (model("Relu")[:-12], None, ModelRejected),
        (b"this is no model", None, ModelRejected),
        (b"", None, ModelRejected),
    ],
    ids=["unknown", "custom", "no kernel", "opset", "type", "dangling", "cut off", "garbage", "empty"],
)
def test_broken_models(broken: bytes, operator: str | None, kind: type[DeviceError], tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(broken)
    with pytest.raises(kind) as caught:
        onnx_engine.open_session(path)
    assert type(caught.value) is kind
    assert caught.value.operator == operator
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert operator is None or operator in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing, match=r"gone\.onnx"):
        onnx_engine.open_session(tmp_path / "gone.onnx")
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], np.ones(2, np.float32).tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [weights],
    )
    path = tmp_path / "external.onnx"
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx_engine.open_session(path)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ModelFileMissing, match=r"weights\.bin"):
        onnx_engine.open_session(path)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected):
        onnx_engine.open_session(tmp_path)


def test_a_wrong_python_type_is_onnxruntimes_business() -> None:
    with pytest.raises(TypeError):
        onnx_engine.open_session(5)  # type: ignore[arg-type]
