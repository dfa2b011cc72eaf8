"""The uplink budget of a session: a token bucket of bytes."""

from threading import Lock

BURST_S = 10.0
"""The bucket holds what this many seconds allow, so that rare large requests fit under a small mean."""


class UplinkBudget:
    """How many bytes may still go up under a mean rate.

    Args:
        bytes_per_s: the mean rate, above 0.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._left_bytes = bytes_per_s * BURST_S
        self._at_s: float | None = None
        self._lock = Lock()

    def left_bytes(self, now_s: float) -> float:
        """Bytes that may go up now."""
        with self._lock:
            return self._refill(now_s)

    def spend(self, n_bytes: int, now_s: float) -> None:
        """Takes what was sent; the bucket may go below zero, later requests wait it out."""
        with self._lock:
            self._left_bytes = self._refill(now_s) - n_bytes

    def _refill(self, now_s: float) -> float:
        if self._at_s is not None:
            earned = (now_s - self._at_s) * self._bytes_per_s
            self._left_bytes = min(self._left_bytes + earned, self._bytes_per_s * BURST_S)
        self._at_s = now_s
        return self._left_bytes

    def forked(self) -> None:
        """In a forked child: whoever held the lock stayed with the parent."""
        self._lock = Lock()
