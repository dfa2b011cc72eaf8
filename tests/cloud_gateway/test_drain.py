"""The drain waits for transfers: requests that still arrive and answers that still leave, on channels and over HTTP."""

import asyncio
import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from onnx import TensorProto

from hybrid.serving.split.channel import CLOSE_TIMEOUT_S
from hybrid.wire.channel import Channel
from hybrid.wire.events import Connected, Event, GoawayReceived, RequestFailed, ResponseReceived
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import small_models
from tests.live_gateway import LiveGateway
from tests.serving_push import push

N_VALUES = 4_000_000
X = np.arange(N_VALUES, dtype=np.float32)
PAUSE_S = CLOSE_TIMEOUT_S + 1.5
"""Longer than channels and connections get when nothing is in flight."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path / "data", "--drain-s", "20") as running:
        model = small_models.echo(tmp_path / "echo.onnx", TensorProto.FLOAT, [N_VALUES])
        push(running.url, model, "echo", token=running.token)
        yield running


class Talker:
    """A client's channel driven by hand, so that it can pause."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self.channel = Channel("client", limits=Limits(), software="talker", now_s=0.0)
        self.seen: list[Event] = []

    async def flush(self, limit_bytes: int = 1 << 40) -> None:
        while self.channel.has_frames and self.channel.sent_bytes < limit_bytes:
            await self._ws.send_bytes(self.channel.next_frames(32_768, 0.0))

    async def until(self, kind: type[Event], *, limit_bytes: int = 1 << 40) -> Event:
        """The first event of this kind; sends meanwhile, but no more payload than that."""
        async with asyncio.timeout(20):
            while not (found := [event for event in self.seen if isinstance(event, kind)]):
                await self.flush(limit_bytes)
                got = await self._ws.receive()
                assert got.type is aiohttp.WSMsgType.BINARY, (got, self.seen)
                self.seen += self.channel.receive(got.data, 0.0)
        return found[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["arriving", "leaving"])
async def test_a_transfer_on_a_channel_is_not_cut(gateway: LiveGateway, part: str) -> None:
    headers = {"Authorization": f"Bearer {gateway.token}"}
    async with (
        aiohttp.ClientSession(gateway.url, headers=headers) as session,
        session.ws_connect("/v2/hybrid/channel", max_msg_size=0) as ws,
    ):
        one = Talker(ws)
        await one.until(Connected)
        one.channel.send_request(InferRequest(model_name="echo", inputs=(Tensor.of("x", X),)), 0.0)
        limit_bytes = 100_000
        if part == "arriving":
            await one.flush(limit_bytes)
        else:
            limit_bytes = 1 << 40
            async with asyncio.timeout(20):
                while one.channel.received_bytes < 1_000_000:
                    await one.flush()
                    one.seen += one.channel.receive((await ws.receive()).data, 0.0)
        gateway.signal(signal.SIGTERM)
        await one.until(GoawayReceived, limit_bytes=limit_bytes)
        assert not any(isinstance(event, ResponseReceived | RequestFailed) for event in one.seen)
        await asyncio.sleep(PAUSE_S)
        event = await one.until(ResponseReceived)
        assert isinstance(event, ResponseReceived)
        np.testing.assert_array_equal(event.response.outputs[0].to_array(), X)
    assert await asyncio.to_thread(ends, gateway) == 0


@pytest.mark.slow
def test_an_answer_over_http_is_not_cut(gateway: LiveGateway) -> None:
    tensor = {"name": "x", "shape": [N_VALUES], "datatype": "FP32", "parameters": {"binary_data_size": X.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST /v2/models/echo/infer HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {gateway.token}\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + X.nbytes}\r\n"
        "Connection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        stream.sendall(head.encode() + header + X.tobytes())
        answer = stream.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200")
        gateway.signal(signal.SIGTERM)
        time.sleep(PAUSE_S)
        while piece := stream.recv(1 << 20):
            answer += piece
    assert answer.endswith(X[-1000:].tobytes())
    assert ends(gateway) == 0


def ends(gateway: LiveGateway) -> int:
    process = gateway._process
    assert process is not None
    return process.wait(20)
