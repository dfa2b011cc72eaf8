"""A fleet's gateway inside the test's own loop: real TLS, real desk, real tokens; and boxes' keys and calls by hand."""

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from cloud_gateway.fleet.admission.admin_routes import add_admin_routes
from cloud_gateway.fleet.admission.authority import authority_key
from cloud_gateway.fleet.admission.desk import FleetDesk
from cloud_gateway.fleet.admission.enrolment import EnrolmentWish
from cloud_gateway.fleet.admission.routes import Rates, add_fleet_routes
from cloud_gateway.fleet.admission.store import open_store
from edge_agent.trust.identity import BoxKey
from hybrid.fleet.enrolment_token import EnrolmentToken
from hybrid.fleet.messages import AccessAnswer, AccessCall, EnrollAnswer, EnrollCall
from hybrid.fleet.signing import access_bytes, enroll_bytes
from hybrid.hosting.auth import Tokens
from hybrid.hosting.front_door import FrontDoor, require
from hybrid.hosting.request_meter import RequestMeter
from hybrid.hosting.tls import ServerCertificate
from tests.trust_lab import certificate_in, serving

SPKI = bytes(range(32))


@dataclass
class SteppedWall:
    """A wall clock that stands until it is moved."""

    at_s: float = 1.8e9

    def __call__(self) -> float:
        return self.at_s


class Desk(FleetDesk):
    """A fleet's desk over a folder of its own, that can be closed."""

    def __init__(self, folder: Path, wall_s: Callable[[], float] = time.time) -> None:
        self.database, self.copy, self.was_restored = open_store(folder)
        super().__init__(self.database, authority_key(folder), wall_s=wall_s)

    def token(self, **wish: object) -> EnrolmentToken:
        """An enrolment token, without a root unless it is asked for."""
        return self.make_token(EnrolmentWish(**({"needs_root": False} | wish)), "tester")


@dataclass
class Caller:
    """A box's key, epoch and run, and its calls made by hand."""

    key: BoxKey = field(default_factory=BoxKey.fresh)
    epoch: str = field(default_factory=lambda: secrets.token_hex(16))
    run: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def box_id(self) -> str:
        return self.key.box_id

    def enroll_call(self, desk: Desk, token: EnrolmentToken, *, spki: bytes = SPKI, **changed: object) -> EnrollCall:
        nonce = desk.authority.hello(secrets.token_bytes(32), spki).nonce
        fields: dict[str, object] = {
            "token_id": token.id,
            "secret": token.secret,
            "box_key": self.key.public_key,
            "epoch": self.epoch,
            "nonce": nonce,
            "signature": self.key.sign(enroll_bytes(token.id, nonce, spki, self.epoch)),
            "name": "box",
        }
        return EnrollCall(**(fields | changed))

    def enroll(self, desk: Desk, token: EnrolmentToken, **changed: object) -> EnrollAnswer:
        return desk.enroll(self.enroll_call(desk, token, **changed), SPKI)

    def access_call(self, desk: Desk, *, spki: bytes = SPKI, **changed: object) -> AccessCall:
        nonce = desk.authority.hello(secrets.token_bytes(32), spki).nonce
        fields: dict[str, object] = {
            "box_id": self.box_id,
            "epoch": self.epoch,
            "run": self.run,
            "nonce": nonce,
            "signature": self.key.sign(access_bytes(self.box_id, self.epoch, self.run, nonce, spki)),
        }
        return AccessCall(**(fields | changed))

    def access(self, desk: Desk, **changed: object) -> AccessAnswer:
        return desk.access(self.access_call(desk, **changed), SPKI)

    def restarted(self, *, epoch: str | None = None) -> "Caller":
        """The same box after a start of its agent."""
        return Caller(key=self.key, epoch=epoch or self.epoch)


@dataclass
class FleetServer:
    """A running one; `asked` are the paths that were called. `loses` is one whose next answer gets lost on the way."""

    url: str
    port: int
    desk: Desk
    tokens: Tokens
    certificate: ServerCertificate
    admin: str
    asked: list[str] = field(default_factory=list)
    loses: str = ""

    def token(self, **wish: object) -> EnrolmentToken:
        """An enrolment token that names this server."""
        return self.desk.token(**({"url": self.url} | wish))


@asynccontextmanager
async def fleet_server(
    folder: Path,
    *,
    certificate: ServerCertificate | None = None,
    proves_as: ServerCertificate | None = None,
    port: int = 0,
    wall_s: Callable[[], float] = time.time,
    rates: Rates | None = None,
) -> AsyncIterator[FleetServer]:
    """A fleet's gateway with TLS on loopback.

    Args:
        folder: its data.
        certificate: what it serves with; by default a new one.
        proves_as: binds another certificate's key into its hellos, as a relay would have it.
        port: to serve on.
        wall_s: its clock.
        rates: of the calls that need no token.
    """
    served = certificate or certificate_in(folder / "tls")
    (folder / "fleet").mkdir(parents=True, exist_ok=True)
    desk, tokens = Desk(folder / "fleet", wall_s), Tokens(folder)
    try:
        tokens.lender = desk.access_tokens
        _, admin = tokens.create("admin", "tester")
        door = FrontDoor(tokens, RequestMeter())
        running = FleetServer(url="", port=0, desk=desk, tokens=tokens, certificate=served, admin=admin)

        @web.middleware
        async def noting(request: web.Request, handler):
            running.asked.append(request.path)
            answer = await handler(request)
            if request.path == running.loses:
                running.loses = ""
                request.transport.abort()
            return answer

        async def models(request: web.Request) -> web.Response:
            require(request, "read")
            return web.json_response({"models": []})

        app = web.Application(middlewares=[noting, door.handle])
        add_fleet_routes(app, desk, lambda: (proves_as or served).spki_sha256, rates or Rates())
        add_admin_routes(app, desk)
        app.router.add_get("/v2/hybrid/models", models)
        async with serving(app, served.context(), port=port) as bound:
            running.port, running.url = bound, f"https://127.0.0.1:{bound}"
            yield running
    finally:
        tokens.close()
        desk.database.close()
