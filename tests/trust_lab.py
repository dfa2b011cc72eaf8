"""Gateways of every character, real servers all: honest ones, relays with a key of their own, plain and mute ones."""

import asyncio
import datetime as dt
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from hybrid.errors import HybridError
from hybrid.hosting.auth import Tokens
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.tls import ServerCertificate, load_certificate, self_signed

LOOPBACK = "127.0.0.1"


@dataclass
class Gateway:
    """A running gateway that proves itself; `asked` are the queries and headers that reached it."""

    url: str
    port: int
    certificate: ServerCertificate
    asked: list[str] = field(default_factory=list)


@dataclass
class Relay:
    """A running man in the middle; `heard` is all that clients sent to it, decrypted."""

    url: str
    port: int
    heard: bytearray = field(default_factory=bytearray)


def certificate_in(
    folder: Path,
    *,
    not_before: dt.datetime = dt.datetime(1970, 1, 1, tzinfo=dt.UTC),
    not_after: dt.datetime = dt.datetime(9999, 12, 31, tzinfo=dt.UTC),
) -> ServerCertificate:
    """A new self-signed certificate for loopback."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    made = self_signed(key, ["localhost", LOOPBACK], not_before=not_before, not_after=not_after)
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "certificate.pem").write_bytes(made.public_bytes(Encoding.PEM))
    return load_certificate(folder / "certificate.pem", folder / "key.pem")


@asynccontextmanager
async def gateway(
    tokens: Tokens, certificate: ServerCertificate, *, port: int = 0, proves_as: ServerCertificate | None = None
) -> AsyncIterator[Gateway]:
    """A gateway with these tokens; `proves_as`: it binds another certificate's key into its proofs."""
    running = Gateway(url="", port=0, certificate=certificate)

    @web.middleware
    async def errors_as_json(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        running.asked.append(f"{request.rel_url} {dict(request.headers)}")
        try:
            return await handler(request)
        except HybridError as error:
            return web.json_response({"error": str(error)}, status=error.http_status)

    app = web.Application(middlewares=[errors_as_json])
    add_proof_route(app, tokens, lambda: (proves_as or certificate).spki_sha256)
    async with serving(app, certificate.context(), port=port) as bound:
        running.port, running.url = bound, f"https://{LOOPBACK}:{bound}"
        yield running


@asynccontextmanager
async def serving(app: web.Application, tls: ssl.SSLContext | None, *, port: int = 0) -> AsyncIterator[int]:
    """An application on loopback; yields its port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, port, ssl_context=tls, reuse_address=True).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(status: int, body: bytes, certificate: ServerCertificate) -> AsyncIterator[str]:
    """A TLS server that answers everything with the same; yields its URL."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    async with serving(app, certificate.context()) as port:
        yield f"https://{LOOPBACK}:{port}"


@asynccontextmanager
async def relay(target_port: int, certificate: ServerCertificate | None, *, port: int = 0) -> AsyncIterator[Relay]:
    """Passes everything on to a gateway: with a certificate it ends TLS itself, without one it forwards raw TCP."""
    running = Relay(url="", port=0)
    outgoing = None
    if certificate is not None:
        outgoing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        outgoing.check_hostname = False
        outgoing.verify_mode = ssl.CERT_NONE

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: bytearray | None) -> None:
        try:
            while data := await reader.read(65536):
                if heard is not None:
                    heard += data
                writer.write(data)
                await writer.drain()
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(LOOPBACK, target_port, ssl=outgoing)
        await asyncio.gather(pump(reader, there_writer, running.heard), pump(there_reader, writer, None))

    context = None if certificate is None else certificate.context()
    server = await asyncio.start_server(accept, LOOPBACK, port, ssl=context)
    running.port = server.sockets[0].getsockname()[1]
    running.url = f"https://{LOOPBACK}:{running.port}"
    try:
        yield running
    finally:
        server.close()
        await server.wait_closed()
