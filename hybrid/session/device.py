"""This device as one session uses it: how many requests are under way, how many compute, runs that can be stopped."""

import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import onnxruntime

from devices import pace
from hybrid.errors import DeadlinePassed
from hybrid.route.engine import EngineRun
from hybrid.session.watchdog import after

if TYPE_CHECKING:  # a program without a loop never pays for it
    from concurrent.futures import ThreadPoolExecutor


Result = TypeVar("Result")


class Device:
    """Runs of the whole model here, and the counts that the planner asks for; safe between threads.

    Args:
        run: the local session's run.
        deadline_s: what a run is allowed from the call on, for messages; None for no limit.
        n_threads: threads of one run; 0 where the engine takes all cores.

    Attributes:
        n_requests: requests of this session that are under way, wherever they compute.
        n_runs: runs and heads that compute here now.
    """

    def __init__(self, run: EngineRun, deadline_s: float | None = None, n_threads: int = 0) -> None:
        self._run = run
        self._deadline_s = deadline_s
        self._n_threads = n_threads
        self._lanes: ThreadPoolExecutor | None = None
        self._lock = Lock()
        self.n_requests = 0
        self.n_runs = 0

    def begin(self) -> None:
        """A request came."""
        with self._lock:
            self.n_requests += 1

    def end(self) -> None:
        """A request was answered."""
        with self._lock:
            self.n_requests -= 1

    def compute(
        self,
        output_names: Sequence[str] | None,
        feeds: Mapping[str, Any],
        options: onnxruntime.RunOptions | None,
        left_s: float | None = None,
        *,
        run: EngineRun | None = None,
    ) -> list[Any]:
        """The whole model's outputs.

        Args:
            output_names: wanted outputs; None for all.
            feeds: arrays by input name.
            options: ends the run within a millisecond when `terminate` is set; None where nobody will.
            left_s: seconds until the run is ended; None for no limit.
            run: of a local variant, in place of the model's own.

        Raises:
            DeadlinePassed: it was not done in time. Whatever onnxruntime raises.
        """
        with self.computing():
            if left_s is None:
                return (run or self._run)(output_names, feeds, options)
            call = partial(run or self._run, output_names, feeds)
            return self._within(left_s, call, options or onnxruntime.RunOptions())

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Counts what computes here inside the block: a run, or a head."""
        with self._lock:
            self.n_runs += 1
        try:
            yield
        finally:
            with self._lock:
                self.n_runs -= 1

    def _within(self, left_s: float, call: Callable[[Any], list[Any]], options: Any) -> list[Any]:
        message = f"no answer within deadline_s={self._deadline_s}; allow more, or use a smaller model"
        if left_s <= 0:
            raise DeadlinePassed(message)
        passed: list[bool] = []

        def stop() -> None:
            passed.append(True)
            options.terminate = True

        alarm = after(left_s, stop)
        try:
            return call(options)
        except Exception as exc:
            if passed:
                raise DeadlinePassed(message) from exc
            raise
        finally:
            alarm.cancel()
            if passed:
                options.terminate = False  # the caller may use its options again

    async def in_turn(self, work: Callable[[], Result]) -> Result:
        """Does a request's part on this device when its turn comes: first come, first served.

        No more run at a time than the cores carry, so that the first of many requests departs early, and its upload
        overlaps with the next one's head.
        """
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if self._lanes is None:
            with self._lock:
                self._lanes = self._lanes or ThreadPoolExecutor(self._n_lanes(), thread_name_prefix="hybrid-head")
        call = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._lanes, call, work)

    def _n_lanes(self) -> int:
        """Runs that the cores carry side by side; a device that is paced has one core."""
        if pace.factor() > 1.0 or self._n_threads == 0:
            return 1
        from devices.machine import usable_cores

        return max(1, int(usable_cores()) // self._n_threads)

    def forked(self) -> None:
        """In a forked child: whoever was under way stayed with the parent."""
        self._lanes = None
        self._lock = Lock()
        self.n_requests = self.n_runs = 0
