"""Where engines compute: which of onnxruntime's execution providers are here, and how they are opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import onnxruntime as ort

from devices.torch_engine import TorchSession, torch_reason

Wanted = Literal["auto", "cpu", "cuda", "torch"]
ProviderName = Literal["cpu", "cuda", "torch"]

CPU: Final = "CPUExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProvider:
    """One choice of where to compute.

    Attributes:
        name: `cpu`, `cuda` (onnxruntime) or `torch` (torch on CUDA).
        providers: onnxruntime's names, in order of preference.
        options: onnxruntime's options for each of them.
        note: why it is not what was wanted; empty where it is.
    """

    name: ProviderName = "cpu"
    providers: tuple[str, ...] = (CPU,)
    options: tuple[Mapping[str, Any], ...] = field(default=({},))
    note: str = ""


def choose_provider(wanted: Wanted, *, device_id: int = 0, gpu_memory_bytes: int = 0) -> EngineProvider:
    """The provider to open sessions with: CUDA where it is wanted or `auto` finds it, else the CPU, with the reason.

    That CUDA is listed says only that this build of onnxruntime has it; whether its libraries and a device are there
    shows at the first session, which falls back to the CPU by itself (`provider_of` tells).

    Args:
        wanted: `auto` takes CUDA where this build of onnxruntime has it.
        device_id: the CUDA device.
        gpu_memory_bytes: no session's arena grows beyond it; 0 for no bound.
    """
    available = ort.get_available_providers()
    if wanted == "cpu":
        return EngineProvider()
    if wanted == "torch":
        reason = torch_reason()
        return EngineProvider(note=f"torch was wanted, but {reason}") if reason else EngineProvider(name="torch")
    if CUDA not in available:
        if wanted == "auto":
            return EngineProvider()
        return EngineProvider(
            note=f"cuda was wanted, but this onnxruntime {ort.__version__} has only {', '.join(available)}; "
            "install onnxruntime-gpu in place of onnxruntime"
        )
    preload = getattr(ort, "preload_dlls", None)
    if preload is not None:  # finds CUDA's libraries where they were installed as Python packages
        preload()
    return EngineProvider(
        name="cuda", providers=(CUDA, CPU), options=(cuda_options(device_id, gpu_memory_bytes), {}), note=""
    )


def cuda_options(device_id: int, gpu_memory_bytes: int) -> dict[str, str]:
    """Options of the CUDA provider: no TF32, so that results are the CPU's; an arena that grows by what is asked for.

    Source: onnxruntime's page of the CUDA execution provider (its provider options).
    """
    options = {
        "device_id": str(device_id),
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search would take seconds at every new shape
        "do_copy_in_default_stream": "1",
    }
    if gpu_memory_bytes > 0:
        options["gpu_mem_limit"] = str(gpu_memory_bytes)
    return options


def provider_of(session: ort.InferenceSession | TorchSession) -> ProviderName:
    """Where an open session really computes."""
    if isinstance(session, TorchSession):
        return "torch"
    return "cuda" if CUDA in session.get_providers() else "cpu"
