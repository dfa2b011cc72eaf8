"""`POST /v2/hybrid/prepare`: a device asks for the cuts and tail times of a model and shape key."""

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from hybrid.hosting.http_replies import json_reply
from hybrid.serving.rest.repository import decoded
from hybrid.serving.rest.service import InferenceService
from hybrid.serving.split.tail_shelf import PreparedReply


class PrepareCall(msgspec.Struct, frozen=True):
    """Body of the call; `shape_key` is the canonical text of docs/cuts.md."""

    model_digest: str
    shape_key: str


_prepare_call: Final = msgspec.json.Decoder(PrepareCall)


Prepare = Callable[[str, str], Awaitable[PreparedReply]]


def add_prepare_route(app: web.Application, service: InferenceService, answer: Prepare) -> None:
    """Serve the call. It answers at once with `ready`, `preparing` or `unknown`; ask again while it prepares."""

    async def prepare(request: web.Request) -> web.Response:
        service.require(request, "infer")
        call = await decoded(request, _prepare_call, service)
        return json_reply(await answer(call.model_digest, call.shape_key))

    app.router.add_post("/v2/hybrid/prepare", prepare)
