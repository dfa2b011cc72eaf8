"""The calls of boxes over HTTP; each handler only reads, asks the desk, and writes."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.rounds.course.masking import MOST_INPUT_BYTES
from cloud_gateway.rounds.desk import RoundsDesk
from cloud_gateway.uploads import answering, check_body, read_body
from hybrid.errors import BadMessage
from hybrid.federated.messages import INLINE_BYTES, EvaluationCall, SecureCall, TaskCall, UpdateCall
from hybrid.hosting.front_door import IDENTITY
from hybrid.hosting.identity import Identity
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.rounds_paths import EVALUATION_PATH, SECURE_PATH, STEPS_PATH, TASK_PATH, UPDATE_PATH

MAX_TASK_BYTES: Final = 64 << 10
MAX_UPDATE_BYTES: Final = INLINE_BYTES + MAX_TASK_BYTES
MAX_SECURE_BYTES: Final = MOST_INPUT_BYTES + (4 << 10)
_PACKED: Final = "application/msgpack"
_T = TypeVar("_T")
BoxOf = Callable[[Identity, str | None], str]


def add_rounds_routes(app: web.Application, desk: RoundsDesk, *, box_of: BoxOf, bodies: BodyBudget) -> None:
    """Serve the calls of docs/rounds.md.

    Args:
        app: gets the routes.
        desk: answers.
        box_of: the id of the admitted box that asks, in the epoch that it says (None: it says none), or it raises.
        bodies: memory of all requests.
    """

    async def call_of(request: web.Request, kind: type[_T], most_bytes: int) -> _T:
        box_of(request[IDENTITY], None)
        check_body(request, most_bytes)
        n_bytes = request.content_length or 0
        bodies.take(n_bytes)
        try:
            return _decoded(await read_body(request), kind)
        finally:
            bodies.give(n_bytes)

    async def task(request: web.Request) -> web.StreamResponse:
        call = await call_of(request, TaskCall, MAX_TASK_BYTES)
        return _packed(await desk.task(box_of(request[IDENTITY], call.epoch), call))

    async def update(request: web.Request) -> web.StreamResponse:
        call = await call_of(request, UpdateCall, MAX_UPDATE_BYTES)
        return _packed(await desk.update(box_of(request[IDENTITY], call.epoch), call))

    async def evaluation(request: web.Request) -> web.StreamResponse:
        call = await call_of(request, EvaluationCall, MAX_TASK_BYTES)
        return _packed(await desk.evaluation(box_of(request[IDENTITY], call.epoch), call))

    async def secure(request: web.Request) -> web.StreamResponse:
        call = await call_of(request, SecureCall, MAX_SECURE_BYTES)
        return _packed(await desk.secure(box_of(request[IDENTITY], call.epoch), call))

    async def weights(request: web.Request) -> web.StreamResponse:
        box_id = box_of(request[IDENTITY], None)
        step, have = _number(request.match_info["step"]), _number(request.match_info["have"])
        found = await desk.weights(box_id, request.match_info["campaign"], step, have)
        data = await asyncio.to_thread(msgspec.msgpack.encode, found)
        first = _first_byte(request.headers.get("Range", ""), len(data))
        headers = {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"} if first else None
        return web.Response(status=206 if first else 200, body=data[first:], headers=headers, content_type=_PACKED)

    app.router.add_post(TASK_PATH, answering(task))
    app.router.add_post(UPDATE_PATH, answering(update))
    app.router.add_post(EVALUATION_PATH, answering(evaluation))
    app.router.add_post(SECURE_PATH, answering(secure))
    app.router.add_get(STEPS_PATH, answering(weights), allow_head=False)


def _decoded(data: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc


def _packed(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(answer), content_type=_PACKED)


def _number(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or not text.isascii() or len(text) > 12:
        raise BadMessage(f"{text[:40]!r} is no whole number")
    return int(text)


def _first_byte(text: str, n_bytes: int) -> int:
    """Where a `Range: bytes=N-` begins; 0 without one."""
    if not text:
        return 0
    number = text.removeprefix("bytes=").removesuffix("-")
    if not (number.isascii() and number.isdigit() and len(number) < 16 and int(number) < n_bytes):
        raise BadMessage(f"range {text[:40]!r}: bytes=N- within {n_bytes} bytes is wanted")
    return int(number)
