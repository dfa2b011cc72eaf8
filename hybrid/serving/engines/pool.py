"""The threads that run engines: a bounded queue in front, batches where they pay, cancellation that ends a running run.

Design: plain threads that take a token from a `SimpleQueue` and then the most urgent work from a `RunQueue`, instead of
`ThreadPoolExecutor`: a queued job must be dropped with its tensors when its caller leaves, and the futures of the
standard pool cost as much as the hop itself.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, Thread
from time import perf_counter
from typing import Final

import numpy as np
import onnxruntime as ort

from hybrid.errors import EngineFailed, HybridError, Overloaded
from hybrid.serving.engines.job import EngineJob, too_late
from hybrid.serving.engines.row_batch import RowBatch, RowSession, stacked, unstacked
from hybrid.serving.engines.run_queue import RunQueue, Work
from hybrid.serving.engines.session import EngineSession

Crowded = Callable[[EngineSession, EngineSession | None, Mapping[str, np.ndarray]], None]
"""Told on an engine thread: requests of this session wait for one another, or beside a deeper tail's; its feeds."""

_MEAN_SHARE: Final = 0.05
_log = logging.getLogger("hybrid.serving")


class EnginePool:
    """A fixed number of engine threads behind a bounded queue.

    Owns its threads; `close` ends them after the jobs that were submitted before.

    Attributes:
        n_running: jobs inside the engine.
        n_late: jobs that were dropped because their deadline had passed or could not be kept.
        rows: how many engine runs had so many rows of several requests together; 1: one request by itself.
        n_joined: runs in which rows of a shallower cut caught up with those of a deeper one.
        on_crowd: see `Crowded`; None where nobody asks.
    """

    def __init__(self, *, n_threads: int, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.n_threads = n_threads
        self.n_running = 0
        self.n_late = 0
        self.n_joined = 0
        self.rows: dict[int, int] = {}
        self.on_crowd: Crowded | None = None
        self._mean_run_s = 0.01
        self._began_s: dict[int, float] = {}
        self._lock = Lock()
        self._queue = RunQueue()
        self._n_busy = 0
        self._tokens: SimpleQueue[bool] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"engine-{i}", daemon=True) for i in range(n_threads)]
        for thread in self._threads:
            thread.start()

    @property
    def n_waiting(self) -> int:
        """Jobs submitted and not started; at `max_waiting` further ones are refused."""
        return self._queue.n_waiting

    @property
    def expected_wait_s(self) -> float:
        """Seconds that a job submitted now is expected to wait for a thread."""
        return self.n_waiting * self._mean_run_s / self.n_threads

    @property
    def longest_s(self) -> float:
        """Seconds that the oldest of the present runs has taken so far; 0 where nothing runs."""
        began_s = list(self._began_s.values())
        return perf_counter() - min(began_s) if began_s else 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return self.n_waiting == 0 and self.n_running == 0

    async def run(self, job: EngineJob) -> list[np.ndarray]:
        """The job's outputs; cancelling the caller drops a waiting job and terminates a running one.

        Raises:
            Overloaded: the queue is full.
            DeadlinePassed: the deadline came before the result, or is too near for the run; the work is dropped.
            EngineFailed: the engine raised.
        """
        floor_s = 0.0 if job.deadline_s is None else job.session.floor_s(job.feeds)
        if not job.can_make_it(perf_counter(), floor_s):
            self.n_late += 1
            raise too_late()
        hold_s = self._submit(job)
        hold = None if hold_s == 0.0 else job.loop.call_later(hold_s, self._release, job)
        timer = None
        if job.deadline_s is not None:
            left_s = job.deadline_s - floor_s - perf_counter()
            timer = job.loop.call_later(max(0.0, left_s), self._expire_waiting, job)
        try:
            return await job.future
        finally:
            if timer is not None:
                timer.cancel()
            if hold is not None:
                hold.cancel()
            if not job.future.done() or job.future.cancelled():
                self._withdraw(job)

    def close(self) -> None:
        """End the threads once the jobs before this call are done."""
        for _ in self._threads:
            self._tokens.put(False)
        for thread in self._threads:
            thread.join()

    def _submit(self, job: EngineJob) -> float:
        """Queue the job; the seconds that it is to be held for company."""
        with self._lock:
            if self.n_waiting >= self.max_waiting:
                raise Overloaded(
                    f"{self.n_waiting} requests wait for the engine, the limit is {self.max_waiting}; try again later",
                    retry_after_s=round(max(self.expected_wait_s, 0.05), 3),
                )
            hold_s = self._hold_s(job)
            self._queue.push(job, held=hold_s > 0.0)
            job.session.n_users += 1
        if hold_s == 0.0:
            self._tokens.put(True)
        return hold_s

    def _hold_s(self, job: EngineJob) -> float:
        """How long a job waits for company though a thread is free; its deadline and its mates' bound it."""
        batch = job.session.batch
        if batch is None or job.lane is None or batch.max_hold_s == 0.0:
            return 0.0
        batch.came(job.submitted_s)
        if self._n_busy >= self.n_threads:
            return 0.0
        n_rows = job.n_rows + self._queue.rows_waiting(job)
        hold_s = batch.hold_s(n_rows, self.n_threads)
        if job.deadline_s is None or hold_s == 0.0:
            return hold_s
        spare_s = job.deadline_s - job.submitted_s - 2.0 * batch.run_s(batch.max_rows)
        return max(0.0, min(hold_s, 0.5 * spare_s))

    def _release(self, job: EngineJob) -> None:
        with self._lock:
            batch = job.session.batch
            if batch is not None:
                batch.held(met=job.n_together > 1 or self._queue.rows_waiting(job) > 0)
            if not job.is_waiting:
                return
            self._queue.release(job)
        self._tokens.put(True)

    def _expire_waiting(self, job: EngineJob) -> None:
        """A job that still waits cannot make it any more; one that runs may take until its deadline."""
        if job.is_waiting or job.deadline_s is None:
            self._expire(job)
        else:
            job.loop.call_later(max(0.0, job.deadline_s - perf_counter()), self._expire, job)

    def _expire(self, job: EngineJob) -> None:
        if not job.future.done():
            self.n_late += 1
            job.future.set_exception(too_late())
            self._withdraw(job)

    def _withdraw(self, job: EngineJob) -> None:
        with self._lock:
            job.feeds = None
            if job.is_waiting:
                self._queue.take(job)
                job.session.n_users -= 1
            elif job.run is not None:
                job.run.leave()

    # -- on the engine threads --------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._tokens.get():
            with self._lock:
                work = self._queue.pop(perf_counter())
                self.n_late += len(work.late)
                self.n_running += len(work.jobs)
                self._n_busy += bool(work.jobs)
                if len(work.jobs) > 1:
                    for number, job in enumerate(work.jobs):
                        job.n_together, job.leads = work.n_rows, number == 0
                running = Running(work)
            for job in work.late:
                self._settle(job, None, too_late())
            if work.jobs:
                self._run(work, running)
            # A blocked worker must not keep the last request's tensors alive.
            del work, running

    def _run(self, work: Work, running: "Running") -> None:
        started_s = perf_counter()
        for job in work.jobs:
            job.queue_s = started_s - job.submitted_s
        self._began_s[id(work)] = started_s
        found = running.outputs()
        compute_s = perf_counter() - started_s
        del self._began_s[id(work)]
        n_rows = work.n_rows
        with self._lock:
            self.n_running -= len(work.jobs)
            self._n_busy -= 1
            self._mean_run_s += _MEAN_SHARE * (compute_s / len(work.jobs) - self._mean_run_s)
            self.rows[n_rows] = self.rows.get(n_rows, 0) + 1
            self.n_joined += work.join is not None
            running.ended()
        if (work.crowded is not None or work.neighbour is not None) and found[0][1] is None:
            self._tell(work, running)
        for job, (outputs, error) in zip(work.jobs, found, strict=True):
            job.compute_s = compute_s
            self._settle(job, outputs, error, started=True)

    def _tell(self, work: Work, running: "Running") -> None:
        if self.on_crowd is None:
            return
        try:
            self.on_crowd(work.jobs[0].session, work.neighbour, running.feeds_of_first)
        except Exception:  # noqa: BLE001 (whoever listens must not keep these jobs from their answers)
            _log.exception("engine.crowd_untold")

    def _settle(
        self, job: EngineJob, outputs: list[np.ndarray] | None, error: HybridError | None, *, started: bool = False
    ) -> None:
        if not started:
            with self._lock:
                job.session.n_users -= 1
        with suppress(RuntimeError):  # the loop closed while the engine ran: nobody waits any more
            job.loop.call_soon_threadsafe(job.settle, outputs, error)


Found = tuple[list[np.ndarray] | None, HybridError | None]


class Running:
    """The run of one piece of work; ended early once every job of it was withdrawn.

    Args:
        work: made under the pool's lock, so that nobody withdraws meanwhile.

    Attributes:
        feeds_of_first: the inputs of the most urgent job.
    """

    __slots__ = (
        "_batch", "_companions", "_feeds", "_jobs", "_join", "_n_left", "_n_shallow", "_options", "feeds_of_first",
    )  # fmt: skip

    def __init__(self, work: Work) -> None:
        self._jobs = work.jobs
        self._join = work.join
        self._n_shallow = work.n_shallow
        self._n_left = len(work.jobs)
        self._options = ort.RunOptions()
        if len(work.jobs) == 1 and work.jobs[0].options is not None:
            self._options = work.jobs[0].options
        self._feeds = [job.feeds or {} for job in work.jobs]
        self.feeds_of_first: Mapping[str, np.ndarray] = self._feeds[0] if self._feeds else {}
        for job in work.jobs:
            job.run = self
        self._batch: RowBatch | None = None
        self._companions: list[RowSession] = []
        if len(work.jobs) > 1:
            asked: RowSession = work.jobs[0].session if work.join is None else work.join.deeper
            self._batch = asked.batch
            self._companions = [asked] if self._batch is None else [self._batch.session]
            if work.join is not None:
                self._companions.append(work.join.segment)
        for session in self._companions:
            session.n_users += 1
            session.n_runs += 1

    def ended(self) -> None:
        """The run is over; its sessions may leave memory. Needs the pool's lock."""
        for session in self._companions:
            session.n_users -= 1
        for job in self._jobs:
            job.session.n_users -= 1

    def leave(self) -> None:
        """One job of this run was withdrawn; the engine stops when it was the last. Needs the pool's lock."""
        self._n_left -= 1
        if self._n_left <= 0:
            self._options.terminate = True

    def outputs(self) -> list[Found]:
        """Each job's outputs or error. What fails together is run alone, so that only the one at fault fails."""
        jobs = self._jobs
        if len(jobs) > 1:
            try:
                return [(found, None) for found in self._together()]
            except Exception as exc:  # noqa: BLE001 (whatever it is, each may be well alone)
                if self._n_left <= 0:
                    return [(None, too_late())] * len(jobs)
                if not isinstance(exc, HybridError):
                    _log.exception("engine.batch_failed n_jobs=%d", len(jobs))
                for job in jobs:
                    job.n_together, job.leads = job.n_rows, True
        return [self._alone(job, feeds) for job, feeds in zip(jobs, self._feeds, strict=True)]

    def _alone(self, job: EngineJob, feeds: Mapping[str, np.ndarray]) -> Found:
        try:
            return job.session.run(feeds, job.outputs, self._options), None
        except HybridError as exc:
            return None, exc
        except Exception as exc:  # noqa: BLE001 (a fault of ours: one failed request, and the thread goes on)
            _log.exception("engine.failed")
            return None, EngineFailed(f"the gateway failed while it computed ({type(exc).__name__}); its log says why")

    def _together(self) -> list[list[np.ndarray]]:
        head, feeds = self._jobs[0], self._feeds
        if self._batch is None:
            raise EngineFailed("the session for batches left memory; ask again")
        if self._join is not None:
            n_shallow = self._n_shallow
            feeds = [self._join.caught_up(stacked(feeds[:n_shallow]), self._options), *feeds[n_shallow:]]
        outputs = self._batch.session.run(stacked(feeds), head.outputs or head.session.output_names, self._options)
        return unstacked(outputs, [job.n_rows for job in self._jobs])
