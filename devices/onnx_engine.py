"""The border to onnxruntime: models are opened here, and what it says when it cannot is given a type.

Design: onnxruntime's errors are told apart by its own exception classes first and by the few stable phrases of its
messages second; where it names the operator, so does the typed error. Parameters of a wrong Python type are its own
business and raise what it raises.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Final

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as engine_errors

from devices.errors import DeviceError, ModelFileMissing, ModelRejected, OperatorUnsupported
from devices.forked_engines import keep_in_children

_LOAD_ERRORS: Final = (
    engine_errors.Fail,
    engine_errors.InvalidArgument,
    engine_errors.InvalidGraph,
    engine_errors.InvalidProtobuf,
    engine_errors.NoModel,
    engine_errors.NoSuchFile,
    engine_errors.NotImplemented,
    engine_errors.RuntimeException,
)

_OPERATOR: Final = (
    re.compile(r"No Op registered for (?P<op>\w+)"),
    re.compile(r"Fatal error: (?P<op>[\w.]*:\w+)\(-?\d+\) is not a registered function/op"),
    re.compile(r"Could not find an implementation for (?P<op>\w+)\("),
    re.compile(r"No opset import for domain '?(?P<op>[\w.]+)"),
    re.compile(r"of operator \((?P<op>\w+)\)"),
    re.compile(r"In Node, \(\"[^\"]*\", (?P<op>\w+),"),
    re.compile(r"Op \((?P<op>\w+)\)"),
)
"""Where onnxruntime's messages name an operator, the surest first."""

_UNSUPPORTED: Final = re.compile(
    r"No Op registered|is not a registered function/op|Could not find an implementation|No opset import"
    r"|under development|only \*guarantees\* support|Unsupported model IR version|Unsupported type"
)
_NOT_THERE: Final = re.compile(r"External data path|external data.*(?:not exist|cannot open)|doesn't exist", re.DOTALL)
_PREAMBLE: Final = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (?:Load model from .*? failed:)?", re.DOTALL)
_SOURCE_PLACE: Final = re.compile(r"/onnxruntime_src/\S+ .*?\) ", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input or output of an open model, as onnxruntime tells it.

    Attributes:
        name: the tensor's name.
        type: onnxruntime's words, such as `tensor(float)` or `seq(tensor(int64))`.
        shape: sizes; a name or None where the size is open; empty for scalars and for what is no tensor.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...]


def open_session(
    path_or_bytes: str | bytes | PathLike[str],
    sess_options: ort.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[dict[Any, Any]] | None = None,
) -> ort.InferenceSession:
    """An onnxruntime session, opened with onnxruntime's own parameters.

    Raises:
        ModelFileMissing: the file, or external data that it names, cannot be read.
        ModelRejected: corrupt, or no valid graph.
        OperatorUnsupported: an operator, opset or type that this build of onnxruntime has no kernel for.
    """
    model = path_or_bytes if isinstance(path_or_bytes, bytes) else fspath(path_or_bytes)
    try:
        session = ort.InferenceSession(model, sess_options, providers=providers, provider_options=provider_options)
    except _LOAD_ERRORS as error:
        raise _typed(error, "" if isinstance(model, bytes) else model) from error
    keep_in_children(session)
    return session


def ports(session: ort.InferenceSession) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of an open session, each in the model's order."""
    return (
        tuple(Port(name=arg.name, type=arg.type, shape=tuple(arg.shape or ())) for arg in session.get_inputs()),
        tuple(Port(name=arg.name, type=arg.type, shape=tuple(arg.shape or ())) for arg in session.get_outputs()),
    )


def _typed(error: Exception, path: str) -> DeviceError:
    said = str(error)
    shown = path or "the model given as bytes"
    reason = _SOURCE_PLACE.sub("", _PREAMBLE.sub("", said)).strip()
    operator = next((found["op"] for pattern in _OPERATOR if (found := pattern.search(said))), None)
    if isinstance(error, engine_errors.NoSuchFile) or _NOT_THERE.search(said):
        return ModelFileMissing(
            f"{shown} or a file of its weights cannot be read ({reason}); put the whole model there, or name another",
            path=path,
        )
    if isinstance(error, engine_errors.NotImplemented) or _UNSUPPORTED.search(said):
        named = f"operator {operator} of {shown}" if operator else shown
        return OperatorUnsupported(
            f"{named} is not supported by onnxruntime {ort.__version__} ({reason}); export it with a lower opset, or "
            f"without that operator",
            path=path,
            operator=operator,
        )
    at = f" at operator {operator}" if operator else ""
    return ModelRejected(
        f"{shown} is no valid ONNX model{at} ({reason}); copy or export it anew", path=path, operator=operator
    )
