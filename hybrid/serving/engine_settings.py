"""From a service's settings to those of its executor: threads, memory, and where models run."""

import logging
import os
from collections.abc import Iterable
from typing import Final, cast

from devices.engine_provider import EngineProvider, Wanted, choose_provider
from devices.gpu_memory import gpu_memory
from hybrid.hosting.service_settings import ServiceSettings
from hybrid.serving.engines.executor import ExecutorSettings
from hybrid.serving.engines.opening import EngineSettings
from hybrid.serving.engines.session import EngineSession

_log = logging.getLogger("hybrid.gateway")

_GPU_SHARE: Final = 0.8


def executor_settings(config: ServiceSettings) -> ExecutorSettings:
    """The executor's settings; a provider that is not here is replaced by the CPU, with a warning."""
    wanted = cast("Wanted", config.provider)
    gpu_budget_bytes = 0
    if wanted != "cpu":
        found = gpu_memory(config.gpu_device)
        gpu_budget_bytes = config.gpu_memory_bytes or int(_GPU_SHARE * (found[1] if found else 0))
    provider = choose_provider(wanted, device_id=config.gpu_device, gpu_memory_bytes=gpu_budget_bytes)
    if provider.note:
        _log.warning("engine.no_cuda reason=%s", provider.note)
    return ExecutorSettings(
        engine=EngineSettings(
            n_intra_threads=config.n_intra_threads,
            inline_s=config.inline_s if provider.name == "cpu" else 0.0,
            provider=provider,
            device_id=config.gpu_device,
        ),
        n_threads=config.n_runs or max(2, (os.cpu_count() or 2) // 2),
        max_waiting=config.max_waiting,
        session_budget_bytes=config.session_memory_bytes,
        gpu_budget_bytes=gpu_budget_bytes if provider.name != "cpu" else 0,
    )


def degraded(provider: EngineProvider, sessions: Iterable[EngineSession]) -> str:
    """Why models do not run where the operator wanted them to; empty where they do.

    Args:
        provider: what the operator wanted.
        sessions: that are open; those whose engine knows no accelerator here (TensorFlow Lite) are where they belong.
    """
    fell_back = any(session.provider == "cpu" and not session.is_for_cpu for session in sessions)
    if provider.note or provider.name == "cpu" or not fell_back:
        return provider.note
    if provider.name == "torch":
        return "some models cannot run on torch and run on the CPU; the log names them"
    return "CUDA is in this onnxruntime, but sessions fell back to the CPU: its libraries or its device do not answer"
