"""What every request passes: who is asking, errors as JSON, counting, and the refusal of new work while draining."""

import logging
from ipaddress import ip_address
from time import monotonic, perf_counter
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from hybrid.errors import Forbidden, HybridError, Overloaded
from hybrid.hosting.auth import Tokens, authenticate
from hybrid.hosting.http_replies import error_reply, http_error_reply, json_reply
from hybrid.hosting.identity import Identity, Right
from hybrid.hosting.request_meter import RequestMeter
from hybrid.transport.fleet_paths import ACCESS_PATH, ENROLL_PATH, HELLO_PATH

_log = logging.getLogger("hybrid.gateway.http")

OPEN_PATHS: Final = frozenset(
    {"/v2/health/live", "/v2/health/ready", "/v2/hybrid/proof", HELLO_PATH, ENROLL_PATH, ACCESS_PATH}
)
"""What needs no token: health tells nothing, a proof or a hello is what is asked before a token is shown, and a box
enrols and gets its tokens by its own key."""

_KNOWN_S: Final = 20.0
_MAX_KNOWN: Final = 4096

IDENTITY: Final = "identity"
"""Key of the request under which handlers find who asks."""


def require(request: web.Request, right: Right) -> None:
    """Refuse a request whose sender lacks a right. Raises `Forbidden`."""
    identity: Identity = request[IDENTITY]
    identity.require(right)


class FrontDoor:
    """The one middleware of a service.

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
        self._known: dict[str | None, tuple[Identity, float]] = {}

    @web.middleware
    async def handle(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Handle one request; whatever happens, the answer is a response."""
        started_s = perf_counter()
        counts = request.method != "GET" or "Upgrade" not in request.headers
        self.n_active += counts
        status = 499  # the client left: nobody sees this status, only the metrics do
        try:
            if self._tokens is None:
                _check_no_page_asks(request)
            if request.path not in OPEN_PATHS:
                request[IDENTITY] = self._who(request.headers.get("Authorization"))
                if self.is_draining:
                    raise _draining()
            response = await handler(request)
            status = response.status
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


def _check_no_page_asks(request: web.Request) -> None:
    """Refuse what a web page may have sent: without tokens, every page open on this machine could ask for anything.

    Raises:
        Forbidden: the request has an origin, or came under another machine's name (a name that a page's owner points
            at loopback).
    """
    if "Origin" in request.headers:
        raise Forbidden("a web page's request (header Origin) is refused where no tokens are asked for")
    if not all(map(_is_local, request.headers.getall("Host", ()))):
        raise Forbidden("without tokens this service is asked as 127.0.0.1, [::1] or localhost only; use one of these")


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _draining() -> Overloaded:
    return Overloaded("this service is shutting down; ask another one or try again", retry_after_s=5)


def _refusal(request: web.Request, error: Exception) -> web.Response:
    """The response to an error; what is not an answer at all is raised again."""
    if isinstance(error, HybridError):
        return error_reply(error)
    if isinstance(error, web.HTTPException) and error.status >= 400:
        return http_error_reply(error)
    if isinstance(error, web.HTTPException | ConnectionError):
        raise error
    _log.error("http.fault method=%s path=%s", request.method, request.path, exc_info=error)
    return json_reply({"error": "the service failed on this request; its log says more", "code": "error"}, status=500)
