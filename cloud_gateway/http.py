"""What every request passes: who is asking, errors as JSON, counting, and the refusal of new work while draining."""

import logging
from time import perf_counter
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler

from cloud_gateway.auth import Tokens, authenticate
from cloud_gateway.metrics import RequestMeter
from hybrid.errors import HybridError, Overloaded
from hybrid.serving.http_replies import error_reply, http_error_reply, json_reply
from hybrid.serving.identity import Identity, Right

_log = logging.getLogger("hybrid.gateway.http")

OPEN_PATHS: Final = frozenset({"/v2/health/live", "/v2/health/ready", "/v2/hybrid/proof"})
"""What needs no token: health tells nothing, and a proof is what a device asks before it shows its token."""

IDENTITY: Final = "identity"
"""Key of the request under which handlers find who asks."""


def require(request: web.Request, right: Right) -> None:
    """Refuse a request whose sender lacks a right. Raises `Forbidden`."""
    identity: Identity = request[IDENTITY]
    identity.require(right)


class FrontDoor:
    """The gateway's one middleware.

    Attributes:
        meter: counts every request.
        is_draining: new work is refused from now on; what runs goes on.
        n_active: requests being handled, long-lived channels not among them.
    """

    def __init__(self, tokens: Tokens | None, meter: RequestMeter) -> None:
        self._tokens = tokens
        self.meter = meter
        self.is_draining = False
        self.n_active = 0

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle one request; whatever happens, the answer is a response."""
        started_s = perf_counter()
        counts = "Upgrade" not in request.headers
        self.n_active += counts
        status = 499  # the client left: nobody sees this status, only the metrics do
        try:
            response = await self._answer(request, handler)
            status = response.status
            return response
        finally:
            self.n_active -= counts
            if counts:
                self.meter.observe(status, perf_counter() - started_s)

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.path not in OPEN_PATHS:
                request[IDENTITY] = authenticate(request.headers.get("Authorization"), self._tokens)
                if self.is_draining:
                    raise Overloaded("this gateway is shutting down; ask another one or try again", retry_after_s=5)
            return await handler(request)
        except HybridError as exc:
            return error_reply(exc)
        except web.HTTPException as exc:
            if exc.status < 400:
                raise
            return http_error_reply(exc)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 (logged; whatever breaks inside is one failed request)
            _log.exception("http.fault method=%s path=%s", request.method, request.path)
            body = {"error": "the gateway failed on this request; its log says more", "code": "error"}
            return json_reply(body, status=500)
