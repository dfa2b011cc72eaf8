"""Prepares a float model for quantizing: checked, a recent opset, constants folded, every node named, types known."""

import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import TensorProto, inliner

from compression.errors import NotQuantizable
from compression.quantization.editing import all_nodes, copied, readers
from compression.quantization.running import session_options

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose products int8 makes faster."""

_LEAST_OPSET = 13  # scales for each channel exist from here on
_MOST_BYTES = 2**31 - 2**20
_MARK = ("hybrid.prepared", "1")
_INFERRED = ("onnx.infer", "onnxruntime.quant")  # tells the quantizer that shapes are known, or it would go by the disk
_INTEGER = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """A new model that computes the same: batch normalisation folded, nodes named; a prepared one comes back as it is.

    Names of nodes follow from the model alone, so those that one call makes hold in the next.

    Raises:
        NotQuantizable: quantized already, in float16, without its weights, too large, or not to be upgraded.
    """
    if is_prepared(model):
        return model
    _check(model)
    upgraded = _upgraded(model)
    folded = _folded(upgraded)
    _tidy(folded)
    if not any(node.op_type in WEIGHTED for node in folded.graph.node):
        raise NotQuantizable(f"the model has no {', '.join(WEIGHTED)}: int8 would make nothing smaller or faster")
    return _typed(folded)


def is_prepared(model: onnx.ModelProto) -> bool:
    """Whether `prepare` made this model."""
    return any((entry.key, entry.value) == _MARK for entry in model.metadata_props)


def without_marks(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, no longer called prepared; changed in place."""
    ours = {_MARK[0], _INFERRED[0], "onnx.quant.pre_process"}
    kept = [entry for entry in model.metadata_props if entry.key not in ours]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def integer_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes that only quantized models have."""
    return [
        node
        for node in model.graph.node
        if node.op_type in _INTEGER or node.op_type.startswith("QLinear") or node.op_type.endswith("NBits")
    ]


def n_weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of the weights that the model holds."""
    return sum(_n_bytes(tensor) for tensor in model.graph.initializer)


def _n_bytes(tensor: TensorProto) -> int:
    return len(tensor.raw_data) or tensor.ByteSize()


def _check(model: onnx.ModelProto) -> None:
    if away := [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]:
        raise NotQuantizable(
            f"{len(away)} weights lie in files beside the model and are not loaded (the first: {away[0]!r}); "
            "load it with onnx.load(path), which reads them"
        )
    if (n_bytes := n_weight_bytes(model)) > _MOST_BYTES:
        raise NotQuantizable(
            f"the weights have {n_bytes / 1e9:.1f} GB, wanted less than 2 GB: "
            "onnx keeps no larger model in one piece; quantize its parts"
        )
    if integers := integer_nodes(model):
        first = integers[0]
        raise NotQuantizable(
            f"the model is quantized already ({len(integers)} such nodes, the first a {first.op_type}); "
            "hand the float model that it was made from"
        )
    read = readers(model)
    halves = [  # weights that are widened before anything computes with them are float32 when they are folded
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        and any(node.op_type != "Cast" for node in read[tensor.name])
    ]
    halves += [v.name for v in model.graph.input if v.type.tensor_type.elem_type == TensorProto.FLOAT16]
    if halves:
        raise NotQuantizable(
            f"{len(halves)} tensors are float16 (the first: {halves[0]!r}), wanted float32; "
            "hand the float32 model that it was made from"
        )


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise NotQuantizable(f"the model imports {len(versions)} versions of ai.onnx, wanted one; export it again")
    return int(versions[0])


def _upgraded(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = copied(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    copy.ir_version = max(copy.ir_version, 8)
    weights = {tensor.name for tensor in copy.graph.initializer}
    inputs = [value for value in copy.graph.input if value.name not in weights]
    if (opset := _opset(copy)) < _LEAST_OPSET:
        try:
            copy = onnx.version_converter.convert_version(copy, _LEAST_OPSET)
        except Exception as error:  # the converter raises RuntimeError and kinds of its own
            raise NotQuantizable(
                f"the model has opset {opset}, wanted {_LEAST_OPSET} or later, and onnx cannot upgrade it ({error}); "
                "export it again with a later opset"
            ) from error
    del copy.graph.input[:]
    copy.graph.input.extend(inputs)  # weights that callers may replace cannot be folded or quantized
    return copy


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="hybrid-prepare-") as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"],
                disabled_optimizers=["ConstantSharing"],
            )  # fmt: skip
        except Exception as error:  # onnxruntime raises its own kinds, which share no root but this one
            raise NotQuantizable(
                f"onnxruntime cannot run the model: {error}; wanted one that it opens as it is"
            ) from error
        return onnx.load(path)


def _tidy(model: onnx.ModelProto) -> None:
    """Only the domains that are used, and a name of its own for each node."""
    used = {node.domain or "" for node in all_nodes(model.graph)}
    kept = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx") or entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    taken: set[str] = set()
    for node in model.graph.node:
        name = wanted = node.name or next(output for output in node.output if output)
        number = 1
        while name in taken:
            number += 1
            name = f"{wanted}~{number}"
        node.name = name
        taken.add(name)


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    typed = onnx.shape_inference.infer_shapes(model)
    for key, value in (_MARK, _INFERRED):
        typed.metadata_props.add(key=key, value=value)
    return typed
