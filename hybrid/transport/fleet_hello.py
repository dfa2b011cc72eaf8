"""A box's first question to a gateway: prove that you are the authority that I was told of.

Design: the certificate is not verified by date, name or authority, so that a box whose clock stands at 1970 can ask,
and one whose gateway has a new certificate. What counts is that the authority signed the public key which this very
connection used. Nothing is sent but a nonce.
"""

import hashlib
import secrets
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from hybrid.errors import (
    GatewayStalled,
    GatewayUnreachable,
    GatewayUntrusted,
    HybridError,
    Overloaded,
    VersionUnsupported,
)
from hybrid.fleet.messages import PROTOCOL, Hello
from hybrid.fleet.signing import NONCE_BYTES, hello_bytes, is_signed_by_authority
from hybrid.transport.fleet_paths import HELLO_PATH
from hybrid.transport.http_reply import plainly, whole_body
from hybrid.transport.proof import SeenCertificate, ask_seeing
from hybrid.transport.proof_mac import spki_sha256

HELLO_TIMEOUT_S: Final = 15.0
PROTOCOLS_BACK: Final = 2
_MAX_ANSWER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A gateway that has shown that it is the authority.

    Attributes:
        url: where it was asked.
        hello: what it said.
        spki_sha256: of the key that the connection used; empty on plain HTTP, which is for loopback only.
        certificate_sha256: hex, to pin for the connections that follow; None on plain HTTP.
        protocol: the version of the fleet's calls that both sides speak.
    """

    url: str
    hello: Hello
    spki_sha256: bytes
    certificate_sha256: str | None
    protocol: int


async def meet(url: str, authority_sha256: bytes, *, timeout_s: float = HELLO_TIMEOUT_S, trust_env: bool = True) -> Met:
    """Ask a gateway who it is.

    Args:
        url: `https://HOST:PORT`; `http://` on loopback only.
        authority_sha256: fingerprint of the authority that is wanted.
        timeout_s: for connecting, TLS and the answer together.
        trust_env: whether the proxies of the environment are used.

    Raises:
        GatewayUntrusted: it is not that authority; the message says how that showed.
        GatewayUnreachable, GatewayStalled: no connection, or no answer in time.
        Overloaded: it is asked too often at the moment.
        VersionUnsupported: it is too old.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    question = {"nonce": nonce.hex(), "protocol": str(PROTOCOL)}
    base = _checked(url)
    seen = SeenCertificate()
    if base.scheme == "https":
        status, body, _ = await ask_seeing(url, HELLO_PATH, question, seen, timeout_s=timeout_s, trust_env=trust_env)
    else:
        status, body = await _ask_plainly(base.joinpath(HELLO_PATH.lstrip("/")).with_query(question), timeout_s)
    hello = _parsed(url, status, body)
    spki = b""
    if base.scheme == "https":
        try:
            spki = spki_sha256(seen.certificate_der)
        except ValueError as exc:
            raise GatewayUntrusted(f"{url} showed a certificate that cannot be read: {exc}", url=url) from exc
    _verify(url, hello, nonce, spki, authority_sha256)
    if hello.protocol < PROTOCOL - PROTOCOLS_BACK:
        raise VersionUnsupported(
            f"{url} speaks version {hello.protocol} of the fleet's calls, this box {PROTOCOL - PROTOCOLS_BACK} to "
            f"{PROTOCOL}; upgrade the gateway",
            mine=PROTOCOL,
            theirs=hello.protocol,
        )
    return Met(
        url=url,
        hello=hello,
        spki_sha256=spki,
        certificate_sha256=hashlib.sha256(seen.certificate_der).hexdigest() if spki else None,
        protocol=min(PROTOCOL, hello.protocol),
    )


def _verify(url: str, hello: Hello, nonce: bytes, spki: bytes, authority_sha256: bytes) -> None:
    if hashlib.sha256(hello.authority_key).digest() != authority_sha256:
        raise GatewayUntrusted(
            f"{url} is not the gateway that this box belongs to: its authority has another key; check the address",
            url=url,
        )
    message = hello_bytes(nonce, hello.nonce, spki, hello.time_s)
    if not is_signed_by_authority(hello.authority_key, hello.signature, message):
        raise GatewayUntrusted(
            f"{url} did not prove that it is this box's gateway: it is a rogue, or it relays to the true one "
            "(a proxy that ends TLS is one too); nothing was sent to it",
            url=url,
        )


def _checked(url: str) -> URL:
    try:
        base = URL(url)
        is_sound = base.scheme in {"http", "https"} and bool(base.host)
    except ValueError:
        is_sound = False
    if not is_sound:
        raise GatewayUnreachable(f"{url[:200]!r} is no gateway's address; https://HOST:PORT is wanted")
    if base.scheme == "http" and not is_loopback(base.host or ""):
        raise GatewayUntrusted(f"{url} is plain HTTP, which a box speaks with its own machine only; use https", url=url)
    return base


def is_loopback(host: str) -> bool:
    """Whether a host is this machine itself."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


async def _ask_plainly(url: URL, timeout_s: float) -> tuple[int, bytes]:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s), auto_decompress=False) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            return response.status, await whole_body(response, _MAX_ANSWER_BYTES)
    except HybridError:
        raise
    except TimeoutError as exc:
        raise GatewayStalled(f"{url.origin()} gave no answer within {timeout_s} s") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise GatewayUnreachable(f"{url.origin()} could not be asked: {plainly(exc)}") from exc


def _parsed(url: str, status: int, body: bytes) -> Hello:
    if status in {429, 503}:
        raise Overloaded(f"{url} is asked too often at the moment; try again later", url=url, retry_after_s=1.0)
    if status != 200:
        raise GatewayUntrusted(f"{url} has no hello to say (HTTP {status}): it is no gateway with a fleet", url=url)
    try:
        return msgspec.json.decode(body, type=Hello)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise GatewayUntrusted(f"{url} answered with something else than a hello ({exc})", url=url) from exc
