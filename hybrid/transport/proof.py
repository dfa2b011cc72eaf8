"""A device's question to a gateway that it does not know yet: prove that you hold my token.

Design: the certificate is not verified by date, name or authority, so that a device whose clock stands at 1970 can ask.
What counts is that the answer binds the public key which this very connection used. Only the token's public part and a
nonce are sent.
"""

import asyncio
import hashlib
import hmac
import secrets
import ssl
import time
from dataclasses import dataclass
from typing import Final

import aiohttp
import msgspec
from yarl import URL

from hybrid.errors import GatewayUnreachable, GatewayUntrusted, HybridError, Overloaded
from hybrid.transport.environment_proxy import EnvironmentProxy, environment_proxy
from hybrid.transport.http_reply import plainly
from hybrid.transport.proof_mac import NONCE_BYTES, proof_mac, spki_sha256
from hybrid.transport.token import Token

PROOF_PATH: Final = "/v2/hybrid/proof"
_MAX_ANSWER_BYTES: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A gateway that proved itself, or that carries the pinned certificate.

    Attributes:
        url: where it was asked.
        certificate_sha256: SHA-256 of its certificate's DER form, in hex: the pin for every later connection.
        rtt_s: seconds from the question to its answer on the open connection.
    """

    url: str
    certificate_sha256: str
    rtt_s: float


class _ProofAnswer(msgspec.Struct):
    nonce: str
    mac: str


class SeenCertificate(aiohttp.Fingerprint):
    """Notes the certificate of each new TLS connection before a request goes out; refuses all but a pinned one."""

    def __init__(self, pin_sha256: str | None = None) -> None:
        super().__init__(bytes.fromhex(pin_sha256) if pin_sha256 else bytes(32))
        self._pinned = pin_sha256 is not None
        self.certificate_der = b""

    def check(self, transport: asyncio.Transport) -> None:
        """Note the certificate; called by aiohttp after each TLS handshake."""
        if self._pinned:
            super().check(transport)
        tls = transport.get_extra_info("ssl_object")
        self.certificate_der = tls.getpeercert(binary_form=True) or b""


async def prove(url: str, token: str, *, timeout_s: float = 5.0, trust_env: bool = False) -> Proof:
    """Ask a gateway to prove that it holds this token; on return its certificate may be pinned.

    Args:
        url: `https://HOST:PORT`, with a path in front of `/v2` where there is one.
        token: the whole token; its secret stays here.
        timeout_s: for connecting, TLS and the answer together.
        trust_env: whether the proxies of the environment are used.

    Raises:
        GatewayUntrusted: it speaks no TLS or gave no valid proof; the message says which.
        GatewayUnreachable: no connection, or no answer in time.
        Overloaded: it is asked too often at the moment.
        Unauthenticated: `token` is no token.
    """
    parts = Token.parse(token)
    client_nonce = secrets.token_bytes(NONCE_BYTES)
    seen = SeenCertificate()
    question = {"token_id": parts.id, "nonce": client_nonce.hex()}
    status, body, rtt_s = await ask_seeing(url, PROOF_PATH, question, seen, timeout_s=timeout_s, trust_env=trust_env)
    server_nonce, mac = _parse(url, status, body)
    try:
        spki = spki_sha256(seen.certificate_der)
    except ValueError as exc:
        raise GatewayUntrusted(f"{url} showed a certificate that cannot be read: {exc}", url=url) from exc
    wanted = proof_mac(
        parts.key, token_id=parts.id, client_nonce=client_nonce, server_nonce=server_nonce, spki_sha256=spki
    )
    if not hmac.compare_digest(mac, wanted):
        raise GatewayUntrusted(
            f"{url} did not prove that it holds token {parts.id}: it is another gateway, it relays to one, "
            "or the token was revoked; check the token, or pin the gateway's certificate",
            url=url,
            token_id=parts.id,
        )
    return Proof(url=url, certificate_sha256=_sha256(seen.certificate_der), rtt_s=rtt_s)


async def meet_pinned(url: str, pin_sha256: str, *, timeout_s: float = 5.0, trust_env: bool = False) -> Proof:
    """Connect to a gateway that must carry the pinned certificate, and measure its RTT; no token is sent.

    Raises:
        GatewayUntrusted: it speaks no TLS, or carries another certificate.
        GatewayUnreachable: no connection, or no answer in time.
    """
    seen = SeenCertificate(pin_sha256)
    _, _, rtt_s = await ask_seeing(url, PROOF_PATH, {}, seen, timeout_s=timeout_s, trust_env=trust_env)
    return Proof(url=url, certificate_sha256=_sha256(seen.certificate_der), rtt_s=rtt_s)


async def ask_seeing(
    url: str,
    path: str,
    query: dict[str, str],
    seen: SeenCertificate,
    *,
    timeout_s: float,
    trust_env: bool,
) -> tuple[int, bytes, float]:
    """Status, body and RTT of one question over one fresh TLS connection, whose certificate is noted, not verified.

    Raises:
        GatewayUntrusted: no TLS, another certificate than the pinned one, or an endless answer.
        GatewayUnreachable: no connection, or no answer in time.
    """
    base = URL(url)
    if base.scheme != "https":
        raise GatewayUntrusted(f"{url} is not https: a gateway proves itself over TLS only", url=url)
    connected_s = 0.0
    proxy = await asyncio.to_thread(environment_proxy, base) if trust_env else EnvironmentProxy()

    async def on_sent(*_: object) -> None:
        nonlocal connected_s
        connected_s = time.perf_counter()

    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(on_sent)
    try:
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, ssl=seen),
                trace_configs=[trace],
                auto_decompress=False,
            ) as session,
            session.get(
                base.joinpath(path.lstrip("/")).with_query(query),
                proxy=proxy.url,
                proxy_headers=proxy.headers,
                allow_redirects=False,
            ) as response,
        ):
            rtt_s = time.perf_counter() - connected_s
            return response.status, await _read(url, response), rtt_s
    except HybridError:  # which are OSErrors too
        raise
    except aiohttp.ServerFingerprintMismatch as exc:
        raise GatewayUntrusted(
            f"{url} carries certificate {exc.got.hex()}, not the pinned {exc.expected.hex()}", url=url
        ) from exc
    except (aiohttp.ClientSSLError, ssl.SSLError) as exc:
        raise GatewayUntrusted(f"{url} does not speak TLS as a gateway does: {exc}", url=url) from exc
    except TimeoutError as exc:
        raise GatewayUnreachable(f"{url} gave no answer within {timeout_s} s", url=url) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise GatewayUnreachable(f"{url} could not be asked: {plainly(exc)}", url=url) from exc


async def _read(url: str, response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(_MAX_ANSWER_BYTES):
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise GatewayUntrusted(f"{url} answered the proof with more than {_MAX_ANSWER_BYTES} bytes", url=url)
    return bytes(body)


def _parse(url: str, status: int, body: bytes) -> tuple[bytes, bytes]:
    """Server nonce and MAC of an answer."""
    if status in {429, 503}:
        raise Overloaded(f"{url} is asked for too many proofs; try again later", url=url, retry_after_s=1.0)
    if status != 200:
        raise GatewayUntrusted(f"{url} has no proof to give (HTTP {status}): it is no gateway of this kind", url=url)
    try:
        answer = msgspec.json.decode(body, type=_ProofAnswer)
        nonce, mac = bytes.fromhex(answer.nonce), bytes.fromhex(answer.mac)
    except ValueError as exc:
        raise GatewayUntrusted(f"{url} answered with something else than a proof: {exc}", url=url) from exc
    if len(nonce) != NONCE_BYTES:
        raise GatewayUntrusted(f"{url} chose a nonce of {len(nonce)} bytes, not {NONCE_BYTES}", url=url)
    return nonce, mac


def _sha256(certificate_der: bytes) -> str:
    return hashlib.sha256(certificate_der).hexdigest()
