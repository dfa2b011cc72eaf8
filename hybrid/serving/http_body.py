"""Reads request bodies: within a size limit, a pace limit and, when compressed, a limit on what they unpack to."""

import asyncio
import sys
import zlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from hybrid.errors import BadMessage, TooLarge

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""HTTP header with the bytes of JSON in front of the binary tensors; compared as a whole name, never as a substring."""

_AT_ONCE_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """What a request body may cost.

    Attributes:
        max_body_bytes: of the body, compressed and uncompressed.
        max_header_bytes: of the JSON in front of binary tensors.
        idle_s: how far a body may fall behind `min_bytes_per_s` before it is given up; a trickle ends as a pause does.
        min_bytes_per_s: slowest pace of a body.
    """

    max_body_bytes: int = 256 << 20
    max_header_bytes: int = 1 << 20
    idle_s: float = 30.0
    min_bytes_per_s: int = 1000


class Body:
    """The body of one request, taken in pieces: first the JSON, then exactly as many bytes as it declares.

    Attributes:
        n_json: bytes of JSON that the request's header declares; None when all of the body is JSON.
    """

    __slots__ = ("_buffer", "_limits", "_position", "_request", "_started_s", "n_json")

    def __init__(self, request: web.Request, limits: BodyLimits) -> None:
        self._request = request
        self._limits = limits
        self._buffer: bytes | None = None
        self._position = 0
        self._started_s = asyncio.get_running_loop().time()
        length = request.content_length
        if length is not None and length > limits.max_body_bytes:
            raise _too_large(length, limits)
        self.n_json = _header_length(request, length, limits)

    async def json(self) -> bytes:
        """The JSON part; what follows it is not read yet unless it came along or was compressed."""
        request = self._request
        encoding = request.headers.get("Content-Encoding")
        if encoding and encoding.lower() != "identity":
            self._buffer = await self._unpacked(encoding.lower())
        elif self.n_json is None or (request.content_length or sys.maxsize) <= _AT_ONCE_BYTES:
            self._buffer = await self._all()
        if self._buffer is None:
            return bytes(await self._exactly(self.n_json or 0))
        if self.n_json is None:
            self._position = len(self._buffer)
            return self._buffer
        if self.n_json > len(self._buffer):
            raise BadMessage(f"{HEADER_LENGTH} is {self.n_json}, but the body has only {len(self._buffer)} bytes")
        self._position = self.n_json
        return self._buffer[: self.n_json]

    async def binary(self, n_bytes: int) -> memoryview:
        """The part behind the JSON, which must have exactly that size."""
        if self._buffer is not None:
            found = memoryview(self._buffer)[self._position :]
        else:
            length = self._request.content_length
            if n_bytes > self._limits.max_body_bytes:
                raise _too_large(n_bytes, self._limits)
            if length is not None and length - (self.n_json or 0) != n_bytes:
                raise _wrong_size(length - (self.n_json or 0), n_bytes)
            found = await self._exactly(n_bytes)
            if await self._chunk(n_bytes, 1):
                raise BadMessage(f"the body goes on after the {n_bytes} bytes of tensors that its JSON declares")
        if len(found) != n_bytes:
            raise _wrong_size(len(found), n_bytes)
        return found

    async def rest(self) -> memoryview:
        """All of what follows the JSON, whatever its size within the limit."""
        if self._buffer is None:
            self._buffer = await self._all()
        return memoryview(self._buffer)[self._position :]

    async def _all(self) -> bytes:
        content = self._request.content
        if content.is_eof() and content.exception() is None:  # everything is here: no wait, no timer
            found = content.read_nowait()
            if len(found) > self._limits.max_body_bytes:
                raise _too_large(len(found), self._limits)
            return found
        chunks: list[bytes] = []
        n_bytes = 0
        while chunk := await self._chunk(n_bytes, -1):
            n_bytes += len(chunk)
            if n_bytes > self._limits.max_body_bytes:
                raise _too_large(n_bytes, self._limits)
            chunks.append(chunk)
        return b"".join(chunks)

    async def _exactly(self, n_bytes: int) -> memoryview:
        # An array, because numpy aligns it and does not clear it first.
        buffer = memoryview(np.empty(n_bytes, np.uint8))
        position = 0
        while position < n_bytes:
            chunk = await self._chunk(position, n_bytes - position)
            if not chunk:
                raise BadMessage(f"the body ended after {position} of {n_bytes} bytes")
            buffer[position : position + len(chunk)] = chunk
            position += len(chunk)
        return buffer

    async def _chunk(self, n_received: int, at_most: int) -> bytes:
        """What is there, up to `at_most` bytes (-1: no limit); waits for more only while nothing is."""
        content = self._request.content
        allowed_s = self._limits.idle_s + n_received / self._limits.min_bytes_per_s
        try:
            async with asyncio.timeout_at(self._started_s + allowed_s):
                return await (content.readany() if at_most < 0 else content.read(at_most))
        except TimeoutError:
            raise web.HTTPRequestTimeout(
                text=f"only {n_received} bytes of the body came within {allowed_s:.0f} s; send it faster"
            ) from None
        except (ClientError, HttpProcessingError) as exc:
            raise BadMessage(f"the body breaks HTTP's framing: {type(exc).__name__}") from exc

    async def _unpacked(self, encoding: str) -> bytes:
        if encoding not in ("gzip", "deflate"):
            raise BadMessage(f"Content-Encoding {encoding[:40]!r} is not understood; send gzip, deflate or identity")
        packed = await self._all()
        if len(packed) < _AT_ONCE_BYTES:
            return unpack(packed, encoding, self._limits.max_body_bytes)
        return await asyncio.to_thread(unpack, packed, encoding, self._limits.max_body_bytes)


def unpack(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress at most `max_bytes`; a bomb costs that much and no more.

    Raises:
        BadMessage: not a complete stream of that encoding.
        TooLarge: it unpacks to more than `max_bytes`.
    """
    # Deflate is zlib's format by the standard and bare deflate by habit of some: 8 in the low nibble tells.
    bare = encoding == "deflate" and (not packed or packed[0] & 0x0F != 8)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
    try:
        data = unpacker.decompress(packed, max_bytes + 1)
    except zlib.error as exc:
        raise BadMessage(f"the body is not {encoding}: {exc}") from exc
    if len(data) > max_bytes:
        raise TooLarge(f"the body unpacks to more than {max_bytes} bytes; send smaller requests")
    if not unpacker.eof or unpacker.unused_data:
        raise BadMessage(f"the {encoding} body is cut short or has bytes after its end")
    return data


def _header_length(request: web.Request, length: int | None, limits: BodyLimits) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise BadMessage(f"{HEADER_LENGTH} is {text[:40]!r}; it must be a number of bytes")
    n_json = int(text)
    if n_json > limits.max_header_bytes:
        raise TooLarge(f"{HEADER_LENGTH} is {n_json}; the limit is {limits.max_header_bytes} bytes of JSON")
    if length is not None and n_json > length and "Content-Encoding" not in request.headers:
        raise BadMessage(f"{HEADER_LENGTH} is {n_json}, but the body has only {length} bytes")
    return n_json


def _too_large(n_bytes: int, limits: BodyLimits) -> TooLarge:
    return TooLarge(f"the body has {n_bytes} bytes; the limit is {limits.max_body_bytes}")


def _wrong_size(seen: int, wanted: int) -> BadMessage:
    return BadMessage(f"{seen} bytes of tensors follow the JSON; its binary_data_size parameters add up to {wanted}")
