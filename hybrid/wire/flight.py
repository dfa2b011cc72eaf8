"""How many unacknowledged bytes a sender keeps on the way, so that buffers in between do not fill.

Design: a delay-based window as in LEDBAT (RFC 6817), on the application's own acknowledgements: TCP's own window fills
whatever buffer the path has, and a CANCEL or PING would wait behind it.
"""

from collections import deque
from typing import Final

from hybrid.wire.limits import FRAME_BYTES

FLOOR_BYTES: Final = 64 * 1024
START_BYTES: Final = 128 * 1024
CEILING_BYTES: Final = 64 * 1024 * 1024
QUEUE_S: Final = 0.15
"""Acknowledgements may come this much later than the fastest seen."""

MEMORY_S: Final = 10.0
"""How long the fastest acknowledgement counts: paths change."""


class Flight:
    """The window of one connection and direction."""

    def __init__(self) -> None:
        self.window_bytes = START_BYTES
        self._sent_bytes = 0
        self._acked_bytes = 0
        self._sent: deque[tuple[int, float, int]] = deque()
        self._fastest_s = float("inf")
        self._fastest_at_s = 0.0
        self._shrunk_at_s = 0.0

    @property
    def room_bytes(self) -> int:
        """How much more may be sent; below 1 nothing."""
        return self.window_bytes - self._sent_bytes + self._acked_bytes

    @property
    def frame_bytes(self) -> int:
        """How long a frame may be: shorter on a slow path, where a long one would hide progress for too long."""
        return min(FRAME_BYTES, self.window_bytes // 8)

    @property
    def unacked_bytes(self) -> int:
        """Bytes on the way."""
        return self._sent_bytes - self._acked_bytes

    def sent(self, n_bytes: int, now_s: float) -> None:
        """Counts data handed to the socket."""
        self._sent_bytes += n_bytes
        self._sent.append((self._sent_bytes, now_s, self.unacked_bytes))

    def dropped(self, n_bytes: int) -> None:
        """Counts bytes that nobody will acknowledge any more: their stream is over."""
        self._settle(n_bytes)

    def acked(self, n_bytes: int, now_s: float) -> None:
        """Counts an acknowledgement and adapts the window to its delay."""
        passed = self._settle(n_bytes)
        if passed is None:
            return
        _, sent_s, ahead_bytes = passed
        delay_s = now_s - sent_s
        if delay_s < self._fastest_s or now_s - self._fastest_at_s > MEMORY_S:
            self._fastest_s, self._fastest_at_s = delay_s, now_s
        room_ratio = 1 - (delay_s - self._fastest_s) / QUEUE_S
        if room_ratio >= 0 and 2 * ahead_bytes < self.window_bytes:
            return  # the window was not what held us back: nothing was learnt about it
        if room_ratio >= 0:
            self.window_bytes = min(CEILING_BYTES, self.window_bytes + int(n_bytes * room_ratio))
        elif now_s - self._shrunk_at_s > delay_s:  # once a trip: what is on the way was sent under the old window
            # The path drained `ahead_bytes` in `delay_s`: so much would it drain in the time that is wanted.
            wanted_bytes = int(ahead_bytes * (self._fastest_s + QUEUE_S / 2) / delay_s)
            self.window_bytes = max(FLOOR_BYTES, min(self.window_bytes, wanted_bytes))
            self._shrunk_at_s = now_s

    def _settle(self, n_bytes: int) -> tuple[int, float, int] | None:
        """Moves the acknowledged mark; the last piece that it passed: its mark, when it went, what was on the way."""
        self._acked_bytes += n_bytes
        passed: tuple[int, float, int] | None = None
        while self._sent and self._sent[0][0] <= self._acked_bytes:
            passed = self._sent.popleft()
        return passed
