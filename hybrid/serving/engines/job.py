"""One run that a request waits for: what to compute, for whom, until when, and what became of it."""

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from hybrid.errors import DeadlinePassed, EngineFailed, HybridError
from hybrid.serving.engines.row_batch import Lane
from hybrid.serving.engines.session import EngineSession


class Leavable(Protocol):
    """A run that jobs can be withdrawn from."""

    def leave(self) -> None:
        """One job fewer waits for it."""
        ...


PRIORITY = 5
"""Of a request that names none, for a model that has none."""

PATIENCE_S = 1.0
"""A job without a deadline is as urgent as one that must be done so long after it came: none waits for ever."""


class EngineJob:
    """One request's run.

    Attributes:
        feeds: its inputs; None once it was withdrawn.
        lane: jobs of one lane may run together (`RowBatch`); None where it runs alone.
        n_rows: its rows in a batch.
        deadline_s: on the clock of `perf_counter`, or None.
        due_s: what jobs of one priority are ordered by, the earliest first.
        priority: 0 to 9, higher first.
        options: `onnxruntime.RunOptions` of the caller, which may end the run by them; None where it does not.
        is_waiting: neither started nor withdrawn.
        queue_s: seconds between being submitted and being started, the wait for company included.
        compute_s: seconds inside the engine, the whole batch's.
        n_together: rows that ran at once.
        leads: whether it stands for its run when runs are counted.
        run: what it is part of, once it has started.
    """

    __slots__ = (
        "compute_s", "deadline_s", "due_s", "feeds", "future", "is_waiting", "lane", "leads", "loop", "n_rows",
        "n_together", "options", "outputs", "priority", "queue_s", "run", "session", "submitted_s",
    )  # fmt: skip

    def __init__(
        self,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        deadline_s: float | None,
        *,
        priority: int = PRIORITY,
        options: Any = None,
    ) -> None:
        self.priority = priority
        self.options = options
        self.session = session
        self.feeds: Mapping[str, np.ndarray] | None = feeds
        self.outputs = outputs
        self.deadline_s = deadline_s
        self.submitted_s = perf_counter()
        self.due_s = self.submitted_s + PATIENCE_S if deadline_s is None else deadline_s
        self.lane: Lane | None = None
        self.n_rows = 1
        self.queue_s = 0.0
        self.compute_s = 0.0
        self.n_together = 1
        self.leads = True
        self.run: Leavable | None = None
        self.is_waiting = True
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[np.ndarray]] = self.loop.create_future()

    def can_make_it(self, now_s: float, run_s: float) -> bool:
        """Whether a run of so many seconds that starts now ends before the deadline."""
        return self.deadline_s is None or now_s + run_s <= self.deadline_s

    def settle(self, outputs: list[np.ndarray] | None, error: HybridError | None) -> None:
        """Give the result to the waiting task, on the loop; nothing happens when it left already."""
        if self.future.done():
            return
        if outputs is None:
            self.future.set_exception(error or EngineFailed("the engine gave no outputs"))
        else:
            self.future.set_result(outputs)


def too_late() -> DeadlinePassed:
    """The error of a request whose deadline passed, or cannot be kept any more."""
    return DeadlinePassed("the engine cannot answer before the deadline; allow more time or try again later")
