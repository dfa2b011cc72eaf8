"""GET /v2/hybrid/proof: the gateway proves to a device that it holds the device's token."""

import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from aiohttp import web

from hybrid.errors import BadMessage
from hybrid.hosting.auth import Tokens
from hybrid.transport.proof import PROOF_PATH
from hybrid.transport.proof_mac import NONCE_BYTES

_TOKEN_ID: Final = re.compile(r"[a-z2-7]{8}", re.ASCII)
_NONCE: Final = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}", re.ASCII)
_EVERYBODY: Final = ""
_MAX_SOURCES: Final = 4096


class RateLimit:
    """Token buckets by key, the least recently used forgotten first.

    Attributes:
        per_s: how many a second each key may have in the long run.
        burst: how many at once.
    """

    def __init__(self, *, per_s: float, burst: float) -> None:
        self.per_s = per_s
        self.burst = burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, key: str, now_s: float) -> bool:
        """Whether one more is within the limit; it counts if so."""
        left, at_s = self._left.pop(key, (self.burst, now_s))
        left = min(self.burst, left + (now_s - at_s) * self.per_s)
        allowed = left >= 1
        self._left[key] = (left - allowed, now_s)
        if len(self._left) > _MAX_SOURCES:
            self._left.popitem(last=False)
        return allowed

    def give_back(self, key: str) -> None:
        """What was counted last was of use: it does not count."""
        if key in self._left:
            left, at_s = self._left[key]
            self._left[key] = (min(self.burst, left + 1.0), at_s)


def add_proof_route(app: web.Application, tokens: Tokens, spki_sha256: Callable[[], bytes]) -> None:
    """Serve the proof; it must be reachable without a token, and only where this process itself ends TLS.

    Args:
        app: the gateway's application.
        tokens: whose proofs are given.
        spki_sha256: gives SHA-256 of the public key of the certificate that this gateway serves with now.
    """
    per_source, in_all = RateLimit(per_s=10, burst=20), RateLimit(per_s=200, burst=400)

    async def prove(request: web.Request) -> web.Response:
        now_s = time.monotonic()
        if not per_source.allows(request.remote or "?", now_s) or not in_all.allows(_EVERYBODY, now_s):
            body = {"error": "too many proofs asked for; try again in a second", "code": "overloaded"}
            return web.json_response(body, status=429, headers={"Retry-After": "1"})
        token_id, nonce = request.query.get("token_id", ""), request.query.get("nonce", "")
        if not _TOKEN_ID.fullmatch(token_id) or not _NONCE.fullmatch(nonce):
            raise BadMessage(f"a proof is asked for with token_id=ID and nonce={2 * NONCE_BYTES} lower-case hex digits")
        server_nonce = secrets.token_bytes(NONCE_BYTES)
        mac = tokens.proof(
            token_id, client_nonce=bytes.fromhex(nonce), server_nonce=server_nonce, spki_sha256=spki_sha256()
        )
        return web.json_response({"nonce": server_nonce.hex(), "mac": mac}, headers={"Cache-Control": "no-store"})

    app.router.add_get(PROOF_PATH, prove)
