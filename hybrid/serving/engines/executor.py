"""Runs whole models and tails: sessions shared by all requests, a bounded queue, batches, deadlines, cancellation."""

import asyncio
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from devices.process_memory import allocated_bytes
from hybrid.artifact.digest import files_of_model
from hybrid.serving.engines.background import Background
from hybrid.serving.engines.job import PRIORITY, EngineJob, too_late
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import EngineSettings, open_engine
from hybrid.serving.engines.pool import EnginePool
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.session_cache import Opening, SessionCache

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """Limits of an executor.

    Attributes:
        engine: how sessions are opened.
        n_threads: runs at the same time; further ones wait.
        max_waiting: waiting runs; further ones are refused with `Overloaded`.
        session_budget_bytes: memory that opened sessions may hold together.
        priority_of: 0 to 9 for the model with that digest: those of higher ones leave memory later.
        gpu_budget_bytes: the same on the GPU; 0 for no bound.
    """

    engine: EngineSettings = EngineSettings()
    n_threads: int = max(2, (os.cpu_count() or 2) // 2)
    max_waiting: int = 256
    session_budget_bytes: int = 2 << 30
    gpu_budget_bytes: int = 0
    priority_of: Callable[[str], int] = lambda _: PRIORITY


class Place(NamedTuple):
    """Where an answer was computed.

    Attributes:
        placement: `local`, `offload` or `split`.
        gateway: URL of the gateway that had a part in it, empty for local.
        cut: cut id of a split.
        fallback: why this machine answered instead of the planned placement, `code: message`; empty where it did not.
        model_digest: of the model that answered, where it may be another than the one that was asked for (a cascade).
    """

    placement: str = "local"
    gateway: str = ""
    cut: str = ""
    fallback: str = ""
    model_digest: str = ""


class Computed(NamedTuple):
    """Outputs in the order asked for, seconds waited for a thread and company, and seconds in the engine."""

    outputs: list[np.ndarray]
    queue_s: float
    compute_s: float
    n_together: int = 0
    """Rows that ran at once where other requests' were among them, else 0."""

    leads: bool = True
    """Whether this request stands for the run in counts of runs."""

    place: Place | None = None
    """Where it was computed, where that is a question."""


class Executor:
    """An async context manager: owns its engine threads, its builds and its sessions until it exits."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.pool = EnginePool(n_threads=settings.n_threads, max_waiting=settings.max_waiting)
        self._builders = Background("builder", n_threads=2)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._before_bytes = allocated_bytes()
        self.sessions = SessionCache(
            budget_bytes=settings.session_budget_bytes,
            gpu_budget_bytes=settings.gpu_budget_bytes,
            priority_of=settings.priority_of,
            tasks=self,
            builders=self._builders,
        )

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        try:
            # Told of no error, since the group would wrap it; it goes its own way when this returns.
            await self._group.__aexit__(None, None, None)
        finally:
            await asyncio.to_thread(self.pool.close)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that ends at the latest with this executor; it must not raise."""
        task = self._group.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def open_whole(self, model: ServedModel) -> EngineSession:
        """The session of the whole model, opened when it is not kept.

        Raises:
            ModelInvalid: the file is missing or unsound, or names external data outside its folder.
            ModelUnsupported: an operator or an input that no engine here takes.
            ModelOverBudget: it needs more memory than all sessions may hold.
            Overloaded: all that could leave for it is running.
        """
        key = (model.model_digest,)
        found = self.sessions.get(key)
        if found is not None:
            return found
        self.measure_shared()
        return await self.sessions.get_or_open(key, lambda: self._look_whole(model))

    def _look_whole(self, model: ServedModel) -> Opening:
        files_of_model(model.path)  # an engine may follow external data out of the model's folder: refused here
        facts = facts_of(model.path, wants_bounds=self.settings.engine.learns_bounds)
        return Opening(facts.n_bytes, lambda: open_engine(model.path, self.settings.engine, facts, model.tensors))

    def measure_shared(self) -> int:
        """Bytes that sessions share, the arena of activations above all: what was allocated and no session's own.

        Measured when no engine runs, since runs take and give; between, the last figure stands.
        """
        now_bytes = allocated_bytes()
        if now_bytes is not None and self._before_bytes is not None and self.pool.idle:
            own = sum(session.n_allocated_bytes for _, session in self.sessions.sessions())
            self.sessions.shared_bytes = max(0, now_bytes - self._before_bytes - own)
        return self.sessions.shared_bytes

    async def compute(
        self,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        deadline_s: float | None = None,
        *,
        n_checked_bytes: int = -1,
        priority: int = PRIORITY,
        options: Any = None,
    ) -> Computed:
        """Run a session on feeds, with those of other requests where that was measured to pay.

        Args:
            feeds: arrays by name; raises before any work when they do not fit.
            outputs: names wanted, all when None.
            deadline_s: instant on the clock of `time.perf_counter`.
            n_checked_bytes: bytes of the feeds, where they are known to be what the session takes; else -1.
            priority: 0 to 9; of those that wait, higher ones go first.
            options: the caller's `onnxruntime.RunOptions`, which end the run when their `terminate` is set.

        Raises:
            TensorMismatch: the feeds are not what the session takes.
            Overloaded: the queue is full.
            DeadlinePassed: no answer before the deadline, or none possible any more.
            EngineFailed: the engine raised on these values.
        """
        n_bytes = n_checked_bytes
        if n_bytes < 0:
            session.check(feeds)
            n_bytes = sum(array.nbytes for array in feeds.values())
        if session.runs_inline(n_bytes):
            started_s = perf_counter()
            if deadline_s is not None and started_s >= deadline_s:
                raise too_late()
            found = session.run(feeds, outputs)
            compute_s = perf_counter() - started_s
            session.observe_inline(compute_s)
            return Computed(found, 0.0, compute_s)
        job = EngineJob(session, feeds, outputs, deadline_s, priority=priority, options=options)
        if session.batch is not None and (found_lane := session.batch.lane_of(feeds, outputs)) is not None:
            job.lane, job.n_rows = found_lane
        found = await self.pool.run(job)
        if job.n_together > job.n_rows:
            return Computed(found, job.queue_s, job.compute_s, job.n_together, job.leads)
        session.observe(job.compute_s, n_bytes)
        return Computed(found, job.queue_s, job.compute_s)
