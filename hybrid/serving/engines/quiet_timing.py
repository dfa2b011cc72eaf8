"""How long tails take on this machine: their real fused sessions, timed when nothing else wants the engine.

Design: the tensors that cross are computed by the real heads from synthetic inputs, since shape tensors and indices
made up at random would send a tail along other paths or make it fail.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnxruntime as ort

from compression.tensor import BYTES, NUMPY_OF, TensorSpec
from devices.onnx_engine import open_session
from devices.tflite_magic import is_tflite
from hybrid.graph.shape_key import ShapeKey
from hybrid.serving.engines.pool import EnginePool
from hybrid.serving.engines.session import EngineSession

_N_RUNS: Final = 5
_BUDGET_S: Final = 0.5
_IDLE_POLL_S: Final = 0.005
IDLE_PATIENCE_S: Final = 0.25


class TailTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds on one machine, as kept on the disk: the whole model and the tails of the cuts worth timing.

    Attributes:
        machine: what the seconds hold for.
        whole_s: None where synthetic inputs do not run.
        tails: seconds by cut id.
    """

    machine: str
    whole_s: float | None
    tails: dict[str, float]


def machine_text(n_intra_threads: int, provider: str, n_threads: int) -> str:
    """What measured seconds hold for: processor count, engine version, where and in how many threads it computes."""
    node = os.uname()
    return (
        f"{node.nodename} {node.machine} cpus={os.cpu_count()} ort={ort.__version__} provider={provider} "
        f"intra={n_intra_threads} runs={n_threads}"
    )


def read_times(path: Path, machine: str) -> TailTimes | None:
    """Times that were kept for this machine, or None."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=TailTimes)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.machine == machine else None


def write_record(path: Path, times: msgspec.Struct) -> None:
    """Keep measured times, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.encode(times))
    draft.replace(path)


def synthetic_feeds(inputs: Mapping[str, TensorSpec], shape_key: ShapeKey) -> dict[str, np.ndarray]:
    """Inputs of the key's shapes: numbers between 0 and 1 for floats, ones for integers and masks."""
    random = np.random.default_rng(0)
    shapes = dict(shape_key.shapes)
    feeds: dict[str, np.ndarray] = {}
    for name, spec in inputs.items():
        shape = shapes.get(name, ())
        if spec.dtype == BYTES:
            feeds[name] = np.full(shape, "", dtype=object)
        elif spec.dtype in ("FP16", "FP32", "FP64"):
            feeds[name] = random.random(shape).astype(NUMPY_OF[spec.dtype])
        else:
            feeds[name] = np.ones(shape, NUMPY_OF[spec.dtype])
    return feeds


def head_tensors(head_path: Path, names: list[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What crosses a cut for these inputs, computed by the head once.

    Raises:
        DeviceError: the head cannot be opened.
    """
    if is_tflite(head_path):
        from devices.tflite_engine import TfliteSession

        return _crossing(TfliteSession(head_path, 1), names, feeds)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it runs once: open it fast
    options.log_severity_level = 4
    return _crossing(open_session(head_path, options, ["CPUExecutionProvider"]), names, feeds)


def _crossing(session: Any, names: list[str], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    wanted = {node.name for node in session.get_inputs()}
    computed = [name for name in names if name not in feeds]
    found = session.run(computed, {name: array for name, array in feeds.items() if name in wanted}) if computed else []
    return {**{name: feeds[name] for name in names if name in feeds}, **dict(zip(computed, found, strict=True))}


def time_session(session: EngineSession, feeds: Mapping[str, np.ndarray], pool: EnginePool) -> float:
    """Median seconds of a few runs, each begun when no request uses the engine, or after a short wait.

    Raises:
        EngineFailed: these feeds do not run.
    """
    session.run(feeds)
    taken: list[float] = []
    while len(taken) < _N_RUNS and sum(taken) < _BUDGET_S:
        wait_for_idle(pool)
        started_s = time.perf_counter()
        session.run(feeds)
        taken.append(time.perf_counter() - started_s)
    return float(np.median(taken))


def wait_for_idle(pool: EnginePool, patience_s: float = IDLE_PATIENCE_S) -> None:
    """Block until no request uses the engine, for so long at most."""
    patient_until_s = time.monotonic() + patience_s
    while not pool.idle and time.monotonic() < patient_until_s:
        time.sleep(_IDLE_POLL_S)
