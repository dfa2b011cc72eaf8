"""Models timed side by side in one process and in turns, one thread, so that what disturbs one disturbs all."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

N_ROUNDS = 40


def opened(path: Path) -> onnxruntime.InferenceSession:
    """A model in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def medians_s(
    models: Mapping[str, Path], image: np.ndarray, n_rounds: int = N_ROUNDS, n_runs: int = 5
) -> dict[str, float]:
    """Median seconds of a run of each model.

    Args:
        models: by title.
        image: one request, with its dimension of 1.
        n_rounds: turns.
        n_runs: runs of each model a turn; their fastest counts, then the median over the turns.
    """
    sessions = {title: opened(path) for title, path in models.items()}
    feeds = {title: {session.get_inputs()[0].name: image} for title, session in sessions.items()}
    found: dict[str, list[float]] = {title: [] for title in models}
    for _ in range(n_rounds):
        for title, session in sessions.items():
            session.run(None, feeds[title])
            found[title].append(min(_seconds(session, feeds[title]) for _ in range(n_runs)))
    return {title: statistics.median(each) for title, each in found.items()}


def _seconds(session: onnxruntime.InferenceSession, feeds: Mapping[str, np.ndarray]) -> float:
    began = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - began


def right(path: Path, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which images a model gets right: one boolean an image."""
    session = opened(path)
    name = session.get_inputs()[0].name
    sizes = session.get_inputs()[0].shape
    step = 1 if isinstance(sizes[0], int) else 100
    answers = [session.run(None, {name: images[at : at + step]})[0] for at in range(0, len(images), step)]
    found: np.ndarray = np.concatenate(answers).argmax(1) == labels
    return found


def size_bytes(paths: Sequence[Path]) -> int:
    """Bytes of all files of a model."""
    return sum(path.stat().st_size for path in paths)
