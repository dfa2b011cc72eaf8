"""What waits for an engine thread: the most important first, then the most urgent, with those that may run with it.

Design: plain data without locks, threads or a clock, so that every rule can be tested; `EnginePool` owns the lock. A
batch is put together when a thread is free, never before: whoever came meanwhile is in it, whoever left is not.
Priorities are strict, but nobody starves: a job that has waited for `AGING_S` goes before all others.
"""

import heapq
import logging
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from hybrid.serving.engines.job import EngineJob
from hybrid.serving.engines.row_batch import Join, RowBatch, RowSession
from hybrid.serving.engines.session import EngineSession

_log = logging.getLogger("hybrid.serving")

AGING_S: Final = 5.0
"""The longest that a job waits behind more important ones, beside the runs that are being made."""

N_PRIORITIES: Final = 10

CROWD_SEEN: Final = 8
"""A session whose requests waited for one another so often is worth measuring in batches."""


@dataclass(slots=True)
class Work:
    """What one engine thread does next.

    Attributes:
        jobs: run together, in the order of their rows; the first is the most urgent.
        join: how the first `n_shallow` jobs catch up with the others, which begin at a deeper cut; or None.
        late: jobs that cannot be answered in time any more.
        crowded: the session that was now seen to be worth measuring, or None.
        neighbour: a session of the same model at a deeper cut whose requests wait too, where that is worth measuring.
    """

    jobs: list[EngineJob] = field(default_factory=list)
    join: Join | None = None
    n_shallow: int = 0
    late: list[EngineJob] = field(default_factory=list)
    crowded: EngineSession | None = None
    neighbour: EngineSession | None = None

    @property
    def n_rows(self) -> int:
        """Rows of all jobs."""
        return sum(job.n_rows for job in self.jobs)


class RunQueue:
    """Waiting jobs by urgency and by session.

    Attributes:
        n_waiting: jobs that are neither started nor withdrawn.
    """

    def __init__(self) -> None:
        self.n_waiting = 0
        self._orders: list[list[tuple[float, int, EngineJob]]] = [[] for _ in range(N_PRIORITIES)]
        self._arrivals: list[dict[EngineJob, None]] = [{} for _ in range(N_PRIORITIES)]
        self._numbers = count()
        self._waiting: dict[RowSession, dict[EngineJob, None]] = {}
        self._families: dict[object, dict[EngineSession, None]] = {}

    def push(self, job: EngineJob, *, held: bool = False) -> None:
        """A job comes; a held one starts only in company or once it is released."""
        self.n_waiting += 1
        session = job.session
        mates = self._waiting.get(session)
        if mates is None:
            mates = self._waiting[session] = {}
            if session.family is not None:
                self._families.setdefault(session.family, {})[session] = None
        mates[job] = None
        if not held:
            self.release(job)

    def release(self, job: EngineJob) -> None:
        """A held job may start alone from now on."""
        if job.is_waiting:
            heapq.heappush(self._orders[job.priority], (job.due_s, next(self._numbers), job))
            self._arrivals[job.priority][job] = None

    def rows_waiting(self, job: EngineJob) -> int:
        """Rows that could run with this job, its own not among them."""
        mates = self._waiting.get(job.session, {})
        return sum(mate.n_rows for mate in mates if mate.lane == job.lane and mate is not job)

    def take(self, job: EngineJob) -> None:
        """A job waits no longer: it starts, or it was withdrawn."""
        job.is_waiting = False
        self.n_waiting -= 1
        self._arrivals[job.priority].pop(job, None)
        session = job.session
        mates = self._waiting[session]
        del mates[job]
        if not mates:
            del self._waiting[session]
            family = self._families.get(session.family)
            if family is not None:
                family.pop(session, None)
                if not family:
                    del self._families[session.family]

    def pop(self, now_s: float) -> Work:
        """The first job that can still be answered in time, with its company; no jobs where none waits."""
        work = Work()
        while (job := self._first(now_s)) is not None:
            self.take(job)
            order = self._orders[job.priority]
            if order[0][2] is job:
                heapq.heappop(order)  # nothing here keeps its tensors alive
            if not job.can_make_it(now_s, job.session.floor_s(job.feeds)):
                work.late.append(job)
                continue
            work.jobs.append(job)
            try:
                self._join_company(work, now_s)
                self._note_crowd(work)
            except Exception:  # noqa: BLE001 (a fault of ours: this job runs alone, the others wait on)
                _log.exception("engine.no_company")
                self._part(work)
            break
        return work

    def _first(self, now_s: float) -> EngineJob | None:
        """Whose turn it is: who has waited too long, else the most urgent of the most important ones."""
        aged: EngineJob | None = None
        top: EngineJob | None = None
        for order, arrivals in zip(reversed(self._orders), reversed(self._arrivals), strict=True):
            while order and not order[0][2].is_waiting:
                heapq.heappop(order)
            if not order:
                continue
            if top is None:
                top = order[0][2]
                continue
            oldest = next(iter(arrivals))
            if now_s - oldest.submitted_s >= AGING_S and (aged is None or oldest.submitted_s < aged.submitted_s):
                aged = oldest
        return aged or top

    def _part(self, work: Work) -> None:
        mates, work.jobs, work.join = work.jobs[1:], work.jobs[:1], None
        for mate in mates:
            mate.is_waiting = True
            self.push(mate)

    def _join_company(self, work: Work, now_s: float) -> None:
        head = work.jobs[0]
        batch = head.session.batch
        if batch is None or head.lane is None:
            return
        self._add(work, head.session, head.lane, batch, now_s)
        work.n_shallow = len(work.jobs)
        join = self._best_join(work, now_s)
        if join is None:
            return
        deeper = join.deeper.batch
        lane = next((job.lane for job in self._waiting.get(join.deeper, {}) if join.takes(head, job)), None)
        if deeper is not None and lane is not None:
            self._add(work, join.deeper, lane, deeper, now_s, extra_s=join.segment_s(work.n_rows))
        if len(work.jobs) > work.n_shallow:
            work.join = join

    def _add(
        self,
        work: Work,
        session: RowSession,
        lane: object,
        batch: RowBatch,
        now_s: float,
        *,
        extra_s: float = 0.0,
    ) -> None:
        """Take the most urgent jobs of a lane while all deadlines hold and there is room."""
        n_rows = work.n_rows
        mates = [mate for mate in self._waiting.get(session, {}) if mate.lane == lane]
        for mate in sorted(mates, key=_due_s):
            if n_rows + mate.n_rows > batch.max_rows:
                continue
            run_s = extra_s + batch.run_s(n_rows + mate.n_rows)
            if not mate.can_make_it(now_s, run_s):
                continue
            if not all(job.can_make_it(now_s, run_s) for job in work.jobs):
                break
            self.take(mate)
            work.jobs.append(mate)
            n_rows += mate.n_rows

    def _best_join(self, work: Work, now_s: float) -> Join | None:
        """The deeper session whose waiting rows gain most when these rows catch up with them."""
        head = work.jobs[0]
        best, best_gain_s = None, 0.0
        for session in self._families.get(head.session.family, ()):
            join = head.session.joins.get(session)
            if join is None:
                continue
            n_deeper = sum(job.n_rows for job in self._waiting[session] if join.takes(head, job))
            gain_s = join.gain_s(work.n_rows, n_deeper)
            run_s = join.run_s(work.n_rows, n_deeper)
            if gain_s > best_gain_s and all(job.can_make_it(now_s, run_s) for job in work.jobs):
                best, best_gain_s = join, gain_s
        return best

    def _note_crowd(self, work: Work) -> None:
        head = work.jobs[0]
        session = head.session
        if session in self._waiting and session.crowd < CROWD_SEEN:
            session.crowd += 1
            if session.crowd == CROWD_SEEN:
                work.crowded = session
        if session.family is None:
            return
        for other in self._families.get(session.family, ()):
            if other is session or other in session.joins or session.meet(other) % CROWD_SEEN:
                continue
            work.neighbour = other
            return


def _due_s(job: EngineJob) -> float:
    return job.due_s
