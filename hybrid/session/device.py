"""This device as one session uses it: how many requests are under way, how many compute, runs that can be stopped."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock, Timer
from typing import Any

import onnxruntime

from hybrid.errors import DeadlinePassed
from hybrid.route.engine import EngineRun


class Device:
    """Runs of the whole model here, and the counts that the planner asks for; safe between threads.

    Args:
        run: the local session's run.
        deadline_s: what a run is allowed from the call on, for messages; None for no limit.

    Attributes:
        n_requests: requests of this session that are under way, wherever they compute.
        n_runs: runs and heads that compute here now.
    """

    def __init__(self, run: EngineRun, deadline_s: float | None = None) -> None:
        self._run = run
        self._deadline_s = deadline_s
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
    ) -> list[Any]:
        """The whole model's outputs.

        Args:
            output_names: wanted outputs; None for all.
            feeds: arrays by input name.
            options: ends the run within a millisecond when `terminate` is set; None where nobody will.
            left_s: seconds until the run is ended; None for no limit.

        Raises:
            DeadlinePassed: it was not done in time. Whatever onnxruntime raises.
        """
        with self.computing():
            if left_s is None:
                return self._run(output_names, feeds, options)
            return self._within(left_s, output_names, feeds, options or onnxruntime.RunOptions())

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

    def _within(
        self, left_s: float, output_names: Sequence[str] | None, feeds: Mapping[str, Any], options: Any
    ) -> list[Any]:
        message = f"no answer within deadline_s={self._deadline_s}; allow more, or use a smaller model"
        if left_s <= 0:
            raise DeadlinePassed(message)
        passed: list[bool] = []

        def stop() -> None:
            passed.append(True)
            options.terminate = True

        timer = Timer(left_s, stop)
        timer.daemon = True
        timer.start()
        try:
            return self._run(output_names, feeds, options)
        except Exception as exc:
            if passed:
                raise DeadlinePassed(message) from exc
            raise
        finally:
            timer.cancel()
            if passed:
                options.terminate = False  # the caller may use its options again

    def forked(self) -> None:
        """In a forked child: whoever was under way stayed with the parent."""
        self._lock = Lock()
        self.n_requests = self.n_runs = 0
