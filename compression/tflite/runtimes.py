"""Answers of a TensorFlow Lite file in each runtime that a device may have.

Design: the runtime that is installed here is asked; of one that is not (tflite-runtime, numpy 1 only, the last release
for 32-bit Arm) the files are known that it computes wrongly without a word, and they are refused for it by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compression.measuring import Feeds
from devices.tflite_details import wrong_on_old_runtime
from devices.tflite_engine import TfliteSession, engine_version, interpreter_module


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one runtime makes of a file.

    Attributes:
        runtime: `LiteRT 2.3.0`, `tflite-runtime 2.14`.
        is_asked: whether it computed anything here; else the file was only looked at.
        distance: largest ‖a − b‖₂ / ‖b‖₂ over samples and outputs; 0 where it was not asked.
        refusal: why the file must not run there; empty where it may.
    """

    runtime: str
    is_asked: bool
    distance: float = 0.0
    refusal: str = ""


def answers(model: bytes, samples: Sequence[Feeds], output_names: Sequence[str]) -> list[list[np.ndarray]]:
    """The outputs of each sample, in one thread of the runtime that is installed here.

    Raises:
        DeviceError: none is installed, or it cannot run the file.
    """
    session = TfliteSession(model, n_threads=1)
    return [[np.array(found) for found in session.run(list(output_names), dict(feeds))] for feeds in samples]


def verdicts(
    model: bytes, samples: Sequence[Feeds], references: Sequence[Sequence[np.ndarray]], output_names: Sequence[str]
) -> tuple[Verdict, ...]:
    """What each runtime makes of a file.

    Args:
        model: the file.
        samples: requests.
        references: the float model's outputs of each.
        output_names: of the outputs, in their order.
    """
    here = engine_version()
    apart = 0.0
    for found, wanted in zip(answers(model, samples, output_names), references, strict=True):
        apart = max([apart, *(_distance(a, b) for a, b in zip(found, wanted, strict=True))])
    return (
        Verdict(runtime=here, is_asked=True, distance=apart),
        Verdict(runtime="tflite-runtime 2.14", is_asked=False, refusal=refusal_on_old_runtime(model)),
    )


def refusal_on_old_runtime(model: bytes) -> str:
    """Why tflite-runtime up to 2.14 must not run this file; empty where nothing of the kind is known."""
    interpreter = interpreter_module().Interpreter(model_content=model)
    interpreter.allocate_tensors()
    return wrong_on_old_runtime(interpreter)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        return float("inf")
    apart = float(np.linalg.norm(found.astype(np.float64) - wanted))
    size = float(np.linalg.norm(wanted.astype(np.float64)))
    return apart / size if size else (0.0 if apart == 0 else float("inf"))
