"""A wire message in one piece: for requests that wait on a box, and for their outcomes.

Layout: length of the header (4 bytes, little-endian), the header, the body; see `hybrid.wire.message`.
"""

from typing import Final, TypeVar

from hybrid.errors import BadMessage
from hybrid.wire.limits import HEADER_BYTES, Limits
from hybrid.wire.message import (
    BodyPlan,
    EncodedMessage,
    InferRequest,
    InferResponse,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
)

_LENGTH_BYTES: Final = 4
_Message = TypeVar("_Message", InferRequest, InferResponse)


def pack_request(request: InferRequest) -> bytes:
    """A request in one piece. Raises `TooLarge`."""
    return _packed(encode_request(request))


def pack_response(response: InferResponse) -> bytes:
    """A response in one piece. Raises `TooLarge`."""
    return _packed(encode_response(response))


def unpack_request(content: bytes, limits: Limits | None = None) -> InferRequest:
    """The request; its tensors view the content.

    Raises:
        BadMessage, TensorMismatch, TooLarge: it is none.
    """
    header, body = _parts(content)
    return _filled(decode_request(header, limits or Limits()), body)


def unpack_response(content: bytes, limits: Limits | None = None) -> InferResponse:
    """The response; raises as `unpack_request` does."""
    header, body = _parts(content)
    return _filled(decode_response(header, limits or Limits()), body)


def _packed(message: EncodedMessage) -> bytes:
    return b"".join((len(message.header).to_bytes(_LENGTH_BYTES, "little"), message.header, *message.buffers))


def _parts(content: bytes) -> tuple[memoryview, memoryview]:
    view = memoryview(content)
    n_header = int.from_bytes(view[:_LENGTH_BYTES], "little")
    if len(view) < _LENGTH_BYTES + n_header or n_header > HEADER_BYTES:
        raise BadMessage(f"a packed message of {len(view)} bytes cannot have a header of {n_header}")
    return view[_LENGTH_BYTES : _LENGTH_BYTES + n_header], view[_LENGTH_BYTES + n_header :]


def _filled(plan: BodyPlan[_Message], body: memoryview) -> _Message:
    return plan.fill(body)
