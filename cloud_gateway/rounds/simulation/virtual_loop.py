"""An event loop on virtual time: to wait is to move the clock, and what would run in a thread runs at once."""

import asyncio
from collections.abc import Callable
from typing import Any


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs programs of hours in as long as their computing takes; nothing but their seed decides what happens.

    Attributes:
        now_s: seconds since it began.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self._selector = _Clock(self)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Virtual seconds."""
        return self.now_s

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":  # type: ignore[override]  # noqa: ARG002
        """The job runs here and now, and takes no virtual time."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as exc:  # noqa: BLE001 (as a thread hands on whatever its job raised)
            future.set_exception(exc)
        return future

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody else is there to wake it."""


class _Clock:
    """In the place of a selector."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[object]:
        if timeout is None:
            raise RuntimeError("nothing is left that could happen, and the simulation is not over")
        self._loop.now_s += max(0.0, timeout)
        return []

    def close(self) -> None:
        """Nothing was opened."""
