"""Shapes of every tensor of a normalised graph, to the last one that can be known before a run."""

from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hybrid.graph.shape_key import ShapeKey

_ENGINE_REFUSES = (RuntimeError, ValueError, ort_errors.Fail, ort_errors.InvalidGraph, ort_errors.NotImplemented)


def infer(graph_model: onnx.ModelProto, shape_key: ShapeKey, folder: Path) -> dict[str, onnx.TypeProto]:
    """Types of the graph's inputs, outputs and inner tensors, by name.

    onnx infers first, values of shape arithmetic included. onnxruntime is asked for what stays open: it knows its own
    operators. A dimension that both leave open depends on the data.

    Args:
        graph_model: the normalised graph; not changed.
        shape_key: binds the inputs of a graph that was normalised with open dimensions.
        folder: where the graph's weights lie.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph_model)
    shapes = dict(shape_key.shapes)
    for value in model.graph.input:
        if value.type.HasField("tensor_type"):
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    model = _propagate(model)
    types = _types_of(model)
    still_open = [name for node in model.graph.node for name in node.output if name and not is_sized(types.get(name))]
    if still_open:
        learned = _ask_engine(model, still_open, folder)
        if learned:
            model.graph.value_info.extend(
                onnx.ValueInfoProto(name=name, type=kind) for name, kind in learned.items() if name not in types
            )
            types = _types_of(_propagate(model)) | learned
    return types


def is_sized(kind: onnx.TypeProto | None) -> bool:
    """Whether this is the type of a tensor all of whose dimensions are known."""
    if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
        return False
    return all(dim.HasField("dim_value") for dim in kind.tensor_type.shape.dim)


def _propagate(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return model  # one operator that onnx cannot reason about must not hide the rest: the engine is asked next


def _types_of(model: onnx.ModelProto) -> dict[str, onnx.TypeProto]:
    graph = model.graph
    return {value.name: value.type for values in (graph.value_info, graph.output, graph.input) for value in values}


def _ask_engine(model: onnx.ModelProto, names: list[str], folder: Path) -> dict[str, onnx.TypeProto]:
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
    try:
        session = ort.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        answered = session.get_outputs()
    except _ENGINE_REFUSES:
        return {}
    learned = {}
    for value in answered:
        elem_type = _ELEM_TYPES.get(value.type)
        if elem_type is not None and value.shape:  # onnxruntime says [] of a scalar and of an unknown rank alike
            shape = [size if isinstance(size, int) else None for size in value.shape]
            learned[value.name] = onnx.helper.make_tensor_type_proto(elem_type, shape)
    return learned


_ELEM_TYPES = {
    "tensor(float)": onnx.TensorProto.FLOAT,
    "tensor(float16)": onnx.TensorProto.FLOAT16,
    "tensor(double)": onnx.TensorProto.DOUBLE,
    "tensor(string)": onnx.TensorProto.STRING,
    "tensor(bool)": onnx.TensorProto.BOOL,
    **{
        f"tensor({sign}int{bits})": getattr(onnx.TensorProto, f"{sign}int{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}
