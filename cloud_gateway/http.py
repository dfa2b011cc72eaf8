"""What every request passes: who is asking, errors as JSON, counting, and the refusal of new work while draining."""

import logging
from collections.abc import Callable
from time import monotonic, perf_counter
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

_KNOWN_S: Final = 20.0
_MAX_KNOWN: Final = 4096

IDENTITY: Final = "identity"
"""Key of the request under which handlers find who asks."""


def require(request: web.Request, right: Right) -> None:
    """Refuse a request whose sender lacks a right. Raises `Forbidden`."""
    identity: Identity = request[IDENTITY]
    identity.require(right)


def _ignore(name: str) -> None:
    """Nobody wants to know."""


class FrontDoor:
    """The gateway's one middleware.

    Attributes:
        meter: counts every request.
        is_draining: new work is refused from now on; what runs goes on.
        n_active: requests being handled, long-lived channels not among them.
        after_push: called with a model's name when a version of it was committed.
    """

    def __init__(self, tokens: Tokens | None, meter: RequestMeter) -> None:
        self._tokens = tokens
        self.meter = meter
        self.is_draining = False
        self.n_active = 0
        self.after_push: Callable[[str], object] = _ignore
        self._known: dict[str | None, tuple[Identity, float]] = {}

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle one request; whatever happens, the answer is a response."""
        started_s = perf_counter()
        counts = request.method != "GET" or "Upgrade" not in request.headers
        self.n_active += counts
        status = 499  # the client left: nobody sees this status, only the metrics do
        try:
            if request.path not in OPEN_PATHS:
                request[IDENTITY] = self._who(request.headers.get("Authorization"))
                if self.is_draining:
                    raise _draining()
            response = await handler(request)
            status = response.status
            if status == 201 and request.method == "POST" and request.path.endswith("/versions"):
                self.after_push(request.match_info["name"])
            return response
        except Exception as exc:  # noqa: BLE001 (whatever breaks inside is one failed request)
            refusal = _refusal(request, exc)
            status = refusal.status
            return refusal
        finally:
            self.n_active -= counts
            if counts:
                self.meter.observe(status, perf_counter() - started_s)

    def _who(self, authorization: str | None) -> Identity:
        """Who asks. A header seen shortly before costs one look whether its token still stands."""
        tokens = self._tokens
        known = self._known.get(authorization)
        now_s = monotonic()
        if known is not None and tokens is not None and now_s < known[1]:
            tokens.check(known[0])
            return known[0]
        identity = authenticate(authorization, tokens)
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[authorization] = (identity, now_s + _KNOWN_S)
        return identity


def _draining() -> Overloaded:
    return Overloaded("this gateway is shutting down; ask another one or try again", retry_after_s=5)


def _refusal(request: web.Request, error: Exception) -> web.Response:
    """The response to an error; what is not an answer at all is raised again."""
    if isinstance(error, HybridError):
        return error_reply(error)
    if isinstance(error, web.HTTPException) and error.status >= 400:
        return http_error_reply(error)
    if isinstance(error, web.HTTPException | ConnectionError):
        raise error
    _log.error("http.fault method=%s path=%s", request.method, request.path, exc_info=error)
    return json_reply({"error": "the gateway failed on this request; its log says more", "code": "error"}, status=500)
