"""What seconds that are measured here hold for: the engine as it is used, and the class of this machine."""

from collections.abc import Sequence
from typing import Any, Final

import onnxruntime

from devices.machine import machine_class
from hybrid.profile.record import Setting

_MAX_TEXT: Final = 200
_USUAL: Final = ("CPUExecutionProvider",)
"""What onnxruntime's CPU build takes where nothing is asked for."""


def this_setting(
    providers: Sequence[Any] | None = None, sess_options: onnxruntime.SessionOptions | None = None
) -> Setting:
    """The setting of sessions that are opened on this machine with these parameters of onnxruntime.

    Args:
        providers: as onnxruntime takes them; None is its own choice (CPU in its CPU build).
        sess_options: the session's, None for the defaults.
    """
    names = [item if isinstance(item, str) else str(item[0]) for item in providers or _USUAL]
    return Setting(
        engine=f"onnxruntime {onnxruntime.__version__}{_mode(sess_options)}",
        provider="+".join(names)[:_MAX_TEXT],
        n_threads=0 if sess_options is None else int(sess_options.intra_op_num_threads),
        machine=machine_class(),
    )


def _mode(sess_options: onnxruntime.SessionOptions | None) -> str:
    """Options that change which kernels run, where they are not the defaults."""
    if sess_options is None:
        return ""
    level = sess_options.graph_optimization_level
    words = [] if level == onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL else [f"level={level.name}"]
    if sess_options.execution_mode != onnxruntime.ExecutionMode.ORT_SEQUENTIAL:
        words.append(f"mode={sess_options.execution_mode.name}")
    return "".join(f" {word}" for word in words)
