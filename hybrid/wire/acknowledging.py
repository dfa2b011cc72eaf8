"""When the receiver acknowledges: not every frame, never so late that the sender takes it for a stall."""

from hybrid.wire.limits import ACK_BYTES, ACK_S
from hybrid.wire.sending import Sending


class Acknowledging:
    """What has been received and not been acknowledged yet, over all streams of a connection.

    Args:
        sending: takes the CREDITs.
        now_s: monotonic time.
    """

    def __init__(self, sending: Sending, now_s: float) -> None:
        self._sending = sending
        self._due: dict[int, tuple[int, int]] = {}
        self._n_bytes = 0
        self._at_s = now_s

    def note(self, stream: int, credit: tuple[int, int], n_bytes: int, now_s: float, *, is_due: bool) -> None:
        """So many bytes came on a stream, of which now `credit` may be said; CREDITs are queued when they are due."""
        self._due[stream] = credit
        self._n_bytes += n_bytes
        if is_due or self._n_bytes >= ACK_BYTES or now_s - self._at_s >= ACK_S:
            for number, pair in self._due.items():
                self._sending.credit(number, *pair)
            self._due.clear()
            self._n_bytes = 0
            self._at_s = now_s

    def forget(self, stream: int) -> None:
        """The stream is over."""
        self._due.pop(stream, None)
