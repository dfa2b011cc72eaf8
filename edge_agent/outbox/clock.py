"""Time as the outbox counts it: only forward, over restarts, without believing any calendar.

Design: a box's calendar may stand at 1970 or jump; how long a thing has waited must not follow it. The clock goes on
from the newest item of the store, so that what waited stays in its order; the time for which the box was off is not
known and not counted: ages are lower bounds then, and are told as unknown.
"""

from collections.abc import Callable


class ForwardClock:
    """Seconds of this outbox's life."""

    def __init__(self, loop_s: Callable[[], float]) -> None:
        self._loop_s = loop_s
        self._base_s = -loop_s()

    def go_on_from(self, last_s: float) -> None:
        """The store's newest item was made then."""
        self._base_s = max(self._base_s, last_s - self._loop_s())

    def now_s(self) -> float:
        """Now."""
        return self._base_s + self._loop_s()
