"""What one side of a channel still has to send: control frames first, then data, streams taking turns."""

from collections import deque

from hybrid.errors import BadFrame
from hybrid.wire.events import WithdrawalSettled
from hybrid.wire.flight import Flight
from hybrid.wire.frames import Kind, credit_frame, token_frame
from hybrid.wire.limits import BACKLOG_BYTES
from hybrid.wire.message import Buffer, EncodedMessage
from hybrid.wire.outbound import Outbound


class Sending:
    """The outgoing half of a channel; bounded, since a peer that does not read makes it refuse.

    Attributes:
        flight: the window of unacknowledged bytes.
        data_bytes: payload handed out in all.
    """

    def __init__(self) -> None:
        self.flight = Flight()
        self.data_bytes = 0
        self._control: deque[bytes] = deque()
        self._control_bytes = 0
        self._credits: dict[int, tuple[int, int]] = {}
        self._pong: int | None = None
        self._messages: dict[int, Outbound] = {}
        self._turns: deque[Outbound] = deque()
        self._withdrawn: dict[int, tuple[Outbound, int]] = {}

    @property
    def has_frames(self) -> bool:
        """Whether `next_frames` would give any."""
        has_control = bool(self._control or self._credits) or self._pong is not None
        return has_control or (bool(self._turns) and self.flight.room_bytes > 0)

    @property
    def has_withdrawn(self) -> bool:
        """Whether bytes of withdrawn messages may still be on their way."""
        return bool(self._withdrawn)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of messages that are not handed out yet."""
        return sum(message.n_bytes - message.sent_bytes for message in self._messages.values())

    def control(self, frame: bytes) -> None:
        """Queues a control frame.

        Raises:
            BadFrame: too many wait already; the peer does not read.
        """
        self._control_bytes += len(frame)
        if self._control_bytes > BACKLOG_BYTES:
            raise BadFrame(f"{self._control_bytes} bytes of control frames wait; the peer does not read")
        self._control.append(frame)

    def credit(self, stream: int, received_bytes: int, limit_bytes: int) -> None:
        """Queues a CREDIT; those of one stream that still wait become one, and never take anything back."""
        received_before, limit_before = self._credits.get(stream, (0, 0))
        self._credits[stream] = (max(received_before, received_bytes), max(limit_before, limit_bytes))

    def pong(self, token: int) -> None:
        """Queues a PONG; only the latest is sent."""
        self._pong = token

    def message(self, stream: int, message: EncodedMessage, initial_credit_bytes: int) -> None:
        """Queues a message."""
        outbound = Outbound(stream, message, initial_credit_bytes)
        self._messages[stream] = outbound
        self._turns.append(outbound)

    def credited(self, stream: int, received_bytes: int, limit_bytes: int, now_s: float) -> bool:
        """Takes the peer's CREDIT; whether it acknowledges anything new.

        Raises:
            BadFrame: it acknowledges what was never sent.
        """
        outbound = self._messages.get(stream) or self._withdrawn.get(stream, (None, 0))[0]
        if outbound is None:
            return False
        was_waiting = not outbound.can_send and not outbound.is_done
        newly = outbound.credit(received_bytes, limit_bytes)
        if newly:
            outbound.acked_s = now_s
            self.flight.acked(newly, now_s)
        if was_waiting and outbound.can_send and stream in self._messages:
            self._turns.append(outbound)
        return newly > 0

    def upload(self, stream: int) -> Outbound | None:
        """How far a stream's message is; None where it has none."""
        return self._messages.get(stream)

    def drop(self, stream: int) -> None:
        """Forgets what is left of a stream's message."""
        outbound = self._taken_out(stream)
        if outbound is not None:
            self.flight.dropped(outbound.sent_bytes - outbound.acked_bytes)

    def withdraw(self, stream: int, n_pings: int) -> None:
        """Sends no more of a stream's message; what is on its way counts until a PING after the `n_pings`th is back."""
        outbound = self._taken_out(stream)
        if outbound is not None and outbound.sent_bytes:
            self._withdrawn[stream] = (outbound, n_pings)

    def settle(self, ping: int, now_s: float) -> list[WithdrawalSettled]:
        """This PING is back: all that was sent of the streams that were withdrawn before it has arrived."""
        settled = []
        for stream, (outbound, n_pings) in list(self._withdrawn.items()):
            if n_pings < ping:
                del self._withdrawn[stream]
                self.flight.dropped(outbound.sent_bytes - outbound.acked_bytes)
                arrived_s = now_s if outbound.acked_bytes < outbound.sent_bytes else outbound.acked_s
                settled.append(WithdrawalSettled(stream, outbound.sent_bytes, arrived_s))
        return settled

    def _taken_out(self, stream: int) -> Outbound | None:
        self._credits.pop(stream, None)
        outbound = self._messages.pop(stream, None)
        if outbound is not None and outbound in self._turns:
            self._turns.remove(outbound)
        return outbound

    def is_sent(self, stream: int) -> bool:
        """Whether the stream's message, if it has one, is handed out whole."""
        outbound = self._messages.get(stream)
        return outbound is not None and outbound.is_done

    def next_frames(self, budget_bytes: int, now_s: float) -> tuple[list[Buffer], list[int]]:
        """The next frames as buffers, and the streams whose message ended in them."""
        parts: list[Buffer] = list(self._control)
        self._control.clear()
        self._control_bytes = 0
        if self._pong is not None:
            parts.append(token_frame(Kind.PONG, self._pong))
            self._pong = None
        parts += [credit_frame(stream, *pair) for stream, pair in self._credits.items()]
        self._credits.clear()
        n_bytes = sum(map(len, parts))
        ended: list[int] = []
        frame_bytes = self.flight.frame_bytes
        n_data = 0
        room_bytes = min(budget_bytes - n_bytes, self.flight.room_bytes)
        while n_data < room_bytes and self._turns:
            outbound = self._turns.popleft()
            n_data += outbound.next_frame(frame_bytes, parts)
            if outbound.is_done:
                ended.append(outbound.stream)
            elif outbound.can_send:
                self._turns.append(outbound)
        if n_data:
            self.flight.sent(n_data, now_s)
            self.data_bytes += n_data
        return parts, ended
