"""Runs models in memory on this machine's CPU, quietly, and refuses samples that do not fit them."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime

from compression.errors import NotQuantizable
from compression.measuring import Feeds
from compression.quantization.editing import copied

_ERRORS_ONLY = 3


class _FromQuantizer(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname


@contextmanager
def quiet() -> Iterator[None]:
    """While this is open, what onnxruntime's quantizer says to the root logger is dropped, and nothing else."""
    root, deaf, ear = logging.getLogger(), _FromQuantizer(), logging.NullHandler()
    root.addFilter(deaf)
    root.addHandler(ear)  # or `logging.warning` would install a handler of its own
    try:
        yield
    finally:
        root.removeFilter(deaf)
        root.removeHandler(ear)


def session_options() -> onnxruntime.SessionOptions:
    """Options of a session that says nothing and uses the cores that this process may use."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    if hasattr(os, "sched_getaffinity"):
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return options


def open_session(model: onnx.ModelProto, *, optimized: bool = True) -> onnxruntime.InferenceSession:
    """The model ready to run.

    Args:
        model: holds its weights.
        optimized: False keeps every node as it is written: kernels of quantized graphs are then the reference ones.

    Raises:
        NotQuantizable: onnxruntime cannot run the model.
    """
    options = session_options()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, which share no root but this one
        raise NotQuantizable(f"onnxruntime cannot run the model: {error}; wanted one that it opens as it is") from error


def run(session: onnxruntime.InferenceSession, names: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    """The named outputs.

    Raises:
        NotQuantizable: the model does not run with these feeds.
    """
    try:
        return list(session.run(list(names), dict(feeds)))
    except Exception as error:
        raise NotQuantizable(f"the model does not run on a sample: {error}; hand samples of its inputs") from error


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as its only outputs; one that it does not make is an error of the engine."""
    shown = copied(model)
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return shown


@dataclass(frozen=True, slots=True)
class _Wanted:
    dtype: np.dtype
    shape: tuple[int | None, ...] | None


def check_samples(model: onnx.ModelProto, samples: Sequence[Feeds]) -> None:
    """Hold each sample against the model's inputs.

    Raises:
        NotQuantizable: no sample, or one of other names, dtypes or shapes, or with a number that is none.
    """
    if not samples:
        raise NotQuantizable("no sample was given, wanted at least one: ranges are what the samples show")
    wanted = _inputs(model)
    for number, feeds in enumerate(samples):
        if missing := sorted(wanted.keys() - feeds.keys()):
            raise NotQuantizable(f"sample {number} lacks {_said(missing)}; the model's inputs are {_said(wanted)}")
        if extra := sorted(feeds.keys() - wanted.keys()):
            raise NotQuantizable(f"sample {number} has {_said(extra)}; the model's inputs are {_said(wanted)}")
        for name, array in feeds.items():
            _check_array(f"sample {number}, input {name!r}", np.asarray(array), wanted[name])


def _inputs(model: onnx.ModelProto) -> dict[str, _Wanted]:
    weights = {tensor.name for tensor in model.graph.initializer}
    wanted = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        wanted[value.name] = _Wanted(dtype, shape)
    return wanted


def _check_array(where: str, array: np.ndarray, wanted: _Wanted) -> None:
    if array.dtype != wanted.dtype:
        raise NotQuantizable(f"{where}: dtype {array.dtype}, wanted {wanted.dtype}; convert the samples")
    if wanted.shape is not None:
        fits = len(array.shape) == len(wanted.shape) and all(
            want is None or have == want for have, want in zip(array.shape, wanted.shape, strict=True)
        )
        if not fits:
            raise NotQuantizable(f"{where}: shape {array.shape}, wanted {wanted.shape}; hand whole inputs of the model")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotQuantizable(f"{where}: holds NaN or infinity, which no range covers; take this sample out")


def _said(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(repr(name) for name in names)
