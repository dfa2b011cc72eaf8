"""The fleet's first calls over HTTP: hello, enrolment and access, which need no token and are limited in number."""

import asyncio
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.fleet.desk import FleetDesk
from cloud_gateway.uploads import answering, check_body, read_body
from hybrid.errors import BadMessage, Overloaded
from hybrid.fleet.messages import AccessCall, EnrollCall
from hybrid.fleet.signing import NONCE_BYTES
from hybrid.hosting.http_replies import json_reply
from hybrid.hosting.proof_route import RateLimit
from hybrid.transport.fleet_paths import ACCESS_PATH, ENROLL_PATH, HELLO_PATH

MAX_CALL_BYTES: Final = 16 << 10
_NONCE: Final = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}", re.ASCII)
_EVERYBODY: Final = ""
_T = TypeVar("_T")


class Gate:
    """How often a call that needs no token may be made: by one address, and in all."""

    def __init__(self, *, per_source: RateLimit, in_all: RateLimit) -> None:
        self._per_source = per_source
        self._in_all = in_all

    def check(self, request: web.Request) -> None:
        """Count one call.

        Raises:
            Overloaded: one too many.
        """
        now_s = asyncio.get_running_loop().time()
        if not self._per_source.allows(request.remote or "?", now_s) or not self._in_all.allows(_EVERYBODY, now_s):
            raise Overloaded("too many calls of this kind at once; try again in a second", retry_after_s=1.0)


def add_fleet_routes(app: web.Application, desk: FleetDesk, spki_sha256: Callable[[], bytes]) -> None:
    """Serve the calls by which boxes come in; docs/fleet.md describes them.

    Args:
        app: the gateway's application.
        desk: answers them.
        spki_sha256: gives SHA-256 of the public key of the certificate that is served with now; empty on plain HTTP.
    """
    # Many boxes may share one address, and come back from one outage together.
    hellos = Gate(per_source=RateLimit(per_s=100, burst=300), in_all=RateLimit(per_s=400, burst=800))
    accesses = Gate(per_source=RateLimit(per_s=100, burst=300), in_all=RateLimit(per_s=200, burst=400))
    enrolments = Gate(per_source=RateLimit(per_s=5, burst=50), in_all=RateLimit(per_s=20, burst=100))

    async def hello(request: web.Request) -> web.StreamResponse:
        hellos.check(request)
        nonce = request.query.get("nonce", "")
        if not _NONCE.fullmatch(nonce):
            raise BadMessage(f"a hello is asked for with nonce={2 * NONCE_BYTES} lower-case hex digits")
        told = desk.authority.hello(bytes.fromhex(nonce), spki_sha256())
        return json_reply(told, headers={"Cache-Control": "no-store"})

    async def enroll(request: web.Request) -> web.StreamResponse:
        enrolments.check(request)
        call = await body_of(request, EnrollCall)
        return json_reply(await asyncio.to_thread(desk.enroll, call, spki_sha256()))

    async def access(request: web.Request) -> web.StreamResponse:
        accesses.check(request)
        call = await body_of(request, AccessCall)
        answer = await asyncio.to_thread(desk.access, call, spki_sha256())
        return json_reply(answer, headers={"Cache-Control": "no-store"})

    app.router.add_get(HELLO_PATH, answering(hello))
    app.router.add_post(ENROLL_PATH, answering(enroll))
    app.router.add_post(ACCESS_PATH, answering(access))


async def body_of(request: web.Request, kind: type[_T], most_bytes: int = MAX_CALL_BYTES) -> _T:
    """The message in a request's JSON body.

    Raises:
        BadMessage, TooLarge, GatewayStalled: there is none.
    """
    check_body(request, most_bytes)
    data = await read_body(request)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the body is not what this call takes: {exc}") from exc
