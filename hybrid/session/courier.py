"""The thread of a session that encodes and sends what the device races: the calling thread computes meanwhile.

Design: one thread, made at the first errand, and errands in their turn. Nobody waits for it: whoever handed an errand
over computes, and takes it back when done first; such an errand is skipped when its turn comes. So a courier that is
still busy with an encoding that lost costs the next request a late departure, never its answer, and no more errands
wait than there are requests under way. The idle thread knows nothing of the session, so that the collector can end it.
"""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread, current_thread

Errand = Callable[[], None]


class Courier:
    """Does errands one after the other, on a thread of its own."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._errands: SimpleQueue[Errand | None] = SimpleQueue()
        self._thread: Thread | None = None
        self._is_closed = False

    def carry(self, errand: Errand) -> bool:
        """Does the errand soon, which must not raise; False when it is closed, and will not."""
        with self._lock:
            if self._is_closed:
                return False
            if self._thread is None:
                self._thread = Thread(target=_work, args=(self._errands,), name="hybrid-courier", daemon=True)
                self._thread.start()
            self._errands.put(errand)
        return True

    def close(self, wait_s: float) -> None:
        """Ends the thread after what was handed over before; waits at most this long for it."""
        with self._lock:
            self._is_closed = True
            thread, self._thread = self._thread, None
        if thread is not None:
            self._errands.put(None)
            if thread is not current_thread():
                thread.join(wait_s)

    def forked(self) -> None:
        """In a forked child: the thread stayed with the parent."""
        self._lock = Lock()
        self._errands = SimpleQueue()
        self._thread = None


def _work(errands: "SimpleQueue[Errand | None]") -> None:
    while (errand := errands.get()) is not None:
        errand()
        del errand
