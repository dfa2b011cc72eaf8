"""The threads that run engines: a bounded queue in front, cancellation that ends even a running run.

Design: one `SimpleQueue` and plain threads instead of `ThreadPoolExecutor`, because a queued job must be dropped with
its tensors when its caller leaves, and because the futures of the standard pool cost as much as the hop itself.
"""

import asyncio
from collections.abc import Mapping, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from time import perf_counter

import numpy as np
import onnxruntime as ort

from hybrid.errors import DeadlinePassed, EngineFailed, HybridError, Overloaded
from hybrid.serving.engine_session import EngineSession


class EngineJob:
    """One run: what to compute, for whom, until when (`deadline_s`, on the clock of `perf_counter`).

    Attributes:
        queue_s: seconds between being submitted and being started.
        compute_s: seconds inside the engine.
    """

    __slots__ = (
        "compute_s", "deadline_s", "feeds", "future", "loop", "options", "outputs", "queue_s", "session",
        "started", "submitted_s",
    )  # fmt: skip

    def __init__(
        self,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        outputs: Sequence[str] | None,
        deadline_s: float | None,
    ) -> None:
        self.session = session
        self.feeds: Mapping[str, np.ndarray] | None = feeds
        self.outputs = outputs
        self.deadline_s = deadline_s
        self.submitted_s = perf_counter()
        self.queue_s = 0.0
        self.compute_s = 0.0
        self.options = ort.RunOptions()
        self.started = False
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[np.ndarray]] = self.loop.create_future()

    def settle(self, outputs: list[np.ndarray] | None, error: HybridError | None) -> None:
        """Give the result to the waiting task, on the loop; nothing happens when it left already."""
        if self.future.done():
            return
        if outputs is None:
            self.future.set_exception(error or EngineFailed("the engine gave no outputs"))
        else:
            self.future.set_result(outputs)


class EnginePool:
    """A fixed number of engine threads behind a bounded queue.

    Owns its threads; `close` ends them after the jobs that were submitted before.

    Attributes:
        n_waiting: jobs submitted and not started; at `max_waiting` further ones are refused.
        n_running: jobs inside the engine.
    """

    def __init__(self, *, n_threads: int, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.n_threads = n_threads
        self.n_waiting = 0
        self.n_running = 0
        self._mean_run_s = 0.01
        self._lock = Lock()
        self._jobs: SimpleQueue[EngineJob | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"engine-{i}", daemon=True) for i in range(n_threads)]
        for thread in self._threads:
            thread.start()

    @property
    def expected_wait_s(self) -> float:
        """Seconds that a job submitted now is expected to wait for a thread."""
        return self.n_waiting * self._mean_run_s / self.n_threads

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self.n_waiting == 0 and self.n_running == 0

    async def run(self, job: EngineJob) -> list[np.ndarray]:
        """The job's outputs; cancelling the caller drops a waiting job and terminates a running one.

        Raises:
            Overloaded: the queue is full.
            DeadlinePassed: the deadline came before the result; the work is dropped or terminated.
            EngineFailed: the engine raised.
        """
        with self._lock:
            if self.n_waiting >= self.max_waiting:
                raise Overloaded(
                    f"{self.n_waiting} requests wait for the engine, the limit is {self.max_waiting}; try again later",
                    retry_after_s=round(max(self.expected_wait_s, 0.05), 3),
                )
            self.n_waiting += 1
        self._jobs.put(job)
        timer = None
        if job.deadline_s is not None:
            timer = job.loop.call_later(max(0.0, job.deadline_s - perf_counter()), self._expire, job)
        try:
            return await job.future
        finally:
            if timer is not None:
                timer.cancel()
            if not job.future.done() or job.future.cancelled():
                self._withdraw(job)

    def close(self) -> None:
        """End the threads once the jobs before this call are done."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _expire(self, job: EngineJob) -> None:
        if not job.future.done():
            job.future.set_exception(_too_late())
            self._withdraw(job)

    def _withdraw(self, job: EngineJob) -> None:
        with self._lock:
            job.options.terminate = True
            job.feeds = None
            if not job.started:
                job.started = True
                self.n_waiting -= 1

    def _start(self, job: EngineJob) -> Mapping[str, np.ndarray] | None:
        with self._lock:
            if job.started:  # withdrawn while it waited
                return None
            job.started = True
            self.n_waiting -= 1
            self.n_running += 1
            return job.feeds

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            feeds = self._start(job)
            if feeds is None:
                continue
            outputs: list[np.ndarray] | None = None
            error: HybridError | None = None
            started_s = perf_counter()
            job.queue_s = started_s - job.submitted_s
            if job.deadline_s is not None and started_s >= job.deadline_s:
                error = _too_late()
            else:
                try:
                    outputs = job.session.run(feeds, job.outputs, job.options)
                except HybridError as exc:
                    error = exc
            job.compute_s = perf_counter() - started_s
            with self._lock:
                self.n_running -= 1
                self._mean_run_s += 0.05 * (job.compute_s - self._mean_run_s)
            try:
                job.loop.call_soon_threadsafe(job.settle, outputs, error)
            except RuntimeError:  # the loop closed while the engine ran: nobody waits any more
                continue
            finally:
                # A blocked worker must not keep the last request's tensors alive.
                del job, feeds, outputs, error


def _too_late() -> DeadlinePassed:
    return DeadlinePassed("the deadline passed before the engine could answer; allow more time or try again later")
