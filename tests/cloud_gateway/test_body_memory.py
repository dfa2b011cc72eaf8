"""The memory of request bodies is bounded for the whole gateway, and one slow sender holds up nobody."""

import asyncio
import http.client
import json
import socket
import time
import urllib.request
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest

from hybrid.errors import Overloaded
from hybrid.serving.body_budget import BodyBudget
from hybrid.wire.channel import Channel
from hybrid.wire.events import Connected, RequestFailed, ResponseReceived
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import small_models
from tests.live_gateway import LiveGateway
from tests.serving_push import push

pytestmark = pytest.mark.timeout(60)
IMAGE = np.zeros((1, 3, 224, 224), np.float32)
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    folder = tmp_path_factory.mktemp("bodies")
    limits = ("--max-body-bytes", "1000000", "--body-memory-bytes", "1500000")
    with LiveGateway(folder / "data", "--no-auth", *limits, "--batching", "always") as running:
        push(running.url, small_models.mlp(folder / "mlp.onnx"), "mlp")
        push(running.url, small_models.conv(folder / "conv.onnx"), "conv")
        yield running


def posted(x: np.ndarray) -> tuple[bytes, dict[str, str]]:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + x.tobytes(), {LENGTH: str(len(header))}


def infer(gateway: LiveGateway, model: str, x: np.ndarray) -> tuple[int, dict[str, object], str | None]:
    body, headers = posted(x)
    stream = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        stream.request("POST", f"/v2/models/{model}/infer", body, headers)
        answer = stream.getresponse()
        return answer.status, json.loads(answer.read()), answer.headers["Retry-After"]
    finally:
        stream.close()


def stalled(gateway: LiveGateway) -> socket.socket:
    """A sender that stops just before the end of its image."""
    body, headers = posted(IMAGE)
    stream = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
    lines = ["POST /v2/models/conv/infer HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    stream.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body[:-1000])
    return stream


def metric(gateway: LiveGateway, name: str) -> float:
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    return float(next(line for line in text.splitlines() if line.startswith(f"{name} ")).rpartition(" ")[2])


def wait_for(gateway: LiveGateway, n_bytes: int) -> None:
    until_s = time.monotonic() + 10
    while metric(gateway, "hybrid_body_bytes") < n_bytes:
        assert time.monotonic() < until_s
        time.sleep(0.01)


def wait_for_none(gateway: LiveGateway) -> None:
    until_s = time.monotonic() + 10
    while metric(gateway, "hybrid_body_bytes"):
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_bodies_beyond_the_bound_are_refused_and_taken_again_when_others_left(gateway: LiveGateway) -> None:
    assert infer(gateway, "conv", IMAGE)[0] == 200
    slow = [stalled(gateway) for _ in range(2)]
    try:
        wait_for(gateway, 1_200_000)
        status, answer, retry_after = infer(gateway, "conv", IMAGE)
        assert (status, answer["code"], retry_after) == (503, "overloaded", "1")
        assert "1500000" in str(answer["error"])
        assert metric(gateway, "hybrid_body_refused_total") >= 1
        started_s = time.monotonic()  # the senders that stalled hold up no small request, nor the batch that it joins
        for _ in range(20):
            assert infer(gateway, "mlp", np.ones((1, 64), np.float32))[0] == 200
        assert time.monotonic() - started_s < 5
    finally:
        for stream in slow:
            stream.close()
    wait_for_none(gateway)
    assert infer(gateway, "conv", IMAGE)[0] == 200
    assert 1_200_000 < metric(gateway, "hybrid_body_peak_bytes") <= 1_500_000


def test_numbers_in_json_count_as_the_objects_that_they_become(gateway: LiveGateway) -> None:
    tensor = {"name": "x", "shape": IMAGE.shape, "datatype": "FP32", "data": [0] * IMAGE.size}
    body = json.dumps({"inputs": [tensor]}, separators=(",", ":")).encode()
    assert len(body) < 400_000  # and 150 528 numbers
    stream = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    try:
        stream.request("POST", "/v2/models/conv/infer", body)
        answer = stream.getresponse()
        assert (answer.status, json.loads(answer.read())["code"]) == (503, "overloaded")
    finally:
        stream.close()
    wait_for_none(gateway)


async def until(ws: aiohttp.ClientWebSocketResponse, channel: Channel, *kinds: type) -> object:
    async with asyncio.timeout(10):
        while True:
            while channel.has_frames:
                await ws.send_bytes(channel.next_frames(32_768, 0.0))
            for event in channel.receive((await ws.receive()).data, 0.0):
                if isinstance(event, kinds):
                    return event


async def test_the_same_bound_holds_on_channels_and_frees_what_a_lost_client_had(gateway: LiveGateway) -> None:
    slow = [stalled(gateway) for _ in range(2)]
    request = InferRequest(inputs=(Tensor.of("x", IMAGE),), model_name="conv")
    try:
        await asyncio.to_thread(wait_for, gateway, 1_200_000)
        async with (
            aiohttp.ClientSession(gateway.url) as session,
            session.ws_connect("/v2/hybrid/channel", max_msg_size=0) as ws,
        ):
            channel = Channel("client", limits=Limits(), software="test", now_s=0.0)
            await until(ws, channel, Connected)
            channel.send_request(request, 0.0)
            event = await until(ws, channel, RequestFailed, ResponseReceived)
            assert isinstance(event, RequestFailed)
            assert isinstance(event.error, Overloaded)
            for stream in slow:
                stream.close()
            await asyncio.to_thread(wait_for_none, gateway)
            channel.send_request(request, 0.0)
            event = await until(ws, channel, RequestFailed, ResponseReceived)
            assert isinstance(event, ResponseReceived)
            channel.send_request(request, 0.0)
            await ws.send_bytes(channel.next_frames(100_000, 0.0))  # the beginning of one, then the client is gone
        await asyncio.to_thread(wait_for_none, gateway)
    finally:
        for stream in slow:
            stream.close()


def test_a_budget_counts_what_it_gave_and_refuses_what_does_not_fit() -> None:
    budget = BodyBudget(100)
    budget.take(60)
    with pytest.raises(Overloaded, match="60 bytes, 50 more") as caught:
        budget.take(50)
    assert caught.value.fields["retry_after_s"] > 0
    budget.hold(50)  # what is here already counts, whatever the limit
    budget.give(110)
    budget.take(100)
    assert (budget.n_bytes, budget.peak_bytes, budget.n_refused) == (100, 110, 1)
