"""The HTTP calls by which attachments come and go: devices' profiles, publishers' calibrations."""

import asyncio
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.attachment_store import AttachmentStore
from cloud_gateway.registry import Registry
from cloud_gateway.uploads import Admit, answering, check_body, read_body
from hybrid.errors import BadMessage
from hybrid.serving.identity import Identity
from hybrid.transport.attachment_calls import FIND_PATH, PUT_PATH, AttachmentText, FindCall

_T = TypeVar("_T")

MAX_BODY_BYTES: Final = 4 << 20
"""A calibration of 1 MiB inside a JSON string takes at most twice as much."""

MAX_ANSWER_BYTES: Final = 8 << 20


def add_attachment_routes(app: web.Application, registry: Registry, store: AttachmentStore, admit: Admit) -> None:
    """Serve a store's attachments; docs/artifact.md describes both calls.

    Args:
        app: gets the routes.
        registry: only models that it holds may have attachments.
        store: where they are kept.
        admit: returns, or raises `Forbidden`.
    """

    async def put(request: web.Request) -> web.StreamResponse:
        admit(request, "infer")
        check_body(request, MAX_BODY_BYTES)
        attachment = _decoded(await read_body(request), AttachmentText).attachment()
        if attachment.kind != "profile":
            admit(request, "publish")
        await asyncio.to_thread(registry.by_digest, attachment.model_digest)
        who: Identity = request["identity"]
        return web.json_response({"sha256": await asyncio.to_thread(store.put, attachment, who.token_id)})

    async def find(request: web.Request) -> web.StreamResponse:
        admit(request, "read")
        check_body(request, MAX_BODY_BYTES)
        call = _decoded(await read_body(request), FindCall)
        found = await asyncio.to_thread(store.find, call.model_digest, call.kind, call.variant, call.subject)
        told, room_bytes = [], MAX_ANSWER_BYTES
        for attachment in found:
            room_bytes -= 2 * len(attachment.content)
            if room_bytes < 0:
                break
            told.append(AttachmentText.of(attachment))
        return web.Response(body=msgspec.json.encode({"attachments": told}), content_type="application/json")

    app.router.add_post(PUT_PATH, answering(put))
    app.router.add_post(FIND_PATH, answering(find))


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc
