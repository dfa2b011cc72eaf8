"""An open TensorFlow Lite model, with or without a head of its own, behind onnxruntime's face.

Design: the body runs in LiteRT, the head in numpy by the very program that learning uses, its weights folded in once.
The head is tried when the file is opened: a body of another size is refused there, not at the first request.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from devices.errors import DeviceError, ModelFileMissing, ModelRejected, OperatorUnsupported
from devices.onnx_engine import Port
from devices.tflite_details import PORT_TYPES
from devices.tflite_engine import TfliteSession
from devices.tflite_magic import is_headed
from hybrid.errors import ModelInvalid, ModelMissing, ModelUntrainable
from hybrid.federated.learning.graph_part import constants_of, nodes_behind, opset_of, step_of
from hybrid.federated.learning.lite_form import LiteBody, body_of_file
from hybrid.federated.learning.operators.windows import with_window
from hybrid.federated.learning.program import Arrays, HeadProgram
from hybrid.graph.model_file import load_proto

_WORD_OF: Final = {dtype: word for word, dtype in PORT_TYPES.items()}


def open_lite(
    model: bytes | str | PathLike[str],
    n_threads: int = 0,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[Any, Any]] | None = None,
    changed: Arrays | None = None,
) -> "TfliteSession | LiteHeadSession":
    """A session of what `is_lite` says yes to; parameters and errors are those of `LiteHeadSession`."""
    if not is_headed(model):
        if changed:
            path = "" if isinstance(model, bytes) else str(model)
            raise OperatorUnsupported(f"{path} holds its weights itself: no others can stand in", path=path)
        return TfliteSession(model, n_threads, providers, provider_options)
    if isinstance(model, bytes):
        raise ModelFileMissing("the model given as bytes has its body in another file; give its path", path="")
    return LiteHeadSession(Path(model), n_threads, providers, provider_options, changed)


class LiteFeatures:
    """The body alone: from the model's inputs to the feature tensor, float32.

    Args:
        body: which.
        n_threads, providers, provider_options: as `TfliteSession` has them.

    Raises:
        DeviceError: as `TfliteSession`, and `ModelRejected` for a body that answers no numbers, or not one tensor.
    """

    def __init__(
        self,
        body: LiteBody,
        n_threads: int = 0,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
    ) -> None:
        self.session = TfliteSession(body.file, n_threads, providers, provider_options)
        self.path = self.session.path or "the body"
        self._body = body
        given = {port.name: port for port in self.session.get_inputs()}
        found = {port.name: port for port in self.session.get_outputs()}
        wanted = {theirs for _, theirs in body.inputs}
        if set(given) != wanted or body.output not in found:
            raise ModelRejected(
                f"{self.path} reads {', '.join(sorted(given))} and gives {', '.join(found)}; the model wants "
                f"it to read {', '.join(sorted(wanted))} and to give {body.output}",
                path=self.path,
            )
        self.inputs = tuple(
            Port(name=mine, type=given[theirs].type, shape=given[theirs].shape) for mine, theirs in body.inputs
        )
        self._port = found[body.output]
        self._scale = self.session.get_output_scales()[body.output]
        dtype = PORT_TYPES.get(self._port.type)
        if dtype is None or (dtype.kind != "f" and self._scale is None):
            raise ModelRejected(
                f"{self.path}: {body.output!r} is {self._port.type} without a scale; features are numbers",
                path=self.path,
            )

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the feature tensor; None where a size is open."""
        return tuple(size if isinstance(size, int) else None for size in self._port.shape)

    def run(self, feeds: Mapping[str, Any], options: Any = None) -> np.ndarray:
        """The feature tensor of one request; raises as `TfliteSession.run`."""
        theirs = {name: feeds[mine] for mine, name in self._body.inputs if mine in feeds}
        (found,) = self.session.run([self._body.output], theirs, options)
        if found.dtype.kind == "f" or self._scale is None:
            return np.asarray(found, np.float32)
        scale, zero = self._scale
        features: np.ndarray = (found.astype(np.float32) - np.float32(zero)) * np.float32(scale)
        return features


class LiteHeadSession:
    """A body in LiteRT with its head in numpy, open, with onnxruntime's face; thread-safe, one run at a time.

    Attributes:
        path: of the file that names both.
        keeps_state: whether the body remembers something from one run to the next.

    Args:
        path: that file; body and weights lie beside it.
        n_threads, providers, provider_options: of the body, as `TfliteSession` has them.
        changed: weights of the head that stand in for those in the files, by name.

    Raises:
        DeviceError: as `TfliteSession`; a head with an operator that is not in numpy, or that does not fit the body.
    """

    def __init__(
        self,
        path: Path,
        n_threads: int = 0,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
        changed: Arrays | None = None,
    ) -> None:
        self.path = str(path)
        try:
            model = load_proto(path)
            body = body_of_file(model, path)
            self._programs = {value.name: _program(model, path, body, value.name, changed) for value in _outputs(model)}
        except ModelMissing as exc:
            raise ModelFileMissing(str(exc), path=self.path) from exc
        except ModelInvalid as exc:
            raise ModelRejected(str(exc), path=self.path) from exc
        except ModelUntrainable as exc:
            raise OperatorUnsupported(f"{self.path}: {exc}", path=self.path) from exc
        self._feature = body.feature
        self._features = LiteFeatures(body, n_threads, providers, provider_options)
        self.keeps_state = self._features.session.keeps_state
        self._outputs = self._ports(model)

    def get_inputs(self) -> list[Port]:
        """What goes in: the model's names, the body's types and sizes."""
        return list(self._features.inputs)

    def get_outputs(self) -> list[Port]:
        """What comes out."""
        return list(self._outputs)

    def get_providers(self) -> list[str]:
        """Where the body runs, then the head."""
        return [*self._features.session.get_providers(), "numpy"]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """The named outputs in that order, all of them when None; `options` and errors as `TfliteSession.run`."""
        wanted = list(names or self._programs)
        unknown = next((name for name in wanted if name not in self._programs), None)
        if unknown is not None:
            raise ValueError(f"Invalid output name: {unknown}; the model's are {list(self._programs)}")
        mine = {port.name for port in self._features.inputs}
        strange = sorted(set(feeds) - mine)
        if strange or mine - set(feeds):
            raise ValueError(
                f"Required inputs ({sorted(mine - set(feeds))}) are missing, {strange} are none: {mine} wanted"
            )
        features = self._features.run(feeds, options)
        try:
            return [self._answer(name, features) for name in wanted]
        except ModelUntrainable as exc:
            raise DeviceError(f"{self.path}: the head failed: {exc}", path=self.path) from exc

    def reset_variables(self) -> None:
        """Begin anew with what the body remembers between runs."""
        self._features.session.reset_variables()

    def _answer(self, name: str, features: np.ndarray) -> np.ndarray:
        program = self._programs[name]
        return features if program is None else np.asarray(program.answer({}, features))

    def _ports(self, model: onnx.ModelProto) -> tuple[Port, ...]:
        """Of the outputs; the sizes that the head gives, where the body's are all known."""
        sizes = self._features.shape
        known = [size for size in sizes if size is not None]
        features = np.zeros(known, np.float32) if len(known) == len(sizes) else None
        found = []
        for value in _outputs(model):
            wanted = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type or TensorProto.FLOAT))
            dims = value.type.tensor_type.shape.dim
            shape: tuple[int | str | None, ...] = tuple(dim.dim_value or dim.dim_param or None for dim in dims)
            if features is not None:
                answer = self._tried(value.name, features)
                declared = [size if isinstance(size, int) else None for size in shape]
                fits = not dims or (
                    len(declared) == answer.ndim
                    and all(size in (None, seen) for size, seen in zip(declared, answer.shape, strict=True))
                )
                if answer.dtype != wanted or not fits:
                    raise ModelRejected(
                        f"{self.path}: with this body output {value.name!r} is {answer.dtype} {list(answer.shape)}, "
                        f"the model's is {wanted} {list(shape)}; the body must give the model's {self._feature!r}",
                        path=self.path,
                    )
                shape = answer.shape
            found.append(Port(name=value.name, type=_WORD_OF.get(wanted, f"tensor({wanted})"), shape=shape))
        return tuple(found)

    def _tried(self, name: str, features: np.ndarray) -> np.ndarray:
        try:
            with np.errstate(all="ignore"):
                return self._answer(name, features)
        except ModelUntrainable as exc:
            raise ModelRejected(
                f"{self.path}: the head does not take features of {list(features.shape)}, which the body gives ({exc})",
                path=self.path,
            ) from exc


def _outputs(model: onnx.ModelProto) -> Sequence[onnx.ValueInfoProto]:
    found: Sequence[onnx.ValueInfoProto] = model.graph.output
    return found


def _program(
    model: onnx.ModelProto, path: Path, body: LiteBody, output: str, changed: Arrays | None
) -> HeadProgram | None:
    """The head up to an output, with all its weights; None where the output is the feature tensor itself."""
    if output == body.feature:
        return None
    sizes = {tensor.name: tuple(tensor.dims)[2:] for tensor in model.graph.initializer}
    steps = [with_window(step_of(node, opset_of(model)), sizes) for node in nodes_behind(model, body.feature, {})]
    needed = {name for step in steps for name in step.inputs}
    constants = dict(constants_of(model, needed, _reader(path))) | dict(changed or {})
    program = HeadProgram.of(steps, constants, feature=body.feature, trainable=(), output=output)
    if program.by_torch:
        raise ModelUntrainable(
            f"{', '.join(program.by_torch)} of the head is computed by torch alone; a head behind a TensorFlow Lite "
            "body answers in numpy: choose a feature tensor behind it",
            operator=program.by_torch[0],
        )
    return program


def _reader(path: Path) -> Callable[[str, int, int], bytes]:
    def read(location: str, offset: int, length: int) -> bytes:
        with path.parent.joinpath(*PurePosixPath(location).parts).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    return read
