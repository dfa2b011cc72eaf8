"""The fleet's first calls over HTTP: hello, enrolment and access, which need no token and are limited in number."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
from aiohttp import web

from cloud_gateway.fleet.admission.desk import FleetDesk
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How often each call without a token may be made by one address: a second, and at once; in all four times that.

    Many boxes may share one address, and come back from one outage together.
    """

    hellos: tuple[float, float] = (100.0, 300.0)
    accesses: tuple[float, float] = (100.0, 300.0)
    enrolments: tuple[float, float] = (5.0, 50.0)


class Gate:
    """How often a call that needs no token may be made: by one address, and in all."""

    def __init__(self, rate: tuple[float, float]) -> None:
        per_s, burst = rate
        self._per_source = RateLimit(per_s=per_s, burst=burst)
        self._in_all = RateLimit(per_s=4 * per_s, burst=4 * burst)

    def check(self, request: web.Request) -> None:
        """Count one call.

        Raises:
            Overloaded: one too many.
        """
        now_s = asyncio.get_running_loop().time()
        if not self._per_source.allows(request.remote or "?", now_s) or not self._in_all.allows(_EVERYBODY, now_s):
            raise Overloaded("too many calls of this kind at once; try again in a second", retry_after_s=1.0)


def add_fleet_routes(
    app: web.Application, desk: FleetDesk, spki_sha256: Callable[[], bytes], rates: Rates = Rates()
) -> None:
    """Serve the calls by which boxes come in; docs/fleet.md describes them.

    Args:
        app: the gateway's application.
        desk: answers them.
        spki_sha256: gives SHA-256 of the public key of the certificate that is served with now; empty on plain HTTP.
        rates: how often they may be made.
    """
    hellos, accesses, enrolments = Gate(rates.hellos), Gate(rates.accesses), Gate(rates.enrolments)

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
