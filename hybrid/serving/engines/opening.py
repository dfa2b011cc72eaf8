"""Opens model files as engine sessions, and measures what each of them holds and costs.

Design: one session is opened at a time in a process, so that the bytes that were allocated meanwhile are its own. The
activations of all sessions live in one arena of the process: with one each, five models held 378 MB after two
concurrent runs, with a common one 292 MB, at the same speed.
"""

import logging
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from compression.tensor import NUMPY_OF
from devices.engine_provider import CPU, CUDA, EngineProvider, provider_of
from devices.errors import DeviceError, OperatorUnsupported
from devices.fallback import FallbackSession
from devices.gpu_memory import gpu_memory
from devices.onnx_engine import open_session
from devices.process_memory import allocated_bytes, give_back_freed
from devices.tflite_magic import is_lite
from devices.torch_engine import TorchSession
from hybrid.errors import ModelInvalid, ModelUnsupported
from hybrid.serving.engines.model_facts import ModelFacts
from hybrid.serving.engines.served_model import Tensors
from hybrid.serving.engines.session import DATATYPE_OF_ENGINE, EngineSession

_log = logging.getLogger("hybrid.serving")
_one_at_a_time: Final = Lock()

_TRIM_FROM_BYTES: Final = 32 << 20
"""Opening leaves about as much freed memory behind as the model is large; from this size on it is given back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How sessions are opened.

    Attributes:
        n_intra_threads: threads inside one run; 0 leaves it to onnxruntime (one a core).
        spin: whether idle engine threads spin; costs whole cores on a shared machine.
        provider: where they compute.
        device_id: the CUDA device, where it is CUDA.
        inline_s: models whose runs are shorter do so on the event loop; 0 for none. The hop to an engine thread
            costs about 0.05 ms of CPU.
        learns_bounds: whether models are parsed for whether their run times are bounded, which lets late requests be
            refused before they run; costs 9 MB and some time at the first model.
    """

    n_intra_threads: int = 0
    spin: bool = False
    provider: EngineProvider = field(default=EngineProvider())
    device_id: int = 0
    inline_s: float = 0.0003
    learns_bounds: bool = True


def open_engine(
    path: Path, settings: EngineSettings, facts: ModelFacts, tensors: Tensors = MappingProxyType({})
) -> EngineSession:
    """Open a model file; takes milliseconds to seconds, so call it off the event loop.

    Args:
        path: the model file.
        settings: how.
        facts: of the file.
        tensors: in place of those in files beside it, which stay as they are.

    Raises:
        ModelInvalid: no file there, or no sound model in it, or tensors that it has not in files beside it.
        ModelUnsupported: onnxruntime has no kernel for an operator, an input is not a tensor, or the engine takes no
            tensors in place of those in its files.
    """
    options = _options(settings)
    if tensors and settings.provider.name == "torch":
        raise ModelUnsupported(f"{path.name}: torch takes no tensors in place of the files'", path=str(path))
    values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for array in tensors.values()]
    if values:
        options.add_external_initializers(list(tensors), values)
    provider = settings.provider
    with _one_at_a_time:
        before_bytes, before_gpu = allocated_bytes(), _free_gpu_bytes(settings)
        started_s = time.perf_counter()
        try:
            opened = _opened(path, options, settings, tensors)
        except OperatorUnsupported as exc:
            raise ModelUnsupported(str(exc), path=str(path), operator=exc.operator) from exc
        except DeviceError as exc:
            raise ModelInvalid(str(exc), path=str(path)) from exc
        name = provider_of(opened)
        if name == "cuda":
            _warm_up(opened)
        opened_s = time.perf_counter() - started_s
        after_bytes, after_gpu = allocated_bytes(), _free_gpu_bytes(settings)
    is_for_cpu = is_lite(path)
    if name != provider.name and not is_for_cpu:
        _log.warning("engine.fallback model=%s wanted=%s got=%s", path.name, provider.name, name)
    session = EngineSession(opened, facts, path, inline_s=settings.inline_s if name == "cpu" else 0.0, provider=name)
    session.opened_s = opened_s
    session.tensors = (values, tensors)
    session.is_for_cpu = is_for_cpu
    if before_bytes is not None and after_bytes is not None:
        # Weights in a file of their own are mapped, not allocated: they count by their size.
        session.n_allocated_bytes = max(after_bytes - before_bytes, 0)
        session.n_bytes = max(session.n_allocated_bytes, facts.n_bytes if name == "cpu" else 0)
    if name != "cpu":
        session.n_gpu_bytes = max(before_gpu - after_gpu, facts.n_bytes)
    if session.n_bytes >= _TRIM_FROM_BYTES:
        give_back_freed()
    return session


def _opened(path: Path, options: ort.SessionOptions, settings: EngineSettings, tensors: Tensors) -> Any:
    """The session; what torch cannot run, onnxruntime runs on the CPU, and so it does where an accelerator fails."""
    provider = settings.provider
    if is_lite(path):
        from hybrid.federated.learning.lite_session import open_lite

        return open_lite(path, settings.n_intra_threads, changed=tensors)
    if provider.name == "torch":
        try:
            return TorchSession(path, f"cuda:{settings.device_id}")
        except OperatorUnsupported as exc:
            _log.warning("engine.not_on_torch model=%s reason=%s", path.name, exc)
    if provider.name != "cuda":
        return open_session(path, options, provider.providers, [dict(given) for given in provider.options])
    return FallbackSession(
        provider.name,
        lambda: open_session(path, options, provider.providers, [dict(given) for given in provider.options]),
        lambda: open_session(path, options, [CPU]),
        is_taken=lambda found: CUDA in found.get_providers(),
    )


def _options(settings: EngineSettings) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.n_intra_threads
    options.log_severity_level = 4
    if not settings.spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if _share_arena():
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _warm_up(opened: Any) -> None:
    """Run once where the shapes are known: CUDA loads its kernels and takes its arena at the first run, for seconds."""
    feeds: dict[str, np.ndarray] = {}
    for node in opened.get_inputs():
        dtype = NUMPY_OF.get(DATATYPE_OF_ENGINE.get(node.type, ""))
        if dtype is None or not all(isinstance(size, int) for size in node.shape):
            return
        feeds[node.name] = np.ones(node.shape, dtype)
    try:
        opened.run(None, feeds)
    except Exception as exc:  # noqa: BLE001 (ones are no input of this model; its first request warms it then)
        _log.info("engine.cold reason=%s", type(exc).__name__)


def _free_gpu_bytes(settings: EngineSettings) -> int:
    if settings.provider.name == "cpu":
        return 0
    found = gpu_memory(settings.device_id)
    return 0 if found is None else found[0]


@cache
def _share_arena() -> bool:
    """Make the process's one arena of activations; False where this onnxruntime cannot."""
    create: Any = getattr(ort, "create_and_register_allocator", None)
    if create is None:
        return False
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        create(place, ort.OrtArenaCfg(0, -1, -1, -1))
    except Exception as exc:  # noqa: BLE001 (onnxruntime raises what it likes; every session has its own arena then)
        _log.info("engine.own_arenas reason=%r", exc)
        return False
    return True
