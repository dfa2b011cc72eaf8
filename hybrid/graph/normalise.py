"""Binds a model to one shape key and normalises it with onnxruntime at its BASIC level, weights kept in one file.

Design: constants are folded and dimensions bound before anybody looks for cuts, for a raw file shows weights, shape
arithmetic and unknown sizes where the normalised graph shows activations with bytes. Both sides of a split do this with
the same steps, so that they see the same tensor names. Weights never pass through protobuf: onnxruntime reads them from
the shipped file and writes them to `weights.bin`, and all that follows handles the small graph.
"""

import re
from pathlib import Path

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from hybrid.errors import DiskFull, HybridError, ModelInvalid, ModelUnsupported, TensorMismatch
from hybrid.graph.model_file import bodies_of, captures_of, load_proto, size_of
from hybrid.graph.shape_key import ShapeKey

GRAPH_FILE = "graph.onnx"
WEIGHTS_FILE = "weights.bin"
INLINE_BYTES = 1024
"""Initializers below this size stay in the graph: shape inference must see them."""

_FIRST_IR_WITH_HIDDEN_WEIGHTS = 4  # before, every initializer had to be listed as a graph input
_OPERATOR = [
    re.compile(pattern)
    for pattern in (
        r"implementation for (\S+?)\(",
        r"No Op registered for (\S+)",
        r"error: (\S+?)\(-?\d+\) is not a registered function/op",
        r"Op(?:_type| type)?[ (:]+([A-Z]\w+)",
        r"operator '?(\w+)'?",
    )
]
_UNSUPPORTED = re.compile(
    r"NOT_IMPLEMENTED|No Op registered|not a registered function/op|is under development|ir_version|"
    r"Unsupported model IR|implementation for|domain_version|no opset import for domain",
    re.IGNORECASE,
)
_NO_ROOM = re.compile(
    r"failed to write external initializers|no space left|file too large|disk quota|errno[: =]*(28|27|122)\b",
    re.IGNORECASE,
)


def normalise(model_path: Path, shape_key: ShapeKey, folder: Path) -> onnx.ModelProto:
    """Write the bound, normalised graph and its weights into `folder`; returns the graph.

    Raises:
        ModelInvalid: a file that is missing or damaged.
        ModelUnsupported: an operator, domain or version that onnxruntime lacks.
        TensorMismatch: the shape key does not fit the model's inputs.
        DiskFull: no room in `folder`.
    """
    model = load_proto(model_path)
    shipped = names_in(model.graph)
    hide_weights(model, keep=frozenset(name for name, _ in shape_key.shapes))
    dynamic = bind(model, shape_key)
    try:
        _optimise(model, model_path, folder)
    except (ModelInvalid, ModelUnsupported) as failed:
        # A branch that is not taken at these shapes may contradict them, and a shape key may contradict the model: the
        # graph as shipped tells which. An unbound graph runs at any shape; sizes are inferred afterwards.
        if not dynamic or not _loads_unbound(model_path, shape_key, folder):
            raise
        if not any(bodies_of(node) for node in model.graph.node):
            raise TensorMismatch(
                f"{model_path}: its graph does not accept the shapes {shape_key.text} ({failed}); "
                "run it with shapes that it accepts",
                path=str(model_path),
            ) from failed
    graph = load_proto(folder / GRAPH_FILE)
    if rename_generated_weights(graph, shipped):
        (folder / GRAPH_FILE).write_bytes(graph.SerializeToString(deterministic=True))
    return graph


def names_in(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of every tensor of the graph, those of subgraphs left out."""
    made = {name for node in graph.node for name in node.output}
    return frozenset(made | {value.name for value in (*graph.input, *graph.initializer, *graph.output)})


def rename_generated_weights(model: onnx.ModelProto, shipped: frozenset[str]) -> int:
    """Give weights that onnxruntime named itself names that it never makes; how many.

    A head is optimised anew when it is loaded. onnxruntime 1.31 then makes the same names again (`gemm_input_shape`)
    and refuses the graph if one is taken. Tensors that can cross keep their names: cut ids are made of them.
    """
    graph = model.graph
    captured = {name for node in graph.node for name in captures_of(node)}
    fixed = shipped | captured | {value.name for value in graph.output}
    renamed = {tensor.name: f"hybrid/{tensor.name}" for tensor in graph.initializer if tensor.name not in fixed}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
    return len(renamed)


def hide_weights(model: onnx.ModelProto, keep: frozenset[str]) -> None:
    """Take initializers off the list of inputs, so that they fold; those in `keep` are fed, so the default goes."""
    graph = model.graph
    listed = {value.name for value in graph.input}
    fed = keep & listed
    defaults = {tensor.name for tensor in graph.initializer} | {
        tensor.values.name for tensor in graph.sparse_initializer
    }
    inputs = [value for value in graph.input if value.name not in defaults or value.name in fed]
    if len(inputs) != len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)
        model.ir_version = max(model.ir_version, _FIRST_IR_WITH_HIDDEN_WEIGHTS)
    if defaults & fed:
        kept = [tensor for tensor in graph.initializer if tensor.name not in fed]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def bind(model: onnx.ModelProto, shape_key: ShapeKey) -> bool:
    """Fix the dimensions of the inputs; whether any of them was open before.

    Symbols are not carried over to other tensors: exporters reuse one name for different sizes. onnxruntime infers the
    rest anew.

    Raises:
        TensorMismatch: an input without a shape, a shape without an input, or a fixed dimension of another size.
    """
    shapes = dict(shape_key.shapes)
    names = {value.name for value in model.graph.input}
    if names != set(shapes):
        raise TensorMismatch(
            f"the shape key names the inputs {sorted(shapes)}, the model wants {sorted(names)}; feed exactly these"
        )
    dynamic = False
    for value in model.graph.input:
        if value.type.HasField("tensor_type"):
            dynamic |= _bind_input(value, shapes[value.name])
    for output in model.graph.output:
        if output.type.HasField("tensor_type"):
            for dim in output.type.tensor_type.shape.dim:
                if size_of(dim) is None or dynamic:
                    dim.Clear()
    del model.graph.value_info[:]
    return dynamic


def _bind_input(value: onnx.ValueInfoProto, shape: tuple[int, ...]) -> bool:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        for size in shape:
            tensor.shape.dim.add().dim_value = size
        return True
    declared = [size_of(dim) for dim in tensor.shape.dim]
    fits = len(declared) == len(shape) and all(mine in (None, size) for mine, size in zip(declared, shape, strict=True))
    if not fits:
        wanted = ["?" if size is None else size for size in declared]
        raise TensorMismatch(f"input {value.name!r} has shape {list(shape)}; the model wants {wanted}")
    for dim, size in zip(tensor.shape.dim, shape, strict=True):
        dim.Clear()
        dim.dim_value = size
    return None in declared


def _loads_unbound(model_path: Path, shape_key: ShapeKey, folder: Path) -> bool:
    model = load_proto(model_path)
    hide_weights(model, keep=frozenset(name for name, _ in shape_key.shapes))
    del model.graph.value_info[:]
    try:
        _optimise(model, model_path, folder)
    except HybridError:
        return False
    return True


def _optimise(model: onnx.ModelProto, model_path: Path, folder: Path) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / GRAPH_FILE)
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", WEIGHTS_FILE),
        ("session.optimized_model_external_initializers_min_size_in_bytes", str(INLINE_BYTES)),
        ("session.model_external_initializers_file_folder_path", str(model_path.parent.resolve())),
    ):
        options.add_session_config_entry(key, value)
    try:
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except _ENGINE_ERRORS as exc:
        raise explain(exc, model_path, folder) from exc


_ENGINE_ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    *(kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)


def explain(error: Exception, path: Path, folder: Path) -> HybridError:
    """The typed error for what onnxruntime said while it loaded or wrote a model."""
    said = " ".join(str(error).split())[:600]
    if _NO_ROOM.search(said):
        return DiskFull(
            f"{folder}: no room for the normalised graph of {path}; make room and try again", path=str(folder)
        )
    operator = next((match[1] for match in (pattern.search(said) for pattern in _OPERATOR) if match), None)
    named = f" (operator {operator})" if operator else ""
    if _UNSUPPORTED.search(said):
        return ModelUnsupported(
            f"{path}: onnxruntime {ort.__version__} does not run it{named}: {said}; export it with operators and an "
            "opset that this version knows",
            path=str(path),
            operator=operator,
        )
    return ModelInvalid(
        f"{path}: onnxruntime refuses it{named}: {said}; check the file with its exporter",
        path=str(path),
        operator=operator,
    )
