"""The box's HTTP calls around its outbox: results brought, requests deferred and their outcomes fetched."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from edge_agent.outbox.deferred import Answered, Deferred, Failed, Waiting
from edge_agent.outbox.deferred_request import Wanted, deferred_request
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.paths import DEFER, DEFERRED_PATH, OUTBOX_PATH, RESULTS_PATH
from hybrid.errors import BadMessage, Forbidden, TooLarge
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.identity import Right
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.rest.body import HEADER_LENGTH, Body, BodyLimits
from hybrid.serving.rest.json_tensor import list_of_array
from hybrid.serving.rest.message import InferReply, OutputTensor
from hybrid.wire.message import InferResponse, encode_response

MAX_RESULT_BYTES: Final = 16 << 20
Admit = Callable[[web.Request, Right], None]
_LIMITS: Final = BodyLimits(max_body_bytes=(64 << 20) + (1 << 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the calls need.

    Attributes:
        admit: returns, or raises `Forbidden`.
        bodies: memory of all requests.
        may_leave: whether inputs may leave this box.
    """

    outbox: Outbox
    deferred: Deferred
    admit: Admit
    bodies: BodyBudget
    may_leave: Callable[[], bool] = lambda: True


def add_outbox_routes(app: web.Application, parts: Parts) -> None:
    """Serve the calls; docs/agent.md describes them."""
    calls = _Calls(parts)
    app.router.add_get(OUTBOX_PATH, calls.show)
    app.router.add_post(RESULTS_PATH, calls.bring_result)
    app.router.add_post(DEFERRED_PATH + "/models/{name}", calls.defer)
    app.router.add_post(DEFERRED_PATH + "/models/{name}/versions/{version}", calls.defer)
    app.router.add_get(DEFERRED_PATH + "/{ticket}", calls.outcome)
    app.router.add_delete(DEFERRED_PATH + "/{ticket}", calls.forget)


def deferring(parts: Parts, can_compute: Callable[[str, str], bool]) -> Middleware:
    """A middleware that defers inference calls which ask for it with the header `Hybrid-Defer`.

    Args:
        parts: as for the routes.
        can_compute: whether a model (name, version) can be computed now, here or at a gateway.
    """
    calls = _Calls(parts)

    @web.middleware
    async def handle(request: web.Request, handler: Handler) -> web.StreamResponse:
        wish = request.headers.get(DEFER)
        name = request.match_info.get("name")
        if wish is None or name is None or not request.path.endswith("/infer") or request.method != "POST":
            return await handler(request)
        if wish not in ("always", "offline"):
            raise BadMessage(f"header {DEFER} is {wish[:20]!r}: always or offline are wanted")
        if wish == "offline" and can_compute(name, request.match_info.get("version", "")):
            return await handler(request)
        return await calls.defer(request)

    return handle


class _Calls:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, request: web.Request) -> web.StreamResponse:
        """What waits."""
        self._parts.admit(request, "read")
        return json_reply({"outbox": self._parts.outbox.status(), "deferred": self._parts.deferred.status()})

    async def bring_result(self, request: web.Request) -> web.StreamResponse:
        """A program's result, for the gateway: answered once it is on the disk."""
        self._parts.admit(request, "infer")
        suffix = request.query.get("stream", "")
        content = await self._content(request)
        kept = await self._parts.outbox.put("result", content, stream=f"result/{suffix}" if suffix else "")
        return json_reply({"stream": kept.stream, "epoch": kept.epoch, "seq": kept.seq}, status=202)

    async def defer(self, request: web.Request) -> web.StreamResponse:
        """Keep an inference call for the gateway."""
        self._parts.admit(request, "infer")
        if not self._parts.may_leave():
            raise Forbidden("inputs do not leave this box (--keep-inputs-here), so nothing is deferred to a gateway")
        wanted = Wanted(request.match_info["name"], request.match_info.get("version", ""))
        body = Body(request, _LIMITS, self._parts.bodies)
        try:
            ticket = await self._parts.deferred.take(await deferred_request(wanted, body))
        finally:
            body.release()
        href = f"{DEFERRED_PATH}/{ticket}"
        return json_reply({"ticket": ticket, "href": href}, status=202, headers={"Location": href})

    async def outcome(self, request: web.Request) -> web.StreamResponse:
        """An outcome, or how far it is."""
        self._parts.admit(request, "infer")
        ticket = request.match_info["ticket"]
        found = await self._parts.deferred.outcome(ticket, _seconds(request.query.get("wait_s", "0")))
        if isinstance(found, Waiting):
            told = {"ticket": ticket, "state": "sent" if found.is_sent else "queued", "waits_s": round(found.waits_s)}
            return json_reply(told, status=202, headers={"Retry-After": "30"})
        if isinstance(found, Failed):
            told = {"ticket": ticket, "state": "failed", "code": found.code, "error": found.detail}
            return json_reply(told, status=200)
        if "application/octet-stream" in request.headers.get("Accept", ""):
            return _binary(found)
        reply = await asyncio.to_thread(_reply, found.response)
        return json_reply(reply)

    async def forget(self, request: web.Request) -> web.StreamResponse:
        """Forget a request and its outcome."""
        self._parts.admit(request, "infer")
        ticket = request.match_info["ticket"]
        await self._parts.deferred.forget(ticket)
        return json_reply({"ticket": ticket, "forgotten": True})

    async def _content(self, request: web.Request) -> bytes:
        body = Body(request, BodyLimits(max_body_bytes=MAX_RESULT_BYTES), self._parts.bodies)
        if body.n_json is not None:
            raise BadMessage(f"{HEADER_LENGTH} has no meaning here; send the result's bytes as they are")
        try:
            content = await body.json()
        finally:
            body.release()
        if len(content) > MAX_RESULT_BYTES:
            raise TooLarge(f"a result of {len(content)} bytes: {MAX_RESULT_BYTES} are allowed")
        return content


def _binary(found: Answered) -> web.Response:
    encoded = encode_response(found.response)
    headers = {HEADER_LENGTH: str(len(encoded.header))}
    body = b"".join((encoded.header, *encoded.buffers))
    return web.Response(body=body, content_type="application/octet-stream", headers=headers)


def _reply(response: InferResponse) -> InferReply:
    """The answer as JSON of the Open Inference Protocol."""
    outputs: list[OutputTensor] = []
    for tensor in response.outputs:
        array = tensor.to_array()
        data = list_of_array(tensor.spec.name, tensor.spec.dtype, array)
        outputs.append(OutputTensor(tensor.spec.name, tensor.spec.dtype, list(array.shape), data=data))
    return InferReply(response.model_name, response.model_version, outputs, response.id)


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0.0 <= found <= 3600.0:
        raise BadMessage(f"wait_s is {text[:20]!r}: seconds are wanted, 0 to 60")
    return found
