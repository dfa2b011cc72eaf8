"""What an interpreter of TensorFlow Lite says of its tensors and operators, in onnxruntime's words."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from devices.onnx_engine import Port

_TYPES: Final = {
    "float32": "tensor(float)", "float16": "tensor(float16)", "float64": "tensor(double)", "bool": "tensor(bool)",
    "int8": "tensor(int8)", "int16": "tensor(int16)", "int32": "tensor(int32)", "int64": "tensor(int64)",
    "uint8": "tensor(uint8)", "uint16": "tensor(uint16)", "uint32": "tensor(uint32)", "uint64": "tensor(uint64)",
}  # fmt: skip

PORT_TYPES: Final = {word: np.dtype(name) for name, word in _TYPES.items()}
"""The arrays that a port of this type takes."""

_HYBRID: Final = frozenset({
    "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "CONV_3D", "TRANSPOSE_CONV", "SVDF", "RNN",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM",
})  # fmt: skip
"""Operators that have kernels for float activations with int8 weights, quantized anew at every run."""


_STATEFUL: Final = frozenset({
    "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "CALL_ONCE", "HASHTABLE", "HASHTABLE_IMPORT", "SVDF", "RNN",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN", "LSTM", "CALL",
})  # fmt: skip


def public_names(tensors: Sequence[tuple[int, str]]) -> dict[int, str]:
    """A name for each of a model's inputs and outputs, by tensor index: its own, with the index where two share one.

    Args:
        tensors: index and name of each.
    """
    own = dict(tensors)
    shared = {name for name in own.values() if not name or list(own.values()).count(name) > 1}
    return {index: f"{name or 'tensor'}#{index}" if name in shared else name for index, name in own.items()}


def ports_of(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs as onnxruntime would name them, from the interpreter's details; open sizes are None."""
    names = public_names([(int(found["index"]), str(found["name"])) for found in (*inputs, *outputs)])
    return tuple(_port(found, names) for found in inputs), tuple(_port(found, names) for found in outputs)


def scales_of(outputs: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, int] | None, ...]:
    """Scale and zero point of each output that is quantized as a whole; None for one that is a number by itself."""
    return tuple(_scale(found) for found in outputs)


def _scale(found: Mapping[str, Any]) -> tuple[float, int] | None:
    said = found.get("quantization_parameters") or {}
    scales, zeros = said.get("scales", ()), said.get("zero_points", ())
    return (float(scales[0]), int(zeros[0])) if len(scales) == len(zeros) == 1 else None


def _port(found: Mapping[str, Any], names: Mapping[int, str]) -> Port:
    kind = found["dtype"]
    is_text = kind in (np.bytes_, np.object_, np.str_)
    word = "tensor(string)" if is_text else _TYPES.get(np.dtype(kind).name, f"tflite({np.dtype(kind).name})")
    declared = found.get("shape_signature")
    sizes = found["shape"] if declared is None or len(declared) != len(found["shape"]) else declared
    shape = tuple(int(size) if size >= 0 else None for size in sizes)
    return Port(name=names[int(found["index"])], type=word, shape=shape)


def refusal(engine: str, interpreter: Any) -> str:
    """Why a file is known to be computed wrongly by this engine; empty where nothing of the kind is known."""
    found = re.match(r"tflite-runtime (\d+)\.(\d+)", engine)
    if found is None or (int(found[1]), int(found[2])) > (2, 14):
        return ""
    return wrong_on_old_runtime(interpreter)


def keeps_state(interpreter: Any) -> bool:
    """Whether an operator of the model remembers something between runs."""
    return any(operator["op_name"] in _STATEFUL for operator in interpreter._get_ops_details())  # noqa: SLF001


def wrong_on_old_runtime(interpreter: Any) -> str:
    """Why tflite-runtime 2.14 must not run this model: dynamic-range int8, or 16-bit activations; else empty.

    Measured: on a trained classifier of 99 % the former gave 10 % (all outputs about zero) without an error, the latter
    took 40 times as long as float.
    """
    details = {int(tensor["index"]): tensor for tensor in interpreter.get_tensor_details()}
    for operator in interpreter._get_ops_details():  # noqa: SLF001  (no public way says which operators there are)
        kinds = [
            np.dtype(details[index]["dtype"]).name if (index := int(given)) in details else ""
            for given in operator["inputs"]
        ]
        if operator["op_name"] not in _HYBRID or len(kinds) < 2:
            continue
        if kinds[0] == "float32" and kinds[1] in ("int8", "uint8"):
            return _words(operator["op_name"], "float activations with 8-bit weights (dynamic-range quantization)")
        if kinds[0] == "int16":
            return _words(operator["op_name"], "16-bit activations")
    return ""


def _words(operator: str, what: str) -> str:
    return (
        f"{operator} has {what}, which tflite-runtime up to 2.14 computes wrongly or without its kernels; install "
        "ai-edge-litert, or quantize the model statically to int8"
    )
