"""The HTTP calls by which attachments come and go: devices' profiles, publishers' calibrations."""

import asyncio
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.attachment_store import AttachmentStore
from cloud_gateway.registry import Registry
from cloud_gateway.uploads import Admit, answering, check_body, read_body
from hybrid.errors import BadMessage
from hybrid.hosting.identity import Identity
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.attachment_calls import FIND_PATH, PUT_PATH, AttachmentText, FindCall

_T = TypeVar("_T")

MAX_BODY_BYTES: Final = 4 << 20
"""A calibration of 1 MiB inside a JSON string takes at most twice as much."""

MAX_QUESTION_BYTES: Final = 64 << 10
MAX_ANSWER_BYTES: Final = 8 << 20
"""Of an answer; inside a JSON string a content takes at most twice its size. The newest that fit are told."""


def add_attachment_routes(
    app: web.Application, registry: Registry, store: AttachmentStore, admit: Admit, bodies: BodyBudget
) -> None:
    """Serve a store's attachments; docs/artifact.md describes both calls.

    Args:
        app: gets the routes.
        registry: only models that it holds may have attachments.
        store: where they are kept.
        admit: returns, or raises `Forbidden`.
        bodies: memory of all requests.
    """

    async def put(request: web.Request) -> web.StreamResponse:
        admit(request, "infer")
        check_body(request, MAX_BODY_BYTES)
        n_bytes = request.content_length or 0
        bodies.take(n_bytes)
        try:
            data = await read_body(request)
            attachment = await asyncio.to_thread(lambda: _decoded(data, AttachmentText).attachment())
            if attachment.kind != "profile":
                admit(request, "publish")
            await asyncio.to_thread(registry.by_digest, attachment.model_digest)
            who: Identity = request["identity"]
            return web.json_response({"sha256": await asyncio.to_thread(store.put, attachment, who.token_id)})
        finally:
            bodies.give(n_bytes)

    async def find(request: web.Request) -> web.StreamResponse:
        admit(request, "read")
        check_body(request, MAX_QUESTION_BYTES)
        call = _decoded(await read_body(request), FindCall)
        return web.Response(body=await asyncio.to_thread(told, call), content_type="application/json")

    def told(call: FindCall) -> bytes:
        found = store.find(call.model_digest, call.kind, call.variant, call.subject, most_bytes=MAX_ANSWER_BYTES // 2)
        return msgspec.json.encode({"attachments": [AttachmentText.of(attachment) for attachment in found]})

    app.router.add_post(PUT_PATH, answering(put))
    app.router.add_post(FIND_PATH, answering(find))


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc
