"""Reads request bodies: within a size limit, a pace limit and, when compressed, a limit on what they unpack to."""

import asyncio
import zlib
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np
from aiohttp import ClientError, web
from aiohttp.http_exceptions import HttpProcessingError

from hybrid.errors import BadMessage, TooLarge
from hybrid.serving.body_budget import BodyBudget

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
"""HTTP header with the bytes of JSON in front of the binary tensors; compared as a whole name, never as a substring."""

ON_LOOP_BYTES: Final = 64 << 10
"""What is larger is unpacked, decoded and encoded in a thread; what is smaller is not worth the hop."""

_PIECE_BYTES: Final = 4 << 20
"""Unpacked at a time, between looks at the budget."""


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

    What arrives counts against the budget, where there is one, until `release`.
    """

    __slots__ = ("_ahead", "_budget", "_buffer", "_limits", "_n_held", "_position", "_request", "n_json")

    def __init__(self, request: web.Request, limits: BodyLimits, budget: BodyBudget | None = None) -> None:
        self._request = request
        self._budget = budget
        self._n_held = 0
        self._limits = limits
        self._buffer: bytes | None = None
        self._ahead = b""
        self._position = 0
        length = request.content_length
        if length is not None and length > limits.max_body_bytes:
            raise _too_large(length, limits)
        self.n_json = _header_length(request, length, limits)

    def present(self) -> bytes | None:
        """All of the body where it is here already and not packed, without waiting; `json` gives it as well."""
        request = self._request
        if self._buffer is None and request.content.is_eof() and "Content-Encoding" not in request.headers:
            if request.content.exception() is not None:
                return None
            self._buffer = self._present()
        return self._buffer

    def release(self) -> None:
        """Nobody reads the body any more: its bytes leave the budget."""
        if self._budget is not None:
            self._budget.give(self._n_held)
            self._n_held = 0

    def hold(self, n_bytes: int) -> None:
        """Count what the body becomes beside its own bytes. Raises `Overloaded`."""
        if self._budget is not None:
            self._budget.take(n_bytes)
            self._n_held += n_bytes

    async def json(self) -> bytes:
        """The JSON part; what follows it is not read yet unless it came along or was compressed."""
        request = self._request
        if self._buffer is None:
            encoding = self._encoding()
            if encoding is not None:
                self._buffer = await self._unpacked(encoding)
            elif request.content.is_eof() and request.content.exception() is None:
                self._buffer = self._present()
            elif self.n_json is None:
                self._buffer = await self._all()
        if self._buffer is None:
            async with _Pace(self._limits) as pace:
                return await self._first(self.n_json or 0, pace)
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
            if len(found) != n_bytes:
                raise _wrong_size(len(found), n_bytes)
            return found
        length = self._request.content_length
        if n_bytes > self._limits.max_body_bytes:
            raise _too_large(n_bytes, self._limits)
        if length is not None and length - (self.n_json or 0) != n_bytes:
            raise _wrong_size(length - (self.n_json or 0), n_bytes)
        async with _Pace(self._limits) as pace:
            return await self._exactly(n_bytes, pace)

    async def rest(self) -> memoryview:
        """All of what follows the JSON, unpacked, whatever its size within the limit."""
        if self._buffer is None:
            encoding = self._encoding()
            self._buffer = await (self._all() if encoding is None else self._unpacked(encoding))
        return memoryview(self._buffer)[self._position :]

    def _present(self) -> bytes:
        """A body that is all here: no wait, no timer."""
        found = self._request.content.read_nowait()
        if len(found) > self._limits.max_body_bytes:
            raise _too_large(len(found), self._limits)
        self.hold(len(found))
        return found

    async def _all(self) -> bytes:
        chunks: list[bytes] = []
        async with _Pace(self._limits) as pace:
            while chunk := await self._chunk(pace):
                if pace.n_received > self._limits.max_body_bytes:
                    raise _too_large(pace.n_received, self._limits)
                chunks.append(chunk)
        return b"".join(chunks)

    async def _first(self, n_bytes: int, pace: "_Pace") -> bytes:
        """The first bytes; what came along with them is kept for `_exactly`."""
        found = b""
        while len(found) < n_bytes:
            chunk = await self._chunk(pace)
            if not chunk:
                raise BadMessage(f"the body ended after {len(found)} of {n_bytes} bytes")
            found = found + chunk if found else chunk
        self._ahead = found[n_bytes:]
        return found[:n_bytes]

    async def _exactly(self, n_bytes: int, pace: "_Pace") -> memoryview:
        # An array, because numpy aligns it and does not clear it first; each chunk is copied once, into its place.
        buffer = memoryview(np.empty(n_bytes, np.uint8))
        chunk, position = self._ahead, 0
        while True:
            if position + len(chunk) > n_bytes:
                raise BadMessage(f"the body goes on after the {n_bytes} bytes of tensors that its JSON declares")
            buffer[position : position + len(chunk)] = chunk
            position += len(chunk)
            chunk = await self._chunk(pace)
            if not chunk:
                break
        if position < n_bytes:
            raise BadMessage(f"the body ended after {position} of {n_bytes} bytes of tensors")
        return buffer

    async def _chunk(self, pace: "_Pace") -> bytes:
        """The next piece as it came, empty at the end."""
        content = self._request.content
        try:
            while not content.at_eof():
                chunk, _ = await content.readchunk()
                if chunk:  # empty ones mark the end of HTTP chunks
                    pace.came(len(chunk))
                    self.hold(len(chunk))
                    return chunk
        except (ClientError, HttpProcessingError) as exc:
            raise BadMessage(f"the body breaks HTTP's framing: {type(exc).__name__}") from exc
        return b""

    def _encoding(self) -> str | None:
        """How the body is packed, None when it is not."""
        encoding = self._request.headers.get("Content-Encoding")
        return None if encoding is None or encoding.lower() == "identity" else encoding.lower()

    async def _unpacked(self, encoding: str) -> bytes:
        if encoding not in ("gzip", "deflate"):
            raise BadMessage(f"Content-Encoding {encoding[:40]!r} is not understood; send gzip, deflate or identity")
        packed = await self._all()
        max_bytes = self._limits.max_body_bytes
        if len(packed) < ON_LOOP_BYTES < max_bytes:
            with suppress(TooLarge):  # few bytes may unpack to a thousand times as many
                return unpack(packed, encoding, ON_LOOP_BYTES)
        unpacker = Unpacker(packed, encoding, max_bytes)
        pieces: list[bytes] = []
        while piece := await asyncio.to_thread(unpacker.next_piece, _PIECE_BYTES):
            self.hold(len(piece))  # as it comes out: a thousand small bombs must not be large together
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Pace:
    """A context in which a body has to keep up: one timer for all of it, moved on only when it gets near.

    Attributes:
        n_received: bytes that came so far.
    """

    __slots__ = ("_clock", "_limits", "_loop", "_next_look_s", "_started_s", "n_received")

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()
        self._next_look_s = self._started_s + 0.5 * limits.idle_s
        self._clock = asyncio.timeout_at(self._started_s + limits.idle_s)
        self.n_received = 0

    async def __aenter__(self) -> Self:
        await self._clock.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._clock.__aexit__(kind, error, trace)
        except TimeoutError:
            raise web.HTTPRequestTimeout(
                text=f"only {self.n_received} bytes of the body came within the time for them; send it faster"
            ) from None

    def came(self, n_bytes: int) -> None:
        """Bytes came: they buy time at the slowest pace that is allowed."""
        self.n_received += n_bytes
        now_s = self._loop.time()
        if now_s > self._next_look_s:
            until_s = self._started_s + self._limits.idle_s + self.n_received / self._limits.min_bytes_per_s
            self._clock.reschedule(until_s)
            self._next_look_s = now_s + 0.5 * max(0.0, until_s - now_s)


class Unpacker:
    """Decompresses a whole body piece by piece, and no more of it than it may have."""

    def __init__(self, packed: bytes, encoding: str, max_bytes: int) -> None:
        # Deflate is zlib's format by the standard and bare deflate by habit of some: 8 in the low nibble tells.
        bare = encoding == "deflate" and (not packed or packed[0] & 0x0F != 8)
        self._zlib = zlib.decompressobj(-zlib.MAX_WBITS if bare else zlib.MAX_WBITS | 32)
        self._rest = packed
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._n_bytes = 0

    def next_piece(self, most_bytes: int) -> bytes:
        """The next bytes, empty at the end.

        Raises:
            BadMessage: not a complete stream of that encoding.
            TooLarge: it unpacks to more than it may.
        """
        try:
            data = self._zlib.decompress(self._rest, most_bytes)
        except zlib.error as exc:
            raise BadMessage(f"the body is not {self._encoding}: {exc}") from exc
        self._rest = self._zlib.unconsumed_tail
        self._n_bytes += len(data)
        if self._n_bytes > self._max_bytes:
            raise TooLarge(f"the body unpacks to more than {self._max_bytes} bytes; send smaller requests")
        if not data and (not self._zlib.eof or self._zlib.unused_data):
            raise BadMessage(f"the {self._encoding} body is cut short or has bytes after its end")
        return data


def unpack(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    """All of a packed body at once; a bomb costs `max_bytes` and no more. Raises as `Unpacker.next_piece`."""
    unpacker = Unpacker(packed, encoding, max_bytes)
    pieces: list[bytes] = []
    while piece := unpacker.next_piece(max_bytes + 1):
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


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
