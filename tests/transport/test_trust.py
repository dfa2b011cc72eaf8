"""Who the client talks to: pins, proofs, the web's authorities, and to whom it says nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from hybrid.errors import GatewayUntrusted
from hybrid.hosting.auth import Tokens
from hybrid.hosting.proof_route import add_proof_route
from hybrid.hosting.tls import ServerCertificate
from hybrid.serving.split.channel import add_routes
from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust, showing
from hybrid.wire.message import InferRequest, InferResponse
from tests import trust_lab
from tests.transport.conftest import ask

DISCOVERED = Trust(is_explicit=False)


@pytest.fixture
def tokens(tmp_path):
    (tmp_path / "data").mkdir()
    with Tokens(tmp_path / "data") as opened:
        yield opened


@pytest.fixture
def certificate(tmp_path) -> ServerCertificate:
    return trust_lab.certificate_in(tmp_path / "tls")


@asynccontextmanager
async def gateway(tokens: Tokens, certificate: ServerCertificate | None) -> AsyncIterator[tuple[int, list[str]]]:
    """A gateway with channel and proof; its port, and the tokens that it was shown."""
    shown: list[str] = []

    async def infer(request: InferRequest, receive_s: float) -> InferResponse:
        return InferResponse(model_name="m", outputs=request.inputs, receive_s=receive_s)

    def admit(request: web.Request) -> None:
        shown.append(request.headers.get("Authorization", ""))

    app = web.Application()
    add_routes(app, infer, admit)
    if certificate is not None:
        add_proof_route(app, tokens, lambda: certificate.spki_sha256)
    async with trust_lab.serving(app, certificate.context() if certificate else None) as port:
        yield port, shown


@asynccontextmanager
async def client(url: str, token: str | None, trust: Trust) -> AsyncIterator[GatewayClient]:
    """A client that has connected or failed to."""
    acquired = acquire(url, token, trust=trust)
    try:
        await asyncio.to_thread(acquired.wait_settled, 20)
        yield acquired
    finally:
        await asyncio.to_thread(release, acquired)


async def works(one: GatewayClient) -> bool:
    return len((await asyncio.wrap_future(one.infer(ask("m", 70_000), stall_s=5, timeout_s=5))).outputs) == 1


async def test_a_pinned_gateway_is_reached_over_tls(tokens, certificate):
    async with gateway(tokens, certificate) as (port, shown):
        pin = certificate.certificate_sha256
        async with client(f"https://127.0.0.1:{port}", "hyb_x", Trust(pin_sha256=pin, is_explicit=False)) as one:
            assert one.state == "ready", one.down_reason
            assert await works(one)
        assert shown == ["Bearer hyb_x"]


async def test_another_certificate_than_the_pinned_one_hears_nothing(tokens, certificate):
    async with gateway(tokens, certificate) as (port, shown):
        async with client(f"https://127.0.0.1:{port}", "hyb_x", Trust(pin_sha256="ab" * 32)) as one:
            assert one.state == "down"
            assert one.down_reason.startswith(GatewayUntrusted.code)
        assert shown == []


@pytest.mark.parametrize("trust", [Trust(), DISCOVERED], ids=["named", "discovered"])
async def test_a_gateway_that_proves_itself_needs_no_pin(tokens, certificate, trust):
    _, token = tokens.create("device", "board")
    async with gateway(tokens, certificate) as (port, shown):
        async with client(f"https://127.0.0.1:{port}", token, trust) as one:
            assert one.state == "ready", one.down_reason
            assert await works(one)
        assert set(shown) == {f"Bearer {token}"}


@pytest.mark.parametrize("trust", [Trust(), DISCOVERED], ids=["named", "discovered"])
async def test_a_gateway_without_proof_or_known_authority_hears_nothing(tokens, certificate, trust, tmp_path):
    (tmp_path / "other").mkdir()
    with Tokens(tmp_path / "other") as others:
        _, token = others.create("device", "board")
    async with gateway(tokens, certificate) as (port, shown):
        async with client(f"https://127.0.0.1:{port}", token, trust) as one:
            assert one.state == "down"
            assert one.down_reason.startswith(GatewayUntrusted.code)
        assert shown == []


@pytest.mark.parametrize(
    ("scheme", "token", "trust"),
    [
        ("http", "hyb_x", DISCOVERED),
        ("https", None, DISCOVERED),
        ("https", None, Trust()),
        ("https", "hyb_x", Trust(pin_sha256="not hex")),
        ("http", "hyb_x", Trust(pin_sha256="ab" * 32)),
    ],
    ids=["discovered-plain", "discovered-no-token", "self-signed", "bad-pin", "pin-without-tls"],
)
async def test_ways_that_are_not_taken(tokens, certificate, scheme, token, trust):
    async with gateway(tokens, certificate if scheme == "https" else None) as (port, shown):
        async with client(f"{scheme}://127.0.0.1:{port}", token, trust) as one:
            assert one.state == "down"
            assert one.down_reason.startswith(GatewayUntrusted.code)
        assert shown == []


async def test_plain_http_is_allowed_where_the_caller_named_it(tokens):
    async with gateway(tokens, None) as (port, _), client(f"http://127.0.0.1:{port}", None, Trust()) as one:
        assert await works(one)


async def test_the_proxy_of_the_environment_is_used(tokens, monkeypatch):
    seen: list[bytes] = []

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head.split(b"\r\n")[0])
        method, url, rest = head.split(b" ", 2)
        path = b"/" + url.split(b"/", 3)[3]
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
        there_writer.write(b" ".join([method, path, rest]))

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                sink.write(data)
            sink.close()

        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))

    async with gateway(tokens, None) as (port, _):
        proxy = await asyncio.start_server(forward, "127.0.0.1", 0)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        async with client("http://gateway.test:8700", None, Trust()) as one:
            assert one.state == "ready", one.down_reason
            assert await works(one)
        assert seen[0] == b"GET http://gateway.test:8700/v2/hybrid/channel HTTP/1.1"
        proxy.close()


async def test_a_token_does_not_follow_a_redirect() -> None:
    shown: list[str | None] = []

    def app_of(target: str) -> web.Application:
        async def answer(request: web.Request) -> web.Response:
            shown.append(request.headers.get("Authorization"))
            return web.Response() if not target else web.Response(status=307, headers={"Location": target})

        app = web.Application()
        app.router.add_get("/", answer)
        return app

    async with TestServer(app_of("")) as other, TestServer(app_of(str(other.make_url("/")))) as asked:
        url = asked.make_url("/")
        async with ClientSession(middlewares=(showing("the token", url),)) as session, session.get(url) as reply:
            assert reply.status == 200
    assert shown == ["Bearer the token", None]
