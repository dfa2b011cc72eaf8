"""What a channel tells its owner after it has taken bytes."""

from dataclasses import dataclass

from hybrid.errors import HybridError
from hybrid.wire.frames import Hello
from hybrid.wire.message import InferRequest, InferResponse


@dataclass(frozen=True, slots=True)
class Connected:
    """The peer's hello came and a common version exists."""

    hello: Hello
    version: int


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """Server: a whole request; `receive_s` from its first to its last byte."""

    stream: int
    request: InferRequest
    receive_s: float


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """Server: a request whose header failed its checks; the ERROR is queued already."""

    stream: int
    error: HybridError


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Server: the client withdrew a request that had been delivered."""

    stream: int


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """Client: a whole response; `receive_s` from its first to its last byte, `n_bytes` as sent."""

    stream: int
    response: InferResponse
    receive_s: float
    n_bytes: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """Client: this request ended in an error."""

    stream: int
    error: HybridError


@dataclass(frozen=True, slots=True)
class WithdrawalSettled:
    """Client: all that was sent of a cancelled request had arrived there by `arrived_s`.

    An acknowledgement of its last byte says when; where none came, the PONG that followed the CANCEL.
    """

    stream: int
    n_bytes: int
    arrived_s: float


@dataclass(frozen=True, slots=True)
class PongReceived:
    """A ping came back; `is_quiet` when next to no data of ours was on its way at either end of the trip."""

    rtt_s: float
    is_quiet: bool


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    """Client: open no more streams here; those up to `last_stream` are still answered."""

    last_stream: int
    error: HybridError


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is over: send what `next_frames` still gives, then close."""

    error: HybridError


Event = (
    Connected
    | RequestReceived
    | RequestRefused
    | RequestCancelled
    | ResponseReceived
    | RequestFailed
    | WithdrawalSettled
    | PongReceived
    | GoawayReceived
    | Failed
)
