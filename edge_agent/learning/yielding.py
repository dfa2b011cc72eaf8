"""Training stands still while requests are answered: what the training thread asks between its small steps.

Design: requests tell it when they come and when they are answered; nothing is asked of the engine. A run of the engine
for features, which may take long, is ended from outside: it is done again later.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from hybrid.errors import Cancelled

IDLE_S: Final = 2.0
_LOOK_S: Final = 0.25


class Yielding:
    """Between the loop, on which requests come and go, and the one thread that trains.

    Args:
        idle_s: how long nobody must have asked before training goes on.
        now_s: a clock that only runs forward.

    Attributes:
        n_stood: how often training stood still.
        longest_s: the longest time from a request's coming until training stood still.
        is_wanted: whether anything may be trained at all; asked on the loop.
    """

    def __init__(self, *, idle_s: float = IDLE_S, now_s: Callable[[], float] = time.monotonic) -> None:
        self._idle_s, self._now_s = idle_s, now_s
        self.is_wanted: Callable[[], bool] = lambda: True
        self._n_active = 0
        self._came_s: float | None = None
        self._last_s = float("-inf")
        self._over = threading.Event()
        self._over.set()
        self._run: Any = None
        self._lock = threading.Lock()
        self.n_stood = 0
        self.longest_s = 0.0

    # On the loop.

    def asked(self, comes: bool) -> None:  # noqa: FBT001 (two events, one listener)
        """A request comes, or is over."""
        if comes:
            self.came()
        else:
            self.went()

    def came(self) -> None:
        """A request begins."""
        now_s = self._now_s()
        if self.is_quiet:
            self._came_s = now_s
        self._n_active += 1
        self._last_s = now_s
        run = self._run
        if run is not None:
            run.terminate = True

    def went(self) -> None:
        """It was answered, or failed."""
        self._n_active -= 1
        self._last_s = self._now_s()

    def begin(self) -> None:
        """Training may begin, where it is wanted by now; of a request that came before nothing is to be told."""
        self._came_s = None
        if self.is_wanted():
            self._over.clear()
        else:
            self._over.set()

    def give_up(self) -> None:
        """Whatever trains now ends within a small step."""
        self._over.set()
        run = self._run
        if run is not None:
            run.terminate = True

    @property
    def is_quiet(self) -> bool:
        """Whether nobody asks, and did not within the last seconds."""
        return self._n_active == 0 and self._now_s() - self._last_s >= self._idle_s

    # On the training thread.

    def between(self) -> None:
        """Return at once while nobody asks; else stand still until nobody does.

        Raises:
            Cancelled: the task was given up.
        """
        if self._over.is_set():
            raise Cancelled("the task was given up")
        if self.is_quiet:
            return
        self.n_stood += 1
        came_s, self._came_s = self._came_s, None
        if came_s is not None:
            self.longest_s = max(self.longest_s, self._now_s() - came_s)
        while not self.is_quiet:
            left_s = self._idle_s - (self._now_s() - self._last_s)
            if self._over.wait(_LOOK_S if self._n_active else max(0.01, left_s)):
                raise Cancelled("the task was given up")

    @contextmanager
    def ending(self, options: Any) -> Iterator[None]:
        """While the block runs the engine with these `onnxruntime.RunOptions`, a request that comes ends that run."""
        with self._lock:
            self._run = options
            if not self.is_quiet or self._over.is_set():
                options.terminate = True
        try:
            yield
        finally:
            self._run = None
