"""The HTTP calls by which boxes bring what they have and fetch outcomes; the parts that answer know no HTTP."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.blobs import Upload
from cloud_gateway.fleet.intake.blobs import FleetBlobs
from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.intake.outcomes import Deferrals
from cloud_gateway.uploads import MAX_PIECE_BYTES, answering, check_body, read_body, take_body, upload_number
from hybrid.artifact.names import check_digest
from hybrid.errors import BadMessage, Conflict, NotFound
from hybrid.fleet.messages import IngestCall, OutcomesCall
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.fleet_paths import BLOBS_PATH, INGEST_PATH, OUTCOMES_PATH

MAX_INGEST_BYTES: Final = 8 << 20
MAX_OUTCOMES_BYTES: Final = 1 << 20
_T = TypeVar("_T")
BoxOf = Callable[[web.Request], str]


def add_ingest_routes(
    app: web.Application,
    ingest: Ingest,
    deferrals: Deferrals,
    blobs: FleetBlobs,
    *,
    box_of: BoxOf,
    bodies: BodyBudget,
) -> None:
    """Serve the calls of docs/fleet.md that bring and fetch.

    Args:
        app: gets the routes.
        ingest: stores what boxes bring.
        deferrals: has the outcomes.
        blobs: of boxes.
        box_of: the id of the admitted box that asks, or it raises.
        bodies: memory of all requests.
    """

    async def bring(request: web.Request) -> web.StreamResponse:
        box_id = box_of(request)
        check_body(request, MAX_INGEST_BYTES)
        n_bytes = request.content_length or 0
        bodies.take(n_bytes)
        try:
            call = await asyncio.to_thread(_decoded, await read_body(request), IngestCall)
            return _packed(await ingest.ingest(box_id, call))
        finally:
            bodies.give(n_bytes)

    async def fetch(request: web.Request) -> web.StreamResponse:
        box_id = box_of(request)
        check_body(request, MAX_OUTCOMES_BYTES)
        call = _decoded(await read_body(request), OutcomesCall)
        return _packed(await deferrals.outcomes(box_id, call))

    app.router.add_post(INGEST_PATH, answering(bring))
    app.router.add_post(OUTCOMES_PATH, answering(fetch))
    calls = _Blobs(blobs, box_of)
    path = BLOBS_PATH + "/{sha256}"
    app.router.add_route("HEAD", path, answering(calls.state))
    app.router.add_route("PATCH", path, answering(calls.receive))
    app.router.add_get(path, answering(calls.send), allow_head=False)


class _Blobs:
    """Resumable uploads to a box's own space, as those of models are."""

    def __init__(self, blobs: FleetBlobs, box_of: BoxOf) -> None:
        self._blobs = blobs
        self._box_of = box_of

    async def state(self, request: web.Request) -> web.StreamResponse:
        """How much of a blob is here."""
        box_id, sha256 = self._box_of(request), check_digest(request.match_info["sha256"])
        size = await asyncio.to_thread(self._blobs.size, box_id, sha256)
        if size >= 0:
            return web.Response(headers={"Upload-Offset": str(size), "Upload-Complete": "?1"})
        offset = await asyncio.to_thread(lambda: self._blobs.store(box_id).offset(sha256))
        headers = {"Upload-Offset": str(offset), "Upload-Complete": "?0"}
        return web.Response(status=200 if offset else 404, headers=headers)

    async def receive(self, request: web.Request) -> web.StreamResponse:
        """The next bytes of a blob; the last ones finish it."""
        box_id, sha256 = self._box_of(request), check_digest(request.match_info["sha256"])
        offset, total_bytes = upload_number(request, "Upload-Offset"), upload_number(request, "Upload-Length")
        check_body(request, MAX_PIECE_BYTES)
        if await asyncio.to_thread(self._blobs.size, box_id, sha256) >= 0:
            raise Conflict("this file is here already", upload_offset=total_bytes)
        await asyncio.to_thread(self._blobs.check_room, box_id, request.content_length or 0)
        upload = await self._begin(box_id, sha256, offset, total_bytes)
        try:
            await take_body(request, upload)
            is_complete = upload.is_complete
            if is_complete:
                await asyncio.to_thread(upload.finish)
            headers = {"Upload-Offset": str(upload.offset), "Upload-Complete": "?1" if is_complete else "?0"}
            return web.Response(status=201 if is_complete else 204, headers=headers)
        finally:
            await asyncio.shield(asyncio.to_thread(upload.close))

    async def _begin(self, box_id: str, sha256: str, offset: int, total_bytes: int) -> Upload:
        def begin() -> Upload:
            return self._blobs.store(box_id).begin(sha256, offset=offset, total_bytes=total_bytes)

        work = asyncio.ensure_future(asyncio.to_thread(begin))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait((work,))  # a thread cannot be cancelled: what it opened is closed
            if not work.cancelled() and work.exception() is None:
                await asyncio.to_thread(work.result().close)
            raise

    async def send(self, request: web.Request) -> web.StreamResponse:
        """The bytes of a box's own blob; aiohttp honours `Range`."""
        box_id, sha256 = self._box_of(request), check_digest(request.match_info["sha256"])
        path = await asyncio.to_thread(lambda: self._blobs.store(box_id).find(sha256))
        if path is None:
            raise NotFound("no such blob of this box on this gateway")
        return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc


def _packed(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(answer), content_type="application/msgpack")
