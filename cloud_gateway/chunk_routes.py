"""The two calls by which a box fetches only the chunks that it lacks; docs/chunks.md describes them."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.chunk_service import ChunkService
from cloud_gateway.uploads import Admit, admit_identity, answering, check_body, read_body
from hybrid.artifact.chunk_messages import IndexCall, RangesCall
from hybrid.errors import BadMessage, StorageError

_MAX_CALL_BYTES: Final = 64 << 10
_INDEXES_AT_ONCE: Final = 2
"""A herd that waits for the reading of one file must not hold every thread that the gateway has."""
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.chunks")


def add_chunk_routes(app: web.Application, chunks: ChunkService, admit: Admit = admit_identity) -> None:
    """Serve indexes and parts of files to whoever has the right `read`."""
    indexing = asyncio.Semaphore(_INDEXES_AT_ONCE)

    async def index(request: web.Request) -> web.StreamResponse:
        call = await _call(request, IndexCall)
        async with indexing:
            work = asyncio.ensure_future(asyncio.to_thread(chunks.index, call))
            try:
                answer = await asyncio.shield(work)
            except asyncio.CancelledError:
                await asyncio.wait((work,))  # its caller left, but a thread cannot be cancelled
                raise
        return web.Response(body=msgspec.msgpack.encode(answer), content_type="application/msgpack")

    async def ranges(request: web.Request) -> web.StreamResponse:
        call = await _call(request, RangesCall)
        n_bytes, blocks = await asyncio.to_thread(chunks.ranges, call)
        response = web.StreamResponse(
            headers={"Content-Length": str(n_bytes), "Content-Type": "application/octet-stream"}
        )
        await response.prepare(request)
        try:
            while block := await asyncio.to_thread(_next, blocks):
                await response.write(block)
            await response.write_eof()
        except StorageError as exc:
            _log.warning("chunks.broken_off sha256=%s reason=%r", call.sha256, str(exc))
            if request.transport is not None:
                request.transport.close()  # the length was promised: only a break says that it is not kept
        return response

    async def _call(request: web.Request, kind: type[_T]) -> _T:
        admit(request, "read")
        check_body(request, _MAX_CALL_BYTES)
        try:
            return msgspec.msgpack.decode(await read_body(request), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise BadMessage(f"the call does not parse ({exc}); is the program much older or newer?") from exc

    app.router.add_post("/v2/hybrid/chunks/index", answering(index))
    app.router.add_post("/v2/hybrid/chunks", answering(ranges))


def _next(blocks: Iterator[bytes]) -> bytes:
    return next(blocks, b"")
