"""What one side of a channel accepts: sizes, credit and streams."""

from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 64 * 1024
"""No message header is longer."""

FRAME_BYTES: Final = 16 * 1024
"""No frame carries more payload."""

CONTROL_BYTES: Final = 4 * 1024
"""No hello, error or goaway is longer."""

MAX_RANK: Final = 32
"""No tensor has more dimensions."""

ACK_BYTES: Final = 32 * 1024
"""The receiver acknowledges at least this often, counting all streams together."""

ACK_S: Final = 0.1
"""… and at the first frame after so long, for links on which 32 KiB take their time."""

QUIET_BYTES: Final = 4 * 1024
"""With no more than this on its way, a ping measures the round trip and not our own queue."""

BACKLOG_BYTES: Final = 64 * 1024
"""Control frames that may wait for a peer that does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one side accepts from the other.

    Attributes:
        message_bytes: largest body, as sent and as decoded.
        unfinished_bytes: memory for bodies that are still arriving, per connection; at least `message_bytes` is used.
        streams: requests in flight on one connection.
        initial_credit_bytes: what a stream may send before it is granted more; a header beyond it could not arrive.
    """

    message_bytes: int = 64 * 1024 * 1024
    unfinished_bytes: int = 64 * 1024 * 1024
    streams: int = 64
    initial_credit_bytes: int = 256 * 1024

    @property
    def budget_bytes(self) -> int:
        """Memory for unfinished bodies: never less than one message needs."""
        return max(self.unfinished_bytes, self.message_bytes)
