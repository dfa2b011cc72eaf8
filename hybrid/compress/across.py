"""The same model in every runtime that a device may have: its outputs are compared before it is shipped."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from devices.errors import DeviceError
from devices.onnx_engine import open_session
from devices.tflite_magic import is_headed, is_lite, is_tflite
from hybrid.calibration.judge import distance
from hybrid.calibration.samples import Feeds

TOLERANCE: Final = 0.1
"""Relative distance up to which an int8 model's outputs may differ between runtimes: they round at other places."""

FLOAT_TOLERANCE: Final = 1e-3

N_COMPARED: Final = 16

_LEVELS: Final = {
    "no optimisation": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

Runtimes = Mapping[str, Callable[[Path], Any]]
"""What opens a model in each runtime, by name."""


def faults(path: Path, samples: Sequence[Feeds], *, tolerance: float, runtimes: Runtimes | None = None) -> list[str]:
    """What differs between runtimes, one sentence each; nothing where all agree.

    Args:
        path: the model.
        samples: some requests.
        tolerance: relative distance up to which outputs count as the same.
        runtimes: None for all that are installed here and run this kind of model.
    """
    runtimes = runtimes or runtimes_of(path)
    answers: dict[str, list[list[np.ndarray]]] = {}
    found: list[str] = []
    for name, open_model in runtimes.items():
        try:
            session = open_model(path)
            answers[name] = [session.run(None, feeds) for feeds in samples[:N_COMPARED]]
        except (DeviceError, RuntimeError, ValueError) as exc:
            found.append(f"{name} does not run it ({str(exc).splitlines()[0][:200]})")
    if not answers:
        return found or ["no runtime is here that runs it"]
    usual = next(reversed(answers))
    return found + [fault for name in answers if (fault := _apart(name, usual, answers, tolerance))]


def runtimes_of(path: Path) -> Runtimes:
    """The runtimes of this kind of model; the last is the one that others are compared with."""
    if is_lite(path):
        from devices.tflite_engine import engine_version
        from hybrid.federated.learning.lite_session import open_lite

        return {engine_version() or "LiteRT": lambda file: open_lite(file)}  # noqa: PLW0108 (one argument of two)
    return {f"onnxruntime ({name})": _opener(level) for name, level in _LEVELS.items()}


def refusals(path: Path) -> list[str]:
    """Runtimes that are not here and must not run this file, one remark each; sessions there refuse it too."""
    if is_headed(path):
        from hybrid.federated.learning.lite_form import BODY_FILE

        path = path.with_name(BODY_FILE)
    if not is_tflite(path):
        return []
    from compression.tflite.runtimes import refusal_on_old_runtime

    why = refusal_on_old_runtime(path.read_bytes())
    return [f"tflite-runtime up to 2.14 must not run it: {why}"] if why else []


def _opener(level: onnxruntime.GraphOptimizationLevel) -> Callable[[Path], Any]:
    def opened(path: Path) -> Any:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        return open_session(path, options, ["CPUExecutionProvider"])

    return opened


def _apart(name: str, usual: str, answers: Mapping[str, list[list[np.ndarray]]], tolerance: float) -> str:
    """The outputs of all samples together, one output at a time: one sample near zero says little by itself."""
    for at in range(len(answers[usual][0])):
        mine = np.concatenate([np.ravel(answer[at]) for answer in answers[name]])
        theirs = np.concatenate([np.ravel(answer[at]) for answer in answers[usual]])
        apart = distance(mine, theirs)
        if apart > tolerance:
            return f"{name} and {usual} are {apart:.1%} apart in output {at} (at most {tolerance:.1%})"
    return ""
