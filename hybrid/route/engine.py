"""The device's engine: open models in the way that the caller asked for, run them, stop them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from devices import onnx_engine, pace
from devices.errors import DeviceError, OperatorUnsupported
from hybrid.errors import ModelError, ModelInvalid, ModelUnsupported

EngineRun = Callable[..., list[np.ndarray]]
"""`run(output_names, feeds, run_options=None)`, as onnxruntime's."""

_COPIED = (
    "intra_op_num_threads",
    "inter_op_num_threads",
    "execution_mode",
    "graph_optimization_level",
    "enable_mem_pattern",
    "enable_cpu_mem_arena",
    "log_severity_level",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """onnxruntime's own parameters of a session, as the caller gave them."""

    sess_options: onnxruntime.SessionOptions | None = None
    providers: Sequence[Any] | None = None
    provider_options: Sequence[dict[Any, Any]] | None = None

    def for_piece(self) -> onnxruntime.SessionOptions:
        """The same threads and optimisation for a part of the model, without profiling or files written."""
        options = onnxruntime.SessionOptions()
        if self.sess_options is not None:
            for name in _COPIED:
                setattr(options, name, getattr(self.sess_options, name))
        return options


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An open model: its session, its (possibly paced) run, the names of its inputs."""

    session: onnxruntime.InferenceSession
    run: EngineRun
    inputs: tuple[str, ...]


def open_whole(model: str | bytes, settings: Settings, shown: str) -> Engine:
    """The model as the caller would open it with onnxruntime.

    Args:
        model: path, or the model's bytes.
        settings: onnxruntime's parameters.
        shown: what to call the model in messages.

    Raises:
        ModelInvalid: missing or corrupt.
        ModelUnsupported: sound, but with an operator that this engine does not have.
    """
    return _opened(model, settings, settings.sess_options, shown)


def open_piece(path: Path, settings: Settings, *, has_arena: bool = True) -> Engine:
    """A head or tail, with the caller's threads and providers; raises as `open_whole` does.

    Args:
        path: of its model.
        settings: the caller's.
        has_arena: whether it may keep the memory of a run for the next one, as the caller's own settings say. Without,
            a run takes up to a quarter longer where its tensors are tens of megabytes, else as long.
    """
    options = settings.for_piece()
    options.enable_cpu_mem_arena = options.enable_cpu_mem_arena and has_arena
    return _opened(str(path), settings, options, path.name)


def _opened(model: str | bytes, settings: Settings, options: onnxruntime.SessionOptions | None, shown: str) -> Engine:
    try:
        session = onnx_engine.open_session(
            model,
            sess_options=options,
            providers=settings.providers,
            provider_options=settings.provider_options,
        )
    except DeviceError as exc:
        raise _model_error(exc, shown) from exc
    return Engine(
        session=session,
        run=pace.wrap(session.run),
        inputs=tuple(node.name for node in session.get_inputs()),
    )


def _model_error(exc: DeviceError, shown: str) -> ModelError:
    kind = ModelUnsupported if isinstance(exc, OperatorUnsupported) else ModelInvalid
    return kind(str(exc), path=shown, operator=exc.operator)
