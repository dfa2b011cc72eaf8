"""One thread a process that raises flags at given times: a timer thread for each run with a deadline would cost more.

Design: starting a thread costs a millisecond on a small board. The watchdog sleeps until the earliest time that it
knows; a later one does not wake it, and one that is taken back is skipped when its time comes.
"""

import os
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from threading import Condition, Thread
from time import monotonic


class Alarm:
    """Something to be done at a time, unless it is taken back before."""

    __slots__ = ("_ring",)

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring: Callable[[], None] | None = ring

    def ring(self) -> None:
        """The time has come."""
        ring, self._ring = self._ring, None
        if ring is not None:
            ring()

    def cancel(self) -> None:
        """Takes it back; without effect once it has rung."""
        self._ring = None


class Watchdog:
    """Rings alarms on a thread of its own, which begins with the first one."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._alarms: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._wakes_s = float("inf")
        self._thread: Thread | None = None

    def after(self, seconds: float, ring: Callable[[], None]) -> Alarm:
        """Rings after so many seconds; what rings must be quick."""
        alarm, at_s = Alarm(ring), monotonic() + seconds
        with self._changed:
            heappush(self._alarms, (at_s, next(self._numbers), alarm))
            if self._thread is None:
                self._thread = Thread(target=self._run, name="hybrid-watchdog", daemon=True)
                self._thread.start()
            elif at_s < self._wakes_s:
                self._changed.notify()
        return alarm

    def _run(self) -> None:
        while True:
            with self._changed:
                now_s = monotonic()
                due = []
                while self._alarms and self._alarms[0][0] <= now_s:
                    due.append(heappop(self._alarms)[2])
                if not due:
                    self._wakes_s = self._alarms[0][0] if self._alarms else float("inf")
                    self._changed.wait(self._wakes_s - now_s if self._alarms else None)
                    self._wakes_s = float("-inf")
            for alarm in due:
                alarm.ring()


_watchdog = Watchdog()


def after(seconds: float, ring: Callable[[], None]) -> Alarm:
    """Rings on the process's watchdog after so many seconds."""
    return _watchdog.after(seconds, ring)


def forget_in_child() -> None:
    """After a fork: the thread stayed with the parent."""
    global _watchdog
    _watchdog = Watchdog()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_in_child)
