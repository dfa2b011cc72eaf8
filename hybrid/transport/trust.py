"""Who is that gateway: how a connection to it is verified before a token or an input goes there."""

import logging
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from hybrid.errors import GatewayUntrusted, Unauthenticated
from hybrid.transport.proof import prove
from hybrid.transport.token_source import Credential, TokenSource, text_of

PROOF_TIMEOUT_S: Final = 8.0

Tls = bool | aiohttp.Fingerprint
"""What aiohttp takes as `ssl`."""

_log = logging.getLogger("hybrid.transport")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How a gateway is verified: its pinned certificate, else its proof by token, else the web's authorities.

    Attributes:
        pin_sha256: SHA-256 of the gateway's certificate (DER), hex; nothing else is asked then.
        is_explicit: the caller named this URL. Only such a URL may be plain HTTP or be verified by the web's
            authorities; one that was discovered must prove itself.
    """

    pin_sha256: str | None = None
    is_explicit: bool = True


def showing(credential: Credential, url: URL) -> aiohttp.ClientMiddlewareType:
    """Makes each request of a session to this gateway show the token of the moment; one led elsewhere shows none."""

    async def show(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        token = text_of(credential)
        if token and (request.url.host, request.url.port) == (url.host, url.port):
            request.headers["Authorization"] = f"Bearer {token}"
        return await handler(request)

    return show


class Verifier:
    """Verifies one gateway, and remembers the certificate that proved itself."""

    def __init__(self, url: URL, token: Credential, trust: Trust) -> None:
        self._url = url
        self._token = token
        self._trust = trust
        self._proven: str | None = None
        self._is_asked = False

    def forget(self) -> None:
        """The gateway showed another certificate than the proven one: it must prove itself again."""
        self._proven = None
        self._is_asked = False

    async def tls(self) -> Tls:
        """What aiohttp takes as `ssl` for every connection to this gateway.

        Raises:
            GatewayUntrusted: no way of verifying it, or it failed its proof.
            GatewayUnreachable: it could not be asked for its proof.
        """
        if self._url.scheme != "https":
            return self._plain()
        pin_sha256 = self._trust.pin_sha256 or self._proven
        token = text_of(self._token)
        if token == "":
            raise Unauthenticated(f"there is no token for {self._url} at the moment; one is asked for")
        if pin_sha256 is None and token is not None and not self._is_asked:
            pin_sha256 = self._proven = await self._prove(token)
            self._is_asked = True
        if pin_sha256 is not None:
            return _fingerprint(pin_sha256)
        if not self._trust.is_explicit:
            raise GatewayUntrusted(
                f"{self._url} was discovered and there is neither pin nor token to verify it; give a token",
                url=str(self._url),
            )
        return True

    def _plain(self) -> bool:
        if not self._trust.is_explicit:
            raise GatewayUntrusted(
                f"{self._url} was discovered and speaks plain HTTP; discovered gateways need TLS, or name the URL",
                url=str(self._url),
            )
        if self._trust.pin_sha256 is not None:
            raise GatewayUntrusted(f"{self._url} is plain HTTP, which has no certificate to pin; use https")
        return True

    async def _prove(self, token: str) -> str | None:
        """The certificate that the gateway proved to be its own; None when the web's authorities must do."""
        try:
            proof = await prove(str(self._url), token, timeout_s=PROOF_TIMEOUT_S, trust_env=True)
        except (GatewayUntrusted, Unauthenticated) as exc:
            if not self._trust.is_explicit or isinstance(self._token, TokenSource):
                raise  # a token that is renewed proves the gateway sooner or later
            # A named gateway behind a proxy that ends TLS cannot prove the proxy's key: the web's authorities decide.
            _log.info("gateway.no_proof url=%s reason=%s", self._url, exc)
            return None
        return proof.certificate_sha256


def _fingerprint(pin_sha256: str) -> aiohttp.Fingerprint:
    try:
        digest = bytes.fromhex(pin_sha256.replace(":", ""))
        return aiohttp.Fingerprint(digest)
    except ValueError as exc:
        raise GatewayUntrusted(f"the pin {pin_sha256!r} is no SHA-256 in hex (64 digits)") from exc
