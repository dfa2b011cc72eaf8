"""The border to TensorFlow Lite: LiteRT, or tflite-runtime where that is what a device has, with onnxruntime's face.

Design: an interpreter holds one run at a time, so a lock orders them. What a caller sees (names, type words, shapes,
`run(names, feeds, options)`) is what onnxruntime shows, so that nobody above needs to know which engine a model has.
tflite-runtime 2.14 is the last of its line: it dies on numpy 2, reads files whose weights lie behind the flatbuffer as
zeros, and was measured to compute dynamic-range int8 wrongly without a word; such files are refused there by name.
"""

from collections.abc import Mapping, Sequence
from ctypes import CDLL
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from devices.errors import DeviceError, ModelFileMissing, ModelRejected, OperatorUnsupported
from devices.onnx_engine import Port
from devices.tflite_details import PORT_TYPES, keeps_state, ports_of, refusal, scales_of
from devices.tflite_selfcheck import fault

_PACKAGES: Final = {"ai_edge_litert": "ai-edge-litert", "tflite_runtime": "tflite-runtime"}
_CPU_NAMES: Final = ("CPU", "XNNPACK")
_UNKNOWN: Final = (-1,)
"""Shape of an input whose tensor was left half resized: that of no request."""
_UNSUPPORTED: Final = ("custom op", "unresolved", "Didn't find op", "Op builtin_code out of range", "not supported")


def engine_version() -> str:
    """Name and version of the engine that would run here, such as `LiteRT 2.3.0`; empty where there is none."""
    for module, package in _PACKAGES.items():
        if find_spec(module) is not None:
            try:
                return f"{'LiteRT' if module == 'ai_edge_litert' else package} {version(package)}"
            except PackageNotFoundError:  # pragma: no cover  (a build of one's own)
                return package
    return ""


def numpy_refusal(engine: str, numpy_version: str) -> str:
    """Why this engine cannot run beside that numpy; empty where it can."""
    if engine.startswith("tflite-runtime") and int(numpy_version.partition(".")[0]) >= 2:
        return (
            f"{engine} was built for numpy 1 and dies on numpy {numpy_version}; install ai-edge-litert in its place, "
            "or numpy<2 beside it"
        )
    return ""


def interpreter_module(path: str = "") -> Any:
    """The module of the interpreter: LiteRT's, else tflite-runtime's.

    Raises:
        OperatorUnsupported: neither is installed, or it cannot run beside this numpy, or it computes wrongly here.
    """
    engine = engine_version()
    reason = numpy_refusal(engine, np.__version__) if engine else "no TensorFlow Lite engine is installed; "
    if reason:
        advice = "" if engine else "install ai-edge-litert (hybrid-split[tflite])"
        raise OperatorUnsupported(f"{path or 'the model'}: {reason}{advice}", path=path)
    name = "ai_edge_litert" if engine.startswith("LiteRT") else "tflite_runtime"
    module = import_module(f"{name}.interpreter")
    wrong = _fault(f"{name}.interpreter")
    if wrong:
        raise OperatorUnsupported(f"{path or 'the model'}: {engine} computes wrongly here: {wrong}; install another")
    return module


@cache
def _fault(module: str) -> str:
    """What the engine of this module computes wrongly on this machine, looked at once a process."""
    return fault(import_module(module))


class TfliteSession:
    """An open TensorFlow Lite model with onnxruntime's face; thread-safe, one run at a time.

    Attributes:
        path: the file, empty for a model given as bytes.
        keeps_state: whether the model remembers something from one run to the next.

    Args:
        model: path, or the model's bytes.
        n_threads: threads inside one run; 0 leaves it to the engine.
        providers: delegates in order of preference: paths of their libraries, `XNNPACK` (the engine's own, on by
            default) or `CPU` (none at all). Names of onnxruntime's providers mean nothing here and are skipped.
        provider_options: options of each delegate.

    Raises:
        ModelFileMissing: no file there.
        ModelRejected: a damaged file, or a delegate that the interpreter could not be made with.
        OperatorUnsupported: no engine here, or an operator that it does not have.
    """

    def __init__(
        self,
        model: bytes | str | PathLike[str],
        n_threads: int = 0,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[Any, Any]] | None = None,
    ) -> None:
        self.path = "" if isinstance(model, bytes) else fspath(model)
        module = interpreter_module(self.path)
        named = list(zip(providers or (), provider_options or [{}] * len(providers or ()), strict=True))
        pairs = [(*given, {})[:2] if isinstance(given, tuple) else (given, options) for given, options in named]
        wanted = [(name, options) for name, options in pairs if not str(name).endswith("ExecutionProvider")]
        self._delegates = [_delegate(module, name, options) for name, options in wanted if str(name) not in _CPU_NAMES]
        self._is_plain = any(str(name) == "CPU" for name, _ in wanted) and not self._delegates
        self._names = [str(getattr(name, "name", name)) for name, _ in wanted if str(name) not in _CPU_NAMES]
        self._module = module
        self._lock = Lock()
        self.keeps_state = False
        self._n_threads = n_threads
        self._model = model
        self._interpreter = self._opened()
        details = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._inputs, self._outputs = ports_of(*details)
        self._indices = {port.name: int(found["index"]) for port, found in zip(self._inputs, details[0], strict=True)}
        self._places = {port.name: int(found["index"]) for port, found in zip(self._outputs, details[1], strict=True)}
        self._scales = dict(zip(self._places, scales_of(details[1]), strict=True))
        self._shapes = {
            port.name: tuple(map(int, found["shape"])) for port, found in zip(self._inputs, details[0], strict=True)
        }

    def get_inputs(self) -> list[Port]:
        """What goes in."""
        return list(self._inputs)

    def get_outputs(self) -> list[Port]:
        """What comes out."""
        return list(self._outputs)

    def get_output_scales(self) -> dict[str, tuple[float, int] | None]:
        """Of each output its scale and zero point, where it is quantized as a whole."""
        return dict(self._scales)

    def has_integers(self) -> bool:
        """Whether it computes with weights or activations in 8 or 16 bits."""
        kinds = {np.dtype(found["dtype"]).name for found in self._interpreter.get_tensor_details() if found["name"]}
        return not kinds.isdisjoint(("int8", "uint8", "int16"))

    def get_providers(self) -> list[str]:
        """Where it runs: its delegates, then the engine itself."""
        return [*self._names, engine_version() + (" without delegates" if self._is_plain else "")]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any], options: Any = None) -> list[Any]:
        """The named outputs in that order, all of them when None. `options.terminate` is looked at before the run.

        Raises:
            ValueError: feeds that are not the model's inputs, or a name that is no output.
            DeviceError: the engine could not run the model.
        """
        arrays = self._checked(feeds)
        wanted = list(names or self._places)
        unknown = next((name for name in wanted if name not in self._places), None)
        if unknown is not None:
            raise ValueError(f"Invalid output name: {unknown}; the model's are {list(self._places)}")
        with self._lock:
            if options is not None and options.terminate:
                raise DeviceError("the run was terminated before it began")
            try:
                self._put(arrays)
                self._interpreter.invoke()
                return [_given_out(self._interpreter.get_tensor(self._places[name])) for name in wanted]
            except (RuntimeError, ValueError) as exc:
                raise DeviceError(f"{self.path or 'the model'}: the engine failed: {exc}", path=self.path) from exc

    def reset_variables(self) -> None:
        """Begin anew with what the model remembers between runs.

        The engine's own way of that leaves resource variables as they are, so the model is opened again.
        """
        with self._lock:
            self._interpreter = self._opened()
            self._put_shapes({name: shape for name, shape in self._shapes.items() if shape != _UNKNOWN})

    def _put_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes |= dict.fromkeys(shapes, _UNKNOWN)  # where the engine refuses, the next request asks anew
        for name, shape in shapes.items():
            self._interpreter.resize_tensor_input(self._indices[name], shape)
        self._interpreter.allocate_tensors()
        self._shapes |= shapes

    def _put(self, arrays: Mapping[str, np.ndarray]) -> None:
        moved = {name: array.shape for name, array in arrays.items() if self._shapes[name] != array.shape}
        if moved:
            self._put_shapes(moved)
        for name, array in arrays.items():
            self._interpreter.set_tensor(self._indices[name], array)

    def _checked(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        missing = [port.name for port in self._inputs if port.name not in feeds]
        unknown = [name for name in feeds if name not in self._indices]
        if missing or unknown:
            raise ValueError(
                f"Required inputs ({missing}) are missing, {unknown} are none: {list(self._indices)} wanted"
            )
        arrays = {}
        for port in self._inputs:
            array = np.asarray(feeds[port.name])
            if port.type == "tensor(string)":
                arrays[port.name] = np.array([text.encode() for text in array.astype(str).flat], object).reshape(
                    array.shape
                )
                continue
            kind = PORT_TYPES.get(port.type)
            fits = len(array.shape) == len(port.shape) and all(
                not isinstance(mine, int) or mine == size for mine, size in zip(port.shape, array.shape, strict=True)
            )
            if array.dtype != kind or not fits:
                raise ValueError(
                    f"input {port.name!r} is {array.dtype} {list(array.shape)}; the model wants {port.type} "
                    f"{list(port.shape)}"
                )
            arrays[port.name] = array
        return arrays

    def _opened(self) -> Any:
        module = self._module
        kind = module.OpResolverType
        own = kind.BUILTIN_WITHOUT_DEFAULT_DELEGATES if self._is_plain else kind.AUTO
        given = {"model_content": self._model} if isinstance(self._model, bytes) else {"model_path": self.path}
        if self.path and not Path(self.path).is_file():
            raise ModelFileMissing(f"{self.path}: no such file; give the path of a .tflite model", path=self.path)
        try:
            interpreter = module.Interpreter(
                **given,
                num_threads=self._n_threads or None,
                experimental_delegates=self._delegates or None,
                experimental_op_resolver_type=own,
            )
            reason = refusal(engine_version(), interpreter)
            if reason:
                raise OperatorUnsupported(f"{self.path or 'the model'}: {reason}", path=self.path)
            interpreter.allocate_tensors()
            self.keeps_state = keeps_state(interpreter)
        except DeviceError:
            raise
        except (RuntimeError, ValueError) as exc:
            raise self._typed(exc) from exc
        return interpreter

    def _typed(self, error: Exception) -> DeviceError:
        said = " ".join(str(error).split())[:400]
        shown = self.path or "the model given as bytes"
        if any(word in said for word in _UNSUPPORTED):
            return OperatorUnsupported(
                f"{shown} is not supported by {engine_version()} ({said}); convert it with operators that it has",
                path=self.path,
            )
        return ModelRejected(f"{shown} cannot be opened by {engine_version()} ({said})", path=self.path)


def _delegate(module: Any, name: Any, options: Mapping[Any, Any]) -> Any:
    if hasattr(name, "_get_native_delegate_pointer"):
        return name  # an open delegate
    try:
        CDLL(str(name))  # the interpreter's own loader leaves half an object behind where there is no library
        return module.load_delegate(str(name), dict(options))
    except (OSError, ValueError) as exc:
        raise ModelRejected(f"the delegate {name} cannot be loaded ({exc}); name its library", path=str(name)) from exc


def _given_out(array: Any) -> Any:
    if isinstance(array, np.ndarray) and array.dtype.kind in "SO":
        texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in array.flat]
        return np.array(texts, object).reshape(array.shape)
    return array
