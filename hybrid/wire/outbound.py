"""A message on its way out: its buffers, cut into frames as far as the peer's credit reaches."""

from hybrid.errors import BadFrame
from hybrid.wire.frames import END, Kind, head
from hybrid.wire.message import Buffer, EncodedMessage


class Outbound:
    """One message on its way out.

    Attributes:
        n_bytes: all bytes, prefix and header included.
        sent_bytes: handed out so far.
        acked_bytes: what the peer says it has.
        acked_s: when it said so last.
        limit_bytes: what the peer allows in all.
    """

    __slots__ = ("_at", "_index", "_views", "acked_bytes", "acked_s", "limit_bytes", "n_bytes", "sent_bytes", "stream")

    def __init__(self, stream: int, message: EncodedMessage, initial_credit_bytes: int) -> None:
        self.stream = stream
        first = len(message.header).to_bytes(4, "little") + message.header
        self._views = [memoryview(buffer) for buffer in (first, *message.buffers) if len(buffer)]
        self._index = 0
        self._at = 0
        self.n_bytes = sum(map(len, self._views))
        self.sent_bytes = 0
        self.acked_bytes = 0
        self.acked_s = 0.0
        self.limit_bytes = initial_credit_bytes

    @property
    def is_done(self) -> bool:
        """Whether all is handed out."""
        return self.sent_bytes == self.n_bytes

    @property
    def can_send(self) -> bool:
        """Whether there is data and credit."""
        return self.sent_bytes < min(self.n_bytes, self.limit_bytes)

    def credit(self, received_bytes: int, limit_bytes: int) -> int:
        """Takes a CREDIT; how many bytes it newly acknowledges.

        Raises:
            BadFrame: it acknowledges what was never sent.
        """
        if received_bytes > self.sent_bytes:
            raise BadFrame(f"{received_bytes} bytes acknowledged on stream {self.stream}, {self.sent_bytes} were sent")
        newly = max(0, received_bytes - self.acked_bytes)
        self.acked_bytes += newly
        self.limit_bytes = max(self.limit_bytes, limit_bytes)
        return newly

    def next_frame(self, most_bytes: int, parts: list[Buffer]) -> int:
        """Appends the next DATA frame, its payload at most so long; the payload's size. `can_send` must hold."""
        size = min(most_bytes, self.n_bytes - self.sent_bytes, self.limit_bytes - self.sent_bytes)
        self.sent_bytes += size
        parts.append(head(Kind.DATA, self.stream, size, END if self.sent_bytes == self.n_bytes else 0))
        left = size
        while left:
            view = self._views[self._index]
            stop = self._at + left
            if stop < len(view):
                parts.append(view[self._at : stop])
                self._at = stop
                break
            parts.append(view[self._at :])
            left -= len(view) - self._at
            self._index += 1
            self._at = 0
        return size
