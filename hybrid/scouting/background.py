"""This device's engine as the background thread uses it: timed, and stopped before the process ends.

Design: a daemon thread that is inside onnxruntime while the interpreter goes away aborts the process. So whatever runs
in the background holds a lock while it is in the engine; who stops it raises the engine's terminate flag and waits for
the lock.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np
import onnxruntime

from hybrid.route.departure import computed_by
from hybrid.route.engine import Engine, EngineRun
from hybrid.route.way import Head

N_RUNS = 3
"""Timed runs of a part that nobody knows yet."""

BUDGET_S = 1.0
STOP_TIMEOUT_S = 2.0


class BackgroundEngine:
    """Background runs of the whole model and of heads.

    Args:
        run_whole: the local session's run.
        open_piece: opens a head or tail model; `has_arena=False` opens one that keeps no memory of its runs.

    Attributes:
        in_engine: held by whoever runs in the background.
    """

    def __init__(self, run_whole: EngineRun, open_piece: Callable[..., Engine]) -> None:
        self._run_whole = run_whole
        self._open_piece = open_piece
        self.in_engine = Lock()
        self._run_options = onnxruntime.RunOptions()
        self._is_paused = False

    def timed_whole(
        self, names: Sequence[str], feeds: Mapping[str, np.ndarray], *, n_runs: int
    ) -> tuple[list[np.ndarray], list[float]]:
        """The whole model's outputs, and the seconds of so many runs; of fewer where they use up the budget."""
        return self.timed_run(self._run_whole, names, feeds, n_runs=n_runs)

    def timed_run(
        self, run: EngineRun, names: Sequence[str], feeds: Mapping[str, np.ndarray], *, n_runs: int
    ) -> tuple[list[np.ndarray], list[float]]:
        """A whole model's outputs, and the seconds of so many runs; of fewer where they use up the budget."""
        with self.in_engine:
            started_s = perf_counter()
            taken: list[float] = []
            while True:
                before_s = perf_counter()
                outputs = run(names, feeds, self._run_options)
                now_s = perf_counter()
                taken.append(now_s - before_s)
                if len(taken) >= n_runs or now_s - started_s > BUDGET_S:
                    return outputs, taken

    def open_piece(self, path: Path, *, has_arena: bool = True) -> Engine:
        """An open head, tail or variant; without an arena it keeps no memory between its runs."""
        with self.in_engine:
            return self._open_piece(path, has_arena=has_arena)

    def computed_by(
        self, head: Head, feeds: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """What crosses, and all that the head computed, by name."""
        with self.in_engine:
            return computed_by(head, feeds, self._run_options)

    def timed_head(
        self, head: Head, feeds: Mapping[str, np.ndarray], *, n_runs: int
    ) -> tuple[dict[str, np.ndarray], list[float]]:
        """What crosses, and the seconds of so many runs after a warm-up; of fewer where they use up the budget."""
        with self.in_engine:
            started_s = perf_counter()
            crossing, _ = computed_by(head, feeds, self._run_options)
            taken: list[float] = []
            while len(taken) < n_runs and not (taken and perf_counter() - started_s > BUDGET_S):
                before_s = perf_counter()
                crossing, _ = computed_by(head, feeds, self._run_options)
                taken.append(perf_counter() - before_s)
            return crossing, taken

    def stop(self) -> None:
        """Ends the background run in progress; nothing more runs in the background of this process."""
        self._run_options.terminate = True
        self.in_engine.acquire(timeout=STOP_TIMEOUT_S)

    @property
    def is_interrupted(self) -> bool:
        """Whether what fails now was only stopped."""
        return bool(self._run_options.terminate)

    def interrupt(self) -> None:
        """Ends the background run in progress."""
        self._run_options.terminate = True

    def pause(self) -> None:
        """Before a fork: a child that copies an engine in mid-run waits for ever on the locks that it held."""
        self._is_paused = self.in_engine.acquire(timeout=STOP_TIMEOUT_S)

    def resume(self) -> None:
        """After a fork, in the parent."""
        if self._is_paused:
            self._is_paused = False
            self.in_engine.release()

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent."""
        self.in_engine = Lock()
        self._is_paused = False
