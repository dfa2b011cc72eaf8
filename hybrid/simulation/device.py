"""The device as the simulation has it: one engine whose jobs run one after the other, and how fast it is over time."""

from collections import deque
from dataclasses import dataclass, field
from math import inf

import numpy as np

from hybrid.simulation.curve import Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceModel:
    """What the device is like beside the profile of its heads.

    Attributes:
        slowdown: factor on its seconds over time: throttling, and other programs on its cores.
        noise_ratio: deviation of the logarithm of its seconds.
        cancel_s: from the word that a run is not wanted any more until the engine is free (onnxruntime's
            `RunOptions.terminate` was measured at 0.2 to 0.7 ms).
        n_cores: the engine uses one of them; with a second one a race begins at once, beside encoding and sending.
        attempt_s: what a remote attempt takes beside head, encoding and network (threads, messages): a half before its
            bytes leave, a half after the answer came. No oracle pays it.
        attempt_cpu_s: what a remote attempt takes from a run beside it: 0 where another core sends and receives.
    """

    slowdown: Steps = Steps.steady(1.0)
    noise_ratio: float = 0.02
    cancel_s: float = 0.0005
    n_cores: int = 4
    attempt_s: float = 0.0
    attempt_cpu_s: float = 0.0


@dataclass(slots=True, eq=False)
class Job:
    """One run on the engine.

    Attributes:
        seconds: as profiled, times the request's luck; the slowdown of the moment it starts comes to it.
        request: whose run it is.
        kind: what follows when it ends.
        start_s: when it began, None while it waits.
        end_s: when it ends.
    """

    seconds: float
    request: object
    kind: int
    start_s: float | None = None
    end_s: float = 0.0
    dropped: bool = field(default=False)


class Device:
    """An engine that uses every core for one run: runs wait for each other."""

    def __init__(self, model: DeviceModel) -> None:
        self.model = model
        self._waiting: deque[Job] = deque()
        self.running: Job | None = None
        self.busy_s = 0.0
        self._free_s = -inf

    def add(self, job: Job, now_s: float) -> Job | None:
        """Takes a job; returns it when it starts at once, with its end set."""
        if self.running is None:
            return self._start(job, now_s)
        self._waiting.append(job)
        return None

    def finished(self, now_s: float) -> Job | None:
        """The running job has ended; the next one that starts now, if any."""
        assert self.running is not None
        assert self.running.start_s is not None
        self.busy_s += now_s - self.running.start_s
        self.running = None
        return self._next(now_s)

    def drop(self, job: Job, now_s: float) -> tuple[float, Job | None]:
        """Cancels a job; the seconds it has computed in vain, and the next one that starts now, if any."""
        job.dropped = True
        if job is not self.running:
            if job in self._waiting:
                self._waiting.remove(job)
            return 0.0, None
        assert job.start_s is not None
        spent_s = now_s - job.start_s
        self.busy_s += spent_s
        self.running = None
        self._free_s = now_s + self.model.cancel_s
        return spent_s, self._next(now_s)

    @property
    def n_jobs(self) -> int:
        """Jobs that run or wait."""
        return len(self._waiting) + (self.running is not None)

    def _next(self, now_s: float) -> Job | None:
        return self._start(self._waiting.popleft(), now_s) if self._waiting else None

    def _start(self, job: Job, now_s: float) -> Job:
        start_s = max(now_s, self._free_s)
        job.start_s = start_s
        job.end_s = start_s + job.seconds * self.model.slowdown.at(start_s)
        self.running = job
        return job


def throttled(times_s: list[float], factors: list[float], period_s: float) -> Steps:
    """A slowdown that changes at these moments."""
    return Steps(np.array(times_s), np.array(factors), period_s)
