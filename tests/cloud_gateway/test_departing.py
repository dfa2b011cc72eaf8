"""A gateway that is told to stop, or to forget a token, while clients are at it: nothing is lost, and no one stays."""

import asyncio
import json
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import aiohttp
import numpy as np
import onnxruntime as ort
import pytest

import hybrid
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.errors import Unauthenticated
from hybrid.wire.events import Connected, RequestFailed, ResponseReceived
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import zoo
from tests.cloud_gateway.test_drain import Talker, ends
from tests.live_gateway import HYBRID, LiveGateway
from tests.serving_push import push

pytestmark = pytest.mark.timeout(90)
MODEL = "ppocr_cls"
OFFLOAD = hybrid.Options(placement="offload", codec="none")
SLOW_UPLINK = Shape(up=Direction(rate_bps=1_500_000.0), down=Direction())
"""110 kB take about 0.6 s."""


def wanted(feeds: zoo.Feeds) -> np.ndarray:
    return ort.InferenceSession(str(zoo.path(MODEL))).run(None, feeds)[0]


def metric(gateway: LiveGateway, name: str) -> float:
    """The sum over all labels."""
    with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def n_inferences(gateway: LiveGateway) -> float:
    return metric(gateway, "hybrid_inferences_total")


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come about in time"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_request_on_its_way_is_answered_by_the_gateway_that_leaves_and_the_next_one_here(tmp_path: Path) -> None:
    feeds = zoo.feeds(MODEL, 1)
    with LiveGateway(tmp_path / "data", "--no-auth") as gateway, ShapedProxy(gateway.port) as link:
        push(gateway.url, zoo.path(MODEL), MODEL)
        with hybrid.InferenceSession(
            zoo.path(MODEL), gateway=f"http://127.0.0.1:{link.port}", options=OFFLOAD
        ) as session:
            assert session.prepare(feeds, timeout_s=30), session.explain()
            session.run(None, feeds)
            link.set(SLOW_UPLINK)
            kept: list[tuple[np.ndarray, str]] = []

            def run() -> None:
                outputs = session.run(None, feeds)
                kept.append((outputs[0], str(session.report and session.report.placement)))

            runner = threading.Thread(target=run)
            runner.start()
            until(lambda: metric(gateway, "hybrid_body_bytes") > 0)  # the gateway has begun to take it
            gateway.signal(signal.SIGTERM)
            runner.join(20)
            ((output, placement),) = kept
            np.testing.assert_allclose(output, wanted(feeds), atol=1e-4)
            assert placement == "offload"
            np.testing.assert_allclose(session.run(None, feeds)[0], wanted(feeds), atol=1e-4)
            assert session.report is not None
            assert session.report.placement == "local"
            assert session.report.fallback
            assert ends(gateway) == 0


@pytest.mark.slow
def test_clients_of_a_gateway_that_leaves_go_on_at_another_and_lose_nothing(tmp_path: Path) -> None:
    feeds = zoo.feeds(MODEL, 2)
    answer = wanted(feeds)
    with LiveGateway(tmp_path / "a", "--no-auth") as one, LiveGateway(tmp_path / "b", "--no-auth") as other:
        for gateway in (one, other):
            push(gateway.url, zoo.path(MODEL), MODEL)
        with hybrid.InferenceSession(zoo.path(MODEL), gateway=[one.url, other.url], options=OFFLOAD) as session:
            assert session.prepare(feeds, timeout_s=30), session.explain()
            at = [n_inferences(gateway) for gateway in (one, other)]
            session.run(None, feeds)
            leaving, staying = (one, other) if n_inferences(one) > at[0] else (other, one)
            stop = threading.Event()
            wrong: list[object] = []
            done = [0] * 3

            def client(number: int) -> None:
                while not stop.is_set():
                    try:
                        np.testing.assert_allclose(session.run(None, feeds)[0], answer, atol=1e-4)
                    except BaseException as exc:  # noqa: BLE001 (whatever it is, none may come)
                        wrong.append(exc)
                    done[number] += 1

            clients = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(3)]
            for each in clients:
                each.start()
            try:
                until(lambda: min(done) >= 10)
                leaving.signal(signal.SIGTERM)
                assert ends(leaving) == 0
                before = n_inferences(staying)
                until(lambda: n_inferences(staying) >= before + 10)
            finally:
                stop.set()
                for each in clients:
                    each.join(20)
            assert wrong == []


async def test_a_token_that_is_revoked_ends_on_the_channel_that_it_opened_within_a_second(tmp_path: Path) -> None:
    def gateway_token(*words: str) -> str:
        command = [str(HYBRID), "gateway", "token", *words, "--data", str(gateway.data)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    with LiveGateway(tmp_path / "data") as gateway:
        request = InferRequest(model_name="nobody", inputs=(Tensor.of("x", np.zeros(4, np.float32)),))
        made = await asyncio.to_thread(gateway_token, "create", "--role", "device", "--name", "box", "--json")
        token = json.loads(made)["data"]["token"]
        headers = {"Authorization": f"Bearer {token}"}
        await asyncio.sleep(1.0)  # a new one is known within a second as well
        async with (
            aiohttp.ClientSession(gateway.url, headers=headers) as session,
            session.ws_connect("/v2/hybrid/channel", max_msg_size=0) as ws,
        ):
            talker = Talker(ws)
            await talker.until(Connected)

            async def asked() -> Exception:
                talker.seen.clear()
                talker.channel.send_request(request, 0.0)
                event = await talker.until(RequestFailed)
                assert not any(isinstance(other, ResponseReceived) for other in talker.seen)
                return event.error

            assert (await asked()).code == "not_found"  # it may ask
            await asyncio.to_thread(gateway_token, "revoke", token.split("_")[1])
            revoked_s = time.monotonic()
            while not isinstance(error := await asked(), Unauthenticated):
                assert error.code == "not_found"
                assert time.monotonic() - revoked_s < 1.0  # docs/security.md: within a second
                await asyncio.sleep(0.01)
            assert isinstance(await asked(), Unauthenticated)
