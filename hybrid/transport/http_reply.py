"""What a gateway's HTTP reply means: the error that it names, by its body where it has one, else by its status."""

import os
import socket
from typing import Any, Final

import aiohttp
import msgspec

from hybrid.errors import (
    Conflict,
    ConnectionLost,
    DeadlinePassed,
    Forbidden,
    HybridError,
    NotFound,
    Overloaded,
    RefusedError,
    TooLarge,
    Unauthenticated,
    from_code,
)

_BY_STATUS: Final[dict[int, type[HybridError]]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: Overloaded,
    503: Overloaded,
    504: DeadlinePassed,
}


class ErrorBody(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The JSON of a failed reply, Open Inference Protocol's `error` with our code."""

    error: str
    code: str = ""
    retry_after_s: float | None = None
    advice: str | None = None


_DECODER: Final = msgspec.json.Decoder(ErrorBody)


async def whole_body(reply: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    """The reply's body, at most so many bytes of it: `content.read(n)` alone gives what has come so far."""
    pieces: list[bytes] = []
    while limit_bytes > 0 and (piece := await reply.content.read(limit_bytes)):
        pieces.append(piece)
        limit_bytes -= len(piece)
    return b"".join(pieces)


def plainly(error: Exception) -> str:
    """Why nobody could be connected to, as the system says it; the library's words speak of its pool besides."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return str(error) or type(error).__name__
    seen = error.os_error
    if isinstance(seen, socket.gaierror):
        return f"{error.host} is not known: {seen.strerror}"
    return os.strerror(seen.errno) if seen.errno else str(seen) or str(error)


def ended_in_a_call(url: str, reason: str) -> ConnectionLost:
    """A connection that ended before the reply; a TLS gateway that is asked in plain HTTP does nothing else."""
    if url.startswith("http://"):
        advice = "Where the gateway speaks TLS (--host other than loopback), its URL begins with https://."
        return ConnectionLost(
            f"{url}: the connection ended in a call ({reason}); does it speak TLS?", url=url, advice=advice
        )
    return ConnectionLost(f"{url}: the connection ended in a call ({reason})", url=url)


def error_of_reply(status: int, body: bytes, url: str) -> HybridError:
    """The error of a reply with status 400 or above."""
    try:
        found = _DECODER.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = ErrorBody(error=f"{url} answered HTTP {status} without saying why")
    fields: dict[str, Any] = {} if found.retry_after_s is None else {"retry_after_s": found.retry_after_s}
    if found.advice:
        fields["advice"] = found.advice
    if found.code:
        return from_code(found.code, found.error, **fields)
    return _BY_STATUS.get(status, RefusedError)(found.error, **fields)
