"""Frames: the eight kinds, their bytes, and a reader that takes the stream in any pieces."""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec

from hybrid.errors import BadFrame, HybridError, VersionMismatch, from_code
from hybrid.wire.limits import CONTROL_BYTES, FRAME_BYTES, Limits

END: Final = 1
"""Flag of the last DATA frame of a message."""

LOWEST_VERSION: Final = 1
HIGHEST_VERSION: Final = 1

_HEAD: Final = struct.Struct("<BBHI")
_PAIR: Final = struct.Struct("<QQ")
_TOKEN: Final = struct.Struct("<Q")


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    DATA = 2
    CREDIT = 3
    CANCEL = 4
    ERROR = 5
    PING = 6
    PONG = 7
    GOAWAY = 8


_FIXED_BYTES: Final = {Kind.CREDIT: 16, Kind.CANCEL: 0, Kind.PING: 8, Kind.PONG: 8}
_ON_CONNECTION: Final = frozenset({Kind.HELLO, Kind.PING, Kind.PONG})
_ON_STREAM: Final = frozenset({Kind.DATA, Kind.CREDIT, Kind.CANCEL})
_DATA: Final = int(Kind.DATA)
_KINDS: Final = {int(kind): kind for kind in Kind}


class Frame(NamedTuple):
    """One frame; the payload views the bytes that it came in."""

    kind: Kind
    stream: int
    payload: memoryview
    end: bool = False


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """What each side says first: the versions that it speaks and what it accepts."""

    versions: tuple[int, int] = (LOWEST_VERSION, HIGHEST_VERSION)
    software: str = ""
    initial_credit_bytes: int
    max_streams: int
    max_message_bytes: int


class Refusal(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An error as it travels in ERROR and GOAWAY."""

    code: str
    message: str = ""
    retry_after_s: float | None = None

    def to_error(self) -> HybridError:
        """The error that the peer meant, of the class that its code names."""
        fields = {} if self.retry_after_s is None else {"retry_after_s": self.retry_after_s}
        return from_code(self.code, self.message, **fields)

    @classmethod
    def of(cls, error: HybridError) -> "Refusal":
        """The error without the fields that do not travel; long messages are cut."""
        retry_after_s = error.fields.get("retry_after_s")
        return cls(code=error.code, message=str(error)[:700], retry_after_s=retry_after_s)


_HELLO = msgspec.json.Decoder(Hello)
_REFUSAL = msgspec.json.Decoder(Refusal)


def head(kind: Kind, stream: int, n_bytes: int, flags: int = 0) -> bytes:
    """The first eight bytes of a frame."""
    return _HEAD.pack(kind, flags, n_bytes, stream)


def hello_frame(hello: Hello) -> bytes:
    """HELLO."""
    payload = msgspec.json.encode(hello)
    return head(Kind.HELLO, 0, len(payload)) + payload


def refusal_frame(kind: Kind, stream: int, error: HybridError) -> bytes:
    """ERROR or GOAWAY."""
    payload = msgspec.json.encode(Refusal.of(error))
    return head(kind, stream, len(payload)) + payload


def credit_frame(stream: int, received_bytes: int, limit_bytes: int) -> bytes:
    """CREDIT: what came in all, what may come in all."""
    return head(Kind.CREDIT, stream, 16) + _PAIR.pack(received_bytes, limit_bytes)


def cancel_frame(stream: int) -> bytes:
    """CANCEL."""
    return head(Kind.CANCEL, stream, 0)


def token_frame(kind: Kind, token: int) -> bytes:
    """PING or PONG."""
    return head(kind, 0, 8) + _TOKEN.pack(token)


def read_pair(frame: Frame) -> tuple[int, int]:
    """Received and limit of a CREDIT."""
    received_bytes, limit_bytes = _PAIR.unpack(frame.payload)
    return received_bytes, limit_bytes


def read_token(frame: Frame) -> int:
    """Token of a PING or PONG."""
    return int(_TOKEN.unpack(frame.payload)[0])


def read_hello(frame: Frame) -> Hello:
    """The peer's hello.

    Raises:
        BadFrame: not a hello, or one with values that make no sense.
    """
    hello = parse_hello(frame.payload)
    if hello is None:
        raise BadFrame("the first frame is no valid hello; is the peer a hybrid gateway or client?")
    return hello


def parse_hello(data: bytes | memoryview) -> Hello | None:
    """A hello from its JSON; None when it is none."""
    try:
        hello = _HELLO.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    low, high = hello.versions
    sizes = (hello.initial_credit_bytes, hello.max_streams, hello.max_message_bytes)
    return hello if low <= high and all(0 < size < 2**63 for size in sizes) else None


def read_refusal(frame: Frame) -> HybridError:
    """The error in an ERROR or GOAWAY.

    Raises:
        BadFrame: not an error.
    """
    try:
        return _REFUSAL.decode(frame.payload).to_error()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadFrame(f"an error frame that does not parse: {exc}") from exc


class FrameReader:
    """Cuts a stream of bytes, arriving in any pieces, into frames. Holds less than one frame."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that these bytes complete; consume all before feeding more.

        Raises:
            BadFrame: a kind, length, flag or stream that no frame has.
        """
        whole = memoryview(bytes(self._partial) + data if self._partial else data)
        self._partial = bytearray()
        at = 0
        while len(whole) - at >= _HEAD.size:
            kind_number, flags, size, stream = _HEAD.unpack_from(whole, at)
            if kind_number == _DATA and size <= FRAME_BYTES and flags <= END and stream:
                kind = Kind.DATA  # nearly all frames: checked here, not in a call
            else:
                kind = _checked(kind_number, flags, size, stream)
            stop = at + _HEAD.size + size
            if stop > len(whole):
                break
            yield Frame(kind, stream, whole[at + _HEAD.size : stop], flags == END)
            at = stop
        self._partial += whole[at:]


def _checked(number: int, flags: int, size: int, stream: int) -> Kind:
    kind = _KINDS.get(number)
    if kind is None:
        raise BadFrame(f"a frame of kind {number}; kinds are 1 to {max(_KINDS)}")
    limit = FRAME_BYTES if kind is Kind.DATA else CONTROL_BYTES
    if size > limit or size != _FIXED_BYTES.get(kind, size):
        raise BadFrame(f"a {kind.name} frame of {size} bytes; the limit is {_FIXED_BYTES.get(kind, limit)}")
    if flags > (END if kind is Kind.DATA else 0):
        raise BadFrame(f"a {kind.name} frame with flags {flags:#x}")
    if (kind in _ON_CONNECTION and stream != 0) or (kind in _ON_STREAM and stream == 0):
        raise BadFrame(f"a {kind.name} frame on stream {stream}")
    return kind


def hello_of(limits: Limits, software: str) -> Hello:
    """What a side says of itself."""
    return Hello(
        software=software,
        initial_credit_bytes=limits.initial_credit_bytes,
        max_streams=limits.streams,
        max_message_bytes=limits.message_bytes,
    )


def common_version(peer: Hello) -> int:
    """The highest channel version that both sides speak.

    Raises:
        VersionMismatch: there is none.
    """
    version = min(peer.versions[1], HIGHEST_VERSION)
    if version < max(peer.versions[0], LOWEST_VERSION):
        low, high = peer.versions
        raise VersionMismatch(
            f"the peer ({peer.software or 'unnamed'}) speaks channel versions {low} to {high}, "
            f"this side {LOWEST_VERSION} to {HIGHEST_VERSION}; upgrade the older one"
        )
    return version
