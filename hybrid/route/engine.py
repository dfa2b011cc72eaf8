"""The device's engine: open models in the way that the caller asked for, run them, stop them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from devices import onnx_engine, pace
from devices.errors import DeviceError, OperatorUnsupported
from devices.fallback import EngineTrouble, FallbackSession
from devices.tflite_magic import is_lite
from hybrid.errors import ModelError, ModelInvalid, ModelUnsupported

EngineRun = Callable[..., list[np.ndarray]]
"""`run(output_names, feeds, run_options=None)`, as onnxruntime's."""

_CPU = ("CPUExecutionProvider", "CPU", "XNNPACK")
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
    """An open model: its session (onnxruntime's, or one with its face), its (possibly paced) run, its inputs' names."""

    session: Any
    run: EngineRun
    inputs: tuple[str, ...]

    @property
    def trouble(self) -> EngineTrouble | None:
        """Why the CPU computes in place of an accelerator that was asked for; None where nothing is amiss."""
        return self.session.trouble if isinstance(self.session, FallbackSession) else None

    @property
    def keeps_state(self) -> bool:
        """Whether the model remembers something between runs, so that every run must be this session's."""
        return bool(getattr(self.session, "keeps_state", False))


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
    names = _accelerators(settings)
    try:
        if not names:
            session = _on(model, settings, options, settings.providers)
        else:
            session = FallbackSession(
                "+".join(names),
                partial(_on, model, settings, options, settings.providers),
                partial(_on, model, replace(settings, provider_options=None), options, ["CPUExecutionProvider"]),
                is_taken=lambda found: names[0] in found.get_providers(),
                is_checked=not names[0].endswith("ExecutionProvider"),
            )
    except DeviceError as exc:
        raise _model_error(exc, shown) from exc
    return Engine(
        session=session,
        run=pace.wrap(session.run),
        inputs=tuple(node.name for node in session.get_inputs()),
    )


def _on(
    model: str | bytes, settings: Settings, options: onnxruntime.SessionOptions | None, providers: Sequence[Any] | None
) -> Any:
    """A session on these providers."""
    if is_lite(model):
        from hybrid.federated.learning.lite_session import open_lite

        n_threads = int(options.intra_op_num_threads) if options is not None else 0
        return open_lite(model, n_threads, providers, settings.provider_options)
    return onnx_engine.open_session(
        model, sess_options=options, providers=providers, provider_options=settings.provider_options
    )


def _accelerators(settings: Settings) -> list[str]:
    """Names of what the caller asked for beside the CPU."""
    named = [given[0] if isinstance(given, tuple) else given for given in settings.providers or ()]
    return [name for name in map(_name_of, named) if name not in _CPU]


def _name_of(given: Any) -> str:
    """A provider's name, or that of a delegate which is open already."""
    return str(getattr(given, "name", given))


def _model_error(exc: DeviceError, shown: str) -> ModelError:
    kind = ModelUnsupported if isinstance(exc, OperatorUnsupported) else ModelInvalid
    return kind(str(exc), path=shown, operator=exc.operator)
