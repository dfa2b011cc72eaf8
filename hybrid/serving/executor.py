"""Runs whole models and tails: sessions shared by all requests, a bounded queue, deadlines, cancellation."""

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from hybrid.artifact.digest import files_of_model
from hybrid.serving.background import Background
from hybrid.serving.engine_pool import EngineJob, EnginePool
from hybrid.serving.engine_session import EngineSession, EngineSettings, open_engine
from hybrid.serving.model_facts import facts_of
from hybrid.serving.served_model import ServedModel
from hybrid.serving.session_cache import SessionCache

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSettings:
    """Limits of an executor.

    Attributes:
        engine: how sessions are opened.
        n_threads: runs at the same time; further ones wait.
        max_waiting: waiting runs; further ones are refused with `Overloaded`.
        session_budget_bytes: memory that opened sessions may hold together.
    """

    engine: EngineSettings = EngineSettings()
    n_threads: int = max(2, (os.cpu_count() or 2) // 2)
    max_waiting: int = 256
    session_budget_bytes: int = 2 << 30


class Computed(NamedTuple):
    """Outputs in the order asked for, seconds waited for a thread and seconds in the engine."""

    outputs: list[np.ndarray]
    queue_s: float
    compute_s: float


class Executor:
    """An async context manager: owns its engine threads, its builds and its sessions until it exits."""

    def __init__(self, settings: ExecutorSettings) -> None:
        self.settings = settings
        self.pool = EnginePool(n_threads=settings.n_threads, max_waiting=settings.max_waiting)
        self._builders = Background("builder", n_threads=2)
        self._group = asyncio.TaskGroup()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.sessions = SessionCache(budget_bytes=settings.session_budget_bytes, tasks=self, builders=self._builders)

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
        """
        return await self.sessions.get_or_open((model.model_digest,), lambda: self._build_whole(model))

    def _build_whole(self, model: ServedModel) -> EngineSession:
        files_of_model(model.path)  # an engine may follow external data out of the model's folder: refused here
        return open_engine(model.path, self.settings.engine, facts_of(model.path))

    async def compute(
        self,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        deadline_s: float | None = None,
    ) -> Computed:
        """Run a session on checked feeds.

        Args:
            feeds: arrays by name; raises before any work when they do not fit.
            outputs: names wanted, all when None.
            deadline_s: instant on the clock of `time.perf_counter`.

        Raises:
            TensorMismatch: the feeds are not what the session takes.
            Overloaded: the queue is full.
            DeadlinePassed: no answer before the deadline.
            EngineFailed: the engine raised on these values.
        """
        session.check(feeds)
        n_bytes = 0
        for array in feeds.values():
            n_bytes += array.nbytes
        if session.runs_inline(n_bytes):
            started_s = perf_counter()
            found = session.run(feeds, outputs)
            compute_s = perf_counter() - started_s
            session.observe_inline(compute_s)
            return Computed(found, 0.0, compute_s)
        job = EngineJob(session, feeds, outputs, deadline_s)
        found = await self.pool.run(job)
        session.observe(job.compute_s, n_bytes)
        return Computed(found, job.queue_s, job.compute_s)
