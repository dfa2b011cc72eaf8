"""The gateway's end of the wire under hostile, slow and careless clients, in a real server process."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import numpy as np
import psutil
import pytest
from aiohttp import web

from hybrid.errors import Overloaded, TooLarge, Unauthenticated
from hybrid.hosting.http_replies import error_reply
from hybrid.serving.split import channel as split_channel
from hybrid.wire import frames
from hybrid.wire.channel import Channel
from hybrid.wire.events import Connected, Failed, GoawayReceived, PongReceived, RequestFailed, ResponseReceived
from hybrid.wire.frames import Kind
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse, decode_response, encode_request
from hybrid.wire.tensor import Tensor
from tests.transport.conftest import ServerProcess, ask
from tests.wire.corpus import broken_streams, lie, message, spoil

LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    running = ServerProcess("--message-bytes", "4000000")
    yield running
    running.close()


@asynccontextmanager
async def session_of(server: ServerProcess) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url, timeout=aiohttp.ClientTimeout(total=20)) as session:
        yield session


class Talker:
    """A client's channel driven by hand over a real WebSocket."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.channel = Channel("client", limits=Limits(), software="talker", now_s=0.0)

    async def flush(self) -> None:
        while self.channel.has_frames:
            await self.ws.send_bytes(self.channel.next_frames(32_768, 0.0))

    async def until(self, kind: type) -> object:
        """The first event of this kind, sending what falls due meanwhile."""
        async with asyncio.timeout(10):
            while True:
                await self.flush()
                got = await self.ws.receive()
                assert got.type is aiohttp.WSMsgType.BINARY, got
                for event in self.channel.receive(got.data, 0.0):
                    if isinstance(event, kind):
                        return event


@asynccontextmanager
async def talker(session: aiohttp.ClientSession) -> AsyncIterator[Talker]:
    async with session.ws_connect("/v2/hybrid/channel") as ws:
        yield Talker(ws)


async def answers(session: aiohttp.ClientSession) -> bool:
    """Whether a good request is still answered on both carriers."""
    encoded = encode_request(ask("echo", 100_000))
    body = encoded.header + b"".join(map(bytes, encoded.buffers))
    async with session.post("/v2/hybrid/infer", data=body, headers={LENGTH: str(len(encoded.header))}) as reply:
        data = await reply.read()
        n_header = int(reply.headers[LENGTH])
        plan = decode_response(data[:n_header], Limits())
        assert plan.n_body_bytes == 100_000 == len(data) - n_header
    async with talker(session) as one:
        await one.until(Connected)
        one.channel.send_request(ask("echo", 300_000), 0.0)
        event = await one.until(ResponseReceived)
        return event.response.outputs[0].n_bytes == 300_000


@pytest.mark.slow
async def test_broken_streams_do_not_hurt_the_server(server):
    rng = random.Random(5)
    process = psutil.Process(server.process.pid)
    async with session_of(server) as session:
        assert await answers(session)
        before = process.memory_info().rss
        for data in broken_streams(300, seed=99):
            async with session.ws_connect("/v2/hybrid/channel") as ws:
                step = rng.choice([50, 5000, len(data)])
                try:
                    for at in range(0, len(data), step):
                        await ws.send_bytes(data[at : at + step])
                except aiohttp.ClientConnectionResetError:
                    continue
                if rng.random() < 0.5:
                    async with asyncio.timeout(10):
                        await ws.send_bytes(frames.token_frame(Kind.PING, 1))
                        await ws.receive()
        assert await answers(session)
    assert process.memory_info().rss - before < 64 << 20


@pytest.mark.slow
async def test_broken_posts_get_a_4xx_in_json(server):
    rng = random.Random(6)
    statuses = set()
    async with session_of(server) as session:
        for _ in range(700):
            encoded = message(rng)
            header = lie(encoded.header, rng) if rng.random() < 0.5 else encoded.header
            body = header + b"".join(map(bytes, encoded.buffers))
            length = str(len(header))
            if rng.random() < 0.3:
                body = spoil(body, rng)
            if rng.random() < 0.2:
                length = rng.choice(["", "-1", "0", "1e3", "65537", str(2**63), "9" * 40, "²", str(len(body) + 1)])
            async with session.post("/v2/hybrid/infer", data=body, headers={LENGTH: length}) as reply:
                statuses.add(reply.status)
                assert reply.status < 500, (reply.status, header[:300])
                if reply.status >= 400:
                    assert isinstance((await reply.json())["error"], str)
                else:
                    await reply.read()
        assert statuses >= {200, 400, 413}
        assert await answers(session)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, b"{}", 400),
        ({LENGTH: "2"}, b"{}", 400),
        ({LENGTH: "70000"}, b" " * 70_000, 413),
        ({LENGTH: "14", "Content-Encoding": "gzip"}, b'{"inputs":[]}x', 400),
        ({LENGTH: "13"}, b'{"inputs":[]}trailing', 400),
        ({LENGTH: "13"}, b'{"inputs":[]', 400),
    ],
)
async def test_posts_that_are_wrong(server, headers, body, status):
    async with session_of(server) as session, session.post("/v2/hybrid/infer", data=body, headers=headers) as reply:
        assert reply.status == status
        assert "error" in await reply.json()


async def test_a_lying_size_is_refused_before_its_body_is_read(server):
    header = json.dumps(
        {"inputs": [{"name": "x", "shape": [2**30], "datatype": "UINT8", "parameters": {"binary_data_size": 2**30}}]}
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = f"POST /v2/hybrid/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {2**30 + len(header)}\r\n"
    writer.write(f"{head}{LENGTH}: {len(header)}\r\n\r\n".encode() + header)
    async with asyncio.timeout(5):
        status = await reader.readline()
        reply = await reader.readuntil(b"}")
    writer.transport.abort()
    await writer.wait_closed()
    assert status.startswith(b"HTTP/1.1 413 ")  # the words behind it differ between versions of Python
    assert json.loads(reply[reply.index(b"{") :])["code"] == TooLarge.code


async def test_the_hello_is_told_over_http_too(server):
    async with session_of(server) as session, session.get("/v2/hybrid/hello") as reply:
        hello = frames.parse_hello(await reply.read())
    assert hello is not None
    assert hello.max_message_bytes == 4_000_000


async def test_without_the_token_no_route_answers():
    running = ServerProcess("--token", "right")
    try:
        async with session_of(running) as session:
            for method, path in [("GET", "channel"), ("POST", "infer"), ("GET", "hello")]:
                async with session.request(method, f"/v2/hybrid/{path}") as reply:
                    assert reply.status == 401
                    assert (await reply.json())["code"] == Unauthenticated.code
                    assert reply.headers["WWW-Authenticate"].startswith("Bearer")
    finally:
        running.close()


async def test_a_text_message_ends_the_connection(server):
    async with session_of(server) as session, session.ws_connect("/v2/hybrid/channel") as ws:
        await ws.send_str("hello")
        async with asyncio.timeout(5):
            while (await ws.receive()).type is aiohttp.WSMsgType.BINARY:
                continue
        assert ws.closed


async def test_a_framing_fault_is_told_before_the_close(server):
    async with session_of(server) as session, talker(session) as one:
        await one.until(Connected)
        await one.ws.send_bytes(b"\xff" * 8)
        event = await one.until(Failed)
        assert event.error.code == "bad_frame"
        assert (await one.ws.receive()).type is aiohttp.WSMsgType.CLOSE
        assert one.ws.close_code == 1002


async def test_requests_of_one_connection_run_side_by_side(server):
    async with session_of(server) as session, talker(session) as one:
        await one.until(Connected)
        slow = one.channel.send_request(ask("slow:2"), 0.0)
        quick = one.channel.send_request(ask("echo"), 0.0)
        assert (await one.until(ResponseReceived)).stream == quick
        assert (await one.until(ResponseReceived)).stream == slow


async def test_receive_seconds_are_those_of_the_upload(server):
    async with session_of(server) as session, talker(session) as one:
        await one.until(Connected)
        one.channel.send_request(ask("echo", 30_000), 0.0)
        data = one.channel.next_frames(65_536, 0.0)
        await one.ws.send_bytes(data[:20_000])
        await asyncio.sleep(0.3)
        await one.ws.send_bytes(data[20_000:])
        event = await one.until(ResponseReceived)
        assert 0.25 < event.response.receive_s < 2.0


async def test_a_draining_server_tells_its_clients_and_takes_no_more():
    running = ServerProcess()
    try:
        async with session_of(running) as session, talker(session) as one:
            await one.until(Connected)
            kept = one.channel.send_request(ask("slow:0.5"), 0.0)
            await one.flush()
            one.channel.ping(0.0)
            await one.flush()
            running.process.terminate()
            goaway = await one.until(GoawayReceived)
            assert goaway.last_stream == kept
            assert isinstance(goaway.error, Overloaded)
            assert (await one.until(ResponseReceived)).stream == kept
    finally:
        running.close()


async def test_errors_of_the_handler_travel_by_their_code(server):
    async with session_of(server) as session, talker(session) as one:
        await one.until(Connected)
        one.channel.send_request(ask("error:warming"), 0.0)
        event = await one.until(RequestFailed)
        assert event.error.code == "warming"
        one.channel.send_request(ask("bug"), 0.0)
        event = await one.until(RequestFailed)
        assert "secret" not in str(event.error)


async def test_a_tensor_that_does_not_decode_is_one_failed_request(server):
    bad = Tensor(spec=Tensor.of("b", np.zeros(2, np.bool_)).spec, payload=b"\x07\x07")
    async with session_of(server) as session, talker(session) as one:
        await one.until(Connected)
        one.channel.send_request(InferRequest(model_name="echo", inputs=(bad,)), 0.0)
        assert (await one.until(RequestFailed)).error.code == "tensor_mismatch"
        one.channel.send_request(ask("echo"), 0.0)
        assert isinstance(await one.until(ResponseReceived), ResponseReceived)


def test_the_error_body_is_the_protocols():
    reply = error_reply(Overloaded("full", retry_after_s=0.2))
    assert reply.status == 503
    assert reply.headers["Retry-After"] == "1"
    assert msgspec.json.decode(reply.body) == {"error": "full", "code": "overloaded", "retry_after_s": 0.2}


@pytest.mark.parametrize(("code", "status"), [("engine_failed", 400), ("overloaded", 503)])
async def test_errors_of_a_post_are_told_as_on_every_other_route(server, code, status):
    encoded = encode_request(ask(f"error:{code}"))
    body = encoded.header + b"".join(map(bytes, encoded.buffers))
    headers = {LENGTH: str(len(encoded.header))}
    async with session_of(server) as session, session.post("/v2/hybrid/infer", data=body, headers=headers) as reply:
        assert reply.status == status
        assert (await reply.json())["code"] == code
        assert reply.headers["Retry-After"] == "1"


async def test_a_request_withdrawn_in_the_message_that_brought_it_leaves_nothing_behind():
    app = web.Application()
    split = split_channel.add_routes(app, nothing, lambda request: None)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with aiohttp.ClientSession(url) as session, talker(session) as one:
            await one.until(Connected)
            stream = one.channel.send_request(ask("echo"), 0.0)
            request = one.channel.next_frames(32_768, 0.0)
            one.channel.cancel(stream)
            await one.ws.send_bytes(request + one.channel.next_frames(32_768, 0.0))
            one.channel.ping(0.0)
            await one.until(PongReceived)
            (connection,) = split._connections
            assert connection._tasks == {}
            assert split.n_streams == 0
    finally:
        await runner.cleanup()


async def test_a_client_that_falls_silent_is_cut_off(monkeypatch):
    monkeypatch.setattr(split_channel, "IDLE_TIMEOUT_S", 0.3)
    app = web.Application()
    split_channel.add_routes(app, nothing, lambda request: None)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session,
            talker(session) as silent,
            talker(session) as lively,
        ):
            await silent.until(Connected)
            await lively.until(Connected)
            for _ in range(6):
                lively.channel.ping(0.0)
                await lively.until(PongReceived)
                await asyncio.sleep(0.1)
            assert (await silent.ws.receive()).type is aiohttp.WSMsgType.CLOSE
            assert not lively.ws.closed
    finally:
        await runner.cleanup()


async def nothing(request: InferRequest, receive_s: float) -> InferResponse:
    return InferResponse(model_name="nothing", receive_s=receive_s)
