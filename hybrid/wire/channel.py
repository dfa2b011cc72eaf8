"""The channel's state machine, for both ends: bytes and the time go in, events and bytes come out; no I/O.

Design: every rule of docs/wire.md lives here, so that each can be tested without a socket. A fault in one message ends
its stream; a fault in the framing ends the connection. Nothing raises out of `receive`: faults are events.
"""

from dataclasses import dataclass
from typing import Literal

from hybrid.errors import BadFrame, HybridError, Overloaded, ProtocolError, TooLarge, VersionMismatch
from hybrid.wire import frames
from hybrid.wire.acknowledging import Acknowledging
from hybrid.wire.events import (
    Connected,
    Event,
    Failed,
    GoawayReceived,
    PongReceived,
    RequestCancelled,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
)
from hybrid.wire.frames import Frame, FrameReader, Hello, Kind
from hybrid.wire.inbound import Budget, Inbound, Ledger
from hybrid.wire.limits import QUIET_BYTES, Limits
from hybrid.wire.message import (
    InferRequest,
    InferResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)
from hybrid.wire.outbound import Outbound
from hybrid.wire.sending import Sending

Role = Literal["client", "server"]
State = Literal["opening", "open", "draining", "closed"]


@dataclass(slots=True)
class _Stream:
    """What a side knows of one stream: the message that arrives, and whether the request has been delivered."""

    inbound: Inbound | None = None
    is_delivered: bool = False


class Channel:
    """One end of a channel.

    Args:
        role: which end.
        limits: what this side accepts.
        software: who it says it is.
        now_s: the time.
        ledger: memory of the bodies on all connections; None for no bound but the connection's own.

    Attributes:
        state: opening, open, draining or closed.
        peer: the peer's hello, once it came.
        last_progress_s: when the peer last showed progress (docs/wire.md, "Alive, stalled").
        received_bytes: all that came in.
    """

    def __init__(
        self, role: Role, *, limits: Limits, software: str, now_s: float, ledger: Ledger | None = None
    ) -> None:
        self.state: State = "opening"
        self.peer: Hello | None = None
        self.last_progress_s = now_s
        self.received_bytes = 0
        self._is_client = role == "client"
        self._limits = limits
        self._now_s = now_s
        self._reader = FrameReader()
        self._sending = Sending()
        self._budget = Budget(limits.budget_bytes)
        self._ledger = ledger
        self._streams: dict[int, _Stream] = {}
        self._highest_stream = 0
        self._refuse_above: int | None = None
        self._acknowledging = Acknowledging(self._sending, now_s)
        self._ping: tuple[int, float, bool] | None = None
        self._n_pings = 0
        self._sending.control(frames.hello_frame(frames.hello_of(limits, software)))

    # -- the owner's verbs ------------------------------------------------------------------------------------------

    @property
    def n_streams(self) -> int:
        """Requests that are not over."""
        return len(self._streams)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self.state == "closed"

    @property
    def sent_bytes(self) -> int:
        """Payload of messages handed out so far."""
        return self._sending.data_bytes

    @property
    def unacked_bytes(self) -> int:
        """Bytes handed out that may still be on their way."""
        return self._sending.flight.unacked_bytes

    @property
    def has_frames(self) -> bool:
        """Whether `next_frames` would give bytes now."""
        return self._sending.has_frames

    @property
    def has_withdrawn(self) -> bool:
        """Whether a PING is wanted: its PONG will settle cancelled requests whose bytes may still be on their way."""
        return self._sending.has_withdrawn

    @property
    def is_ping_out(self) -> bool:
        """Whether a PING waits for its PONG."""
        return self._ping is not None

    def stalled_s(self, now_s: float) -> float:
        """Seconds without progress while an answer, or the end of a cancelled upload, is owed; 0 while none is."""
        return max(0.0, now_s - self.last_progress_s) if self._streams or self.has_withdrawn else 0.0

    def upload(self, stream: int) -> Outbound | None:
        """How far the message of a stream is; None when the stream is over."""
        return self._sending.upload(stream)

    def send_request(self, request: InferRequest, now_s: float) -> int:
        """Opens a stream with this request; its number.

        Raises:
            TooLarge: more than the peer takes. Overloaded: no stream is free, or the peer is going away.
        """
        if self.state != "open" or self.peer is None:
            raise Overloaded(f"the channel is {self.state} and takes no requests; try again", retry_after_s=0.0)
        if len(self._streams) >= self.peer.max_streams:
            raise Overloaded(
                f"{len(self._streams)} requests are in flight, the gateway takes no more", retry_after_s=0.0
            )
        message = encode_request(request)
        if message.n_body_bytes > self.peer.max_message_bytes:
            raise TooLarge(
                f"the request has {message.n_body_bytes} bytes, the gateway takes {self.peer.max_message_bytes}"
            )
        if not self._streams and not self.has_withdrawn:
            self.last_progress_s = now_s
        self._highest_stream += 1
        self._streams[self._highest_stream] = _Stream()
        self._sending.message(self._highest_stream, message, self.peer.initial_credit_bytes)
        return self._highest_stream

    def cancel(self, stream: int) -> None:
        """Client: withdraws a request; without effect when it is over.

        What was sent of it is still on its way: the PONG of a later `ping` settles it.
        """
        if stream in self._streams and self.state != "closed":
            self._sending.withdraw(stream, self._n_pings)
            self._close_stream(stream)
            self._control(frames.cancel_frame(stream))

    def send_response(self, stream: int, response: InferResponse) -> None:
        """Server: answers a request; without effect when it was cancelled meanwhile."""
        if stream not in self._streams or self.peer is None or self.state == "closed":
            return
        try:
            message = encode_response(response)
            if message.n_body_bytes > self.peer.max_message_bytes:
                raise TooLarge(
                    f"the answer has {message.n_body_bytes} bytes, the client takes {self.peer.max_message_bytes}"
                )
        except TooLarge as exc:
            self.send_error(stream, exc)
            return
        self._sending.message(stream, message, self.peer.initial_credit_bytes)

    def send_error(self, stream: int, error: HybridError) -> None:
        """Server: answers a request with an error; without effect when it was cancelled meanwhile."""
        if stream in self._streams and self.state != "closed":
            self._close_stream(stream)
            self._control(frames.refusal_frame(Kind.ERROR, stream, error))

    def ping(self, now_s: float) -> None:
        """Sends a PING unless one is out."""
        if self._ping is None and self.state in ("open", "draining"):
            self._n_pings += 1
            self._ping = (self._n_pings, now_s, self._is_quiet)
            self._control(frames.token_frame(Kind.PING, self._n_pings))

    def go_away(self, error: HybridError) -> None:
        """Server: takes no more streams; those that are open are still answered."""
        if self.state in ("opening", "open"):
            self.state = "draining"
            self._refuse_above = self._highest_stream
            self._control(frames.refusal_frame(Kind.GOAWAY, self._highest_stream, error))

    def next_frames(self, budget_bytes: int, now_s: float) -> bytes:
        """The next frames to send: all control frames, then data up to about the budget. Empty: nothing to send now."""
        parts, ended = self._sending.next_frames(budget_bytes, now_s)
        if not self._is_client:
            for stream in ended:
                self._close_stream(stream)
        return b"".join(parts)

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Takes bytes in any pieces; what they brought about."""
        events: list[Event] = []
        if self.is_closed:
            return events
        self._now_s = now_s
        self.received_bytes += len(data)
        try:
            for frame in self._reader.feed(data):
                if not self.is_closed:
                    self._take(frame, events)
        except ProtocolError as exc:
            self._fail(exc, events, is_ours=True)
        return events

    # -- frames -----------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame, events: list[Event]) -> None:
        if frame.kind is Kind.ERROR and frame.stream == 0:
            self._fail(frames.read_refusal(frame), events, is_ours=False)
        elif self.peer is None:
            self._take_hello(frame, events)
        elif frame.kind is Kind.DATA:
            self._take_data(frame, events)
        elif frame.kind is Kind.CREDIT:
            if self._sending.credited(frame.stream, *frames.read_pair(frame), self._now_s):
                self.last_progress_s = self._now_s
        elif frame.kind is Kind.PING:
            self._sending.pong(frames.read_token(frame))
        elif frame.kind is Kind.PONG:
            self._take_pong(frame, events)
        elif frame.kind is Kind.CANCEL and not self._is_client:
            self._take_cancel(frame, events)
        elif frame.kind is Kind.ERROR and self._is_client:
            self._take_error(frame, events)
        elif frame.kind is Kind.GOAWAY and self._is_client:
            self._take_goaway(frame, events)
        else:
            raise BadFrame(f"a {frame.kind.name} frame, which this side never gets in state {self.state}")

    def _take_hello(self, frame: Frame, events: list[Event]) -> None:
        if frame.kind is not Kind.HELLO:
            raise BadFrame(f"the first frame is {frame.kind.name}; each side begins with HELLO")
        version = frames.common_version(hello := frames.read_hello(frame))
        self.peer = hello
        if self.state == "opening":
            self.state = "open"
        self.last_progress_s = self._now_s
        events.append(Connected(hello, version))

    def _take_data(self, frame: Frame, events: list[Event]) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            if self._is_client or frame.stream <= self._highest_stream:
                if frame.stream > self._highest_stream:
                    raise BadFrame(f"data on stream {frame.stream}, which was never opened")
                return  # it crossed our CANCEL or ERROR
            stream = self._open_stream(frame.stream, events)
            if stream is None:
                return
        if stream.is_delivered:
            raise BadFrame(f"data on stream {frame.stream} after its end")
        if stream.inbound is None:
            decode = decode_response if self._is_client else decode_request
            stream.inbound = Inbound(frame.stream, decode, self._limits, self._now_s, self._ledger)
        if self._is_client:
            self.last_progress_s = self._now_s
        try:
            self._take_piece(stream, stream.inbound, frame, events)
        except (BadFrame, VersionMismatch):
            raise
        except (ProtocolError, Overloaded) as exc:
            self._refuse(frame.stream, exc, events)

    def _open_stream(self, number: int, events: list[Event]) -> _Stream | None:
        self._highest_stream = number
        if self._refuse_above is not None and number > self._refuse_above:
            return None  # it crossed our GOAWAY, which told the client
        stream = self._streams[number] = _Stream()
        too_many = len(self._streams) > self._limits.streams
        if too_many or self._sending.unsent_bytes > self._limits.budget_bytes:
            seen = f"{len(self._streams)} requests in flight, {self._sending.unsent_bytes} bytes of answers not taken"
            self._refuse(number, Overloaded(f"{seen} on this connection; wait for answers", retry_after_s=0.1), events)
            return None
        return stream

    def _take_piece(self, stream: _Stream, inbound: Inbound, frame: Frame, events: list[Event]) -> None:
        limit_bytes = inbound.limit_bytes
        message = inbound.take(frame.payload, self._budget, end=frame.end)
        is_end = frame.end and not self._is_client  # so that the client knows at once what its upload took
        is_due = is_end or inbound.limit_bytes > limit_bytes
        credit = (inbound.received_bytes, inbound.limit_bytes)
        self._acknowledging.note(frame.stream, credit, len(frame.payload), self._now_s, is_due=is_due)
        if message is None:
            return
        receive_s = self._now_s - inbound.first_s
        if isinstance(message, InferRequest):
            self._free(stream)
            stream.is_delivered = True
            events.append(RequestReceived(frame.stream, message, receive_s))
        else:
            self._close_stream(frame.stream)
            events.append(ResponseReceived(frame.stream, message, receive_s, inbound.received_bytes))

    def _refuse(self, number: int, error: HybridError, events: list[Event]) -> None:
        self._close_stream(number)
        if self._is_client:
            self._control(frames.cancel_frame(number))
            events.append(RequestFailed(number, error))
        else:
            self._control(frames.refusal_frame(Kind.ERROR, number, error))
            events.append(RequestRefused(number, error))

    def _take_pong(self, frame: Frame, events: list[Event]) -> None:
        if self._ping is None or frames.read_token(frame) != self._ping[0]:
            return
        number, sent_s, was_quiet = self._ping
        self._ping = None
        self.last_progress_s = self._now_s
        events += self._sending.settle(number, self._now_s)
        events.append(PongReceived(self._now_s - sent_s, was_quiet and self._is_quiet))

    def _take_cancel(self, frame: Frame, events: list[Event]) -> None:
        stream = self._streams.get(frame.stream)
        if stream is not None:
            self._close_stream(frame.stream)
            if stream.is_delivered:
                events.append(RequestCancelled(frame.stream))

    def _take_error(self, frame: Frame, events: list[Event]) -> None:
        error = frames.read_refusal(frame)
        if frame.stream in self._streams:
            self.last_progress_s = self._now_s
            self._close_stream(frame.stream)
            events.append(RequestFailed(frame.stream, error))

    def _take_goaway(self, frame: Frame, events: list[Event]) -> None:
        error = frames.read_refusal(frame)
        self.state = "draining"
        self.last_progress_s = self._now_s
        events.append(GoawayReceived(frame.stream, error))
        for number in [number for number in self._streams if number > frame.stream]:
            self._close_stream(number)
            events.append(RequestFailed(number, error))

    # -- ends -------------------------------------------------------------------------------------------------------

    @property
    def _is_quiet(self) -> bool:
        return self.unacked_bytes <= QUIET_BYTES and self._sending.unsent_bytes == 0

    def _control(self, frame: bytes) -> None:
        try:
            self._sending.control(frame)
        except BadFrame:
            self.state = "closed"

    def _close_stream(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        self._sending.drop(number)
        self._acknowledging.forget(number)
        if stream is not None:
            self._free(stream)

    def _free(self, stream: _Stream) -> None:
        inbound, stream.inbound = stream.inbound, None
        if inbound is None:
            return
        if self._ledger is not None:
            self._ledger.give(inbound.ledger_bytes)
        if not inbound.uses_budget:
            return
        for served in self._budget.give_back(inbound):
            served.serve()
            self._sending.credit(served.stream, served.received_bytes, served.limit_bytes)

    def abandon(self) -> None:
        """The connection is gone: whatever was arriving is dropped."""
        for number in list(self._streams):
            self._close_stream(number)
        self.state = "closed"

    def _fail(self, error: HybridError, events: list[Event], *, is_ours: bool) -> None:
        for number in list(self._streams):
            self._close_stream(number)
        if is_ours:
            self._control(frames.refusal_frame(Kind.ERROR, 0, error))
        self.state = "closed"
        events.append(Failed(error))
