"""What seconds that are measured here hold for: the engine as it is used, and the class of this machine."""

import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import onnxruntime

from devices import pace
from hybrid.profile.record import Setting

_CPU_INFO: Final = Path("/proc/cpuinfo")
_NAMES: Final = ("model name", "Model", "Hardware", "cpu model", "Processor")
_PARTS: Final = ("CPU implementer", "CPU part", "CPU variant")
_MAX_TEXT: Final = 200


def this_setting(
    providers: Sequence[Any] | None = None, sess_options: onnxruntime.SessionOptions | None = None
) -> Setting:
    """The setting of sessions that are opened on this machine with these parameters of onnxruntime.

    Args:
        providers: as onnxruntime takes them; None is its own choice (CPU in its CPU build).
        sess_options: the session's, None for the defaults.
    """
    names = [item if isinstance(item, str) else str(item[0]) for item in providers or onnxruntime_providers()]
    return Setting(
        engine=f"onnxruntime {onnxruntime.__version__}{_mode(sess_options)}",
        provider="+".join(names)[:_MAX_TEXT],
        n_threads=0 if sess_options is None else int(sess_options.intra_op_num_threads),
        machine=machine_class(),
    )


def onnxruntime_providers() -> list[str]:
    """What onnxruntime uses where nothing is asked for."""
    return ["CPUExecutionProvider"]


def machine_class() -> str:
    """This machine without its name: architecture, processor, usable cores, and how far it is slowed down."""
    text = f"{platform.machine() or 'unknown'} {_processor()} cores={usable_cores():g}"
    factor = pace.factor()
    return text if factor == 1.0 else f"{text} pace={factor:g}"


def usable_cores() -> float:
    """Cores that this process may use: its affinity, and less where a control group's quota says so."""
    n_cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _quota_cores()
    return n_cores if quota is None else min(n_cores, round(quota, 2))


def _quota_cores() -> float | None:
    """What the container's control group allows, in cores; None where it sets no limit, or none can be read."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text("ascii"))
        period_us = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text("ascii"))
    except (OSError, ValueError):
        return None
    return None if quota_us <= 0 or period_us <= 0 else quota_us / period_us


@cache
def _processor() -> str:
    """The processor's model as the kernel names it, else what Python knows."""
    facts: dict[str, str] = {}
    try:
        for line in _CPU_INFO.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    named = next((facts[name] for name in _NAMES if facts.get(name)), "")
    parts = " ".join(facts[name] for name in _PARTS if facts.get(name))
    text = " ".join(filter(None, (named, parts))) or platform.processor() or "unknown"
    return " ".join(text.split())[:_MAX_TEXT]


def _mode(sess_options: onnxruntime.SessionOptions | None) -> str:
    """Options that change which kernels run, where they are not the defaults."""
    if sess_options is None:
        return ""
    level = sess_options.graph_optimization_level
    words = [] if level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL else [f"level={level.name}"]
    if sess_options.execution_mode != onnxruntime.ExecutionMode.ORT_SEQUENTIAL:
        words.append(f"mode={sess_options.execution_mode.name}")
    return "".join(f" {word}" for word in words)
