"""Device, box, gateway: what a box passes on, what comes back, and that nothing goes round in circles."""

import asyncio
import json
import random
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton

import hybrid
from edge_agent.models.onward import Onward
from edge_agent.models.room import ModelRoom
from hybrid.errors import DeadlinePassed, NotFound
from hybrid.graph.shape_key import ShapeKey
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf
from hybrid.session.connected import Neighbourhood
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import small_models, zoo
from tests.edge_agent.model_room import ask, model_room, version
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

FEEDS = {"x": np.random.default_rng(5).standard_normal((1, 64)).astype(np.float32)}
KEY = ShapeKey.of(FEEDS).text


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_models.mlp(tmp_path_factory.mktemp("mlp") / "mlp.onnx")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, mlp: Path) -> "AsyncIterator[LiveGateway]":
    with LiveGateway(tmp_path_factory.mktemp("gateway") / "data", "--no-auth") as gateway:
        gateway.push(mlp, "mlp")
        yield gateway


@asynccontextmanager
async def box(tmp_path: Path, url: str) -> AsyncIterator[tuple[ModelRoom, Onward]]:
    async with model_room(tmp_path / "box", n_runs=1) as room:
        shelf = TailShelf(room.executor, tmp_path / "prepared")
        split = SplitService(room.executor, room.models, shelf, StatisticsBoard(), compute=room.compute)
        onward = Onward(split, shelf, room, lambda: Neighbourhood((url,), None))
        try:
            yield room, onward
        finally:
            await asyncio.to_thread(onward.close)


async def _until(condition: Callable[[], bool], patience_s: float = 20.0) -> None:
    async with asyncio.timeout(patience_s):
        while not condition():  # noqa: ASYNC110 (whatever thread makes it true)
            await asyncio.sleep(0.01)


async def _offered(onward: Onward, digest: str) -> None:
    async with asyncio.timeout(20):
        while (await onward.prepare(digest, KEY)).state != "ready":  # noqa: ASYNC110 (asked anew each time)
            await asyncio.sleep(0.05)


def _request(digest: str, **fields: object) -> InferRequest:
    return InferRequest(model_digest=digest, shape_key=KEY, inputs=(Tensor.of("x", FEEDS["x"]),), **fields)


async def test_a_model_that_only_the_gateway_has_is_answered_through_the_box(
    gateway: LiveGateway, mlp: Path, tmp_path: Path
) -> None:
    digest = version(mlp).model_digest
    async with box(tmp_path, gateway.url) as (_, onward):
        await _offered(onward, digest)
        response = await onward.infer(_request(digest))
        with hybrid.InferenceSession(mlp, gateway=None) as alone:
            np.testing.assert_allclose(response.outputs[0].to_array(), alone.run(None, FEEDS)[0], atol=1e-6)
        assert response.via == gateway.url
        assert onward.counts.n_passed_on == 1


async def test_what_was_passed_on_once_is_not_passed_on_again(gateway: LiveGateway, mlp: Path, tmp_path: Path) -> None:
    digest = version(mlp).model_digest
    async with box(tmp_path, gateway.url) as (_, onward):
        await _offered(onward, digest)
        with pytest.raises(NotFound):
            await onward.infer(_request(digest, hops=1))


async def test_an_idle_box_computes_a_tail_itself_and_a_busy_one_passes_it_on(
    gateway: LiveGateway, mlp: Path, tmp_path: Path
) -> None:
    """The plan is made for each request: here while the box is idle, beyond while long runs wait before it."""
    digest = version(mlp).model_digest
    slow = zoo.feeds("ppocr_det")
    async with box(tmp_path, gateway.url) as (room, onward):
        await room.host.answer(version(mlp, "mlp"))
        await room.host.answer(version(zoo.path("ppocr_det"), "slow"))
        await ask(room, "slow", slow)
        await _offered(onward, digest)
        known = onward._link.known[digest, KEY]
        while known.holding is None or known.state != "ready":
            await onward.prepare(digest, KEY)
            await asyncio.sleep(0.05)
        shelf, shape_id = onward._shelf, ShapeKey.parse(KEY).id
        table = shelf.prepared_of((digest, shape_id)).table
        timed = [cut for cut, tail_s in known.holding.tails.items() if tail_s is not None]
        cut = next(cut for cut in timed if table.get(cut).kind == "interior")
        await _until(lambda: shelf.known_s(digest, shape_id, cut) is not None)
        head = _crossing(shelf, room, digest, cut)
        request = InferRequest(model_digest=digest, shape_key=KEY, cut=cut, inputs=head)
        wanted = (await ask(room, "mlp", FEEDS)).outputs[0]
        for _ in range(3):
            here = await onward.infer(request)
            np.testing.assert_allclose(here.outputs[0].to_array(), wanted, atol=1e-5)
            assert here.via == ""
        flood = [asyncio.ensure_future(ask(room, "slow", slow)) for _ in range(12)]
        await _until(lambda: room.executor.pool.n_waiting > 6)
        beyond = await onward.infer(request)
        np.testing.assert_allclose(beyond.outputs[0].to_array(), wanted, atol=1e-5)
        assert beyond.via == gateway.url
        await asyncio.gather(*flood)


def _crossing(shelf: TailShelf, room: ModelRoom, digest: str, cut_id: str) -> tuple[Tensor, ...]:
    prepared = shelf.prepared_of((digest, ShapeKey.parse(KEY).id))
    cut = prepared.table.get(cut_id)
    if cut.kind == "input":
        return (Tensor.of("x", FEEDS["x"]),)
    import onnxruntime

    head = onnxruntime.InferenceSession(str(prepared.head_path(cut_id)))
    names = [spec.name for spec in cut.tensors]
    return tuple(Tensor.of(name, array) for name, array in zip(names, head.run(names, FEEDS), strict=True))


async def test_the_deadline_shrinks_on_the_way_and_a_frozen_gateway_costs_no_more(
    gateway: LiveGateway, mlp: Path, tmp_path: Path
) -> None:
    digest = version(mlp).model_digest
    async with box(tmp_path, gateway.url) as (_, onward):
        await _offered(onward, digest)
        await onward.infer(_request(digest))
        with pytest.raises(DeadlinePassed):
            await onward.infer(_request(digest, deadline_s=0.2), receive_s=0.3)
        gateway.signal(signal.SIGSTOP)
        try:
            began_s = time.monotonic()
            with pytest.raises(DeadlinePassed):
                await onward.infer(_request(digest, deadline_s=0.4), receive_s=0.1)
            assert time.monotonic() - began_s < 1.0
        finally:
            gateway.signal(signal.SIGCONT)


async def test_a_tail_whose_gateway_has_died_is_computed_by_the_box(mlp: Path, tmp_path: Path) -> None:
    with LiveGateway(tmp_path / "gateway", "--no-auth") as gateway:
        gateway.push(mlp, "mlp")
        digest = version(mlp).model_digest
        async with box(tmp_path, gateway.url) as (room, onward):
            await room.host.answer(version(mlp, "mlp"))
            await _offered(onward, digest)
            gateway.kill()
            response = await onward.infer(_request(digest))
            assert response.outputs[0].spec.shape == (1, 10)


def _free_ports(n: int) -> list[int]:
    """Ports below those that outgoing connections take, which nobody holds."""
    found: list[int] = []
    for port in random.sample(range(20000, 30000), 200):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == n:
            break
    return found


def test_two_boxes_that_are_each_others_gateway_end_quickly(mlp: Path, tmp_path: Path) -> None:
    """Neither holds the model: the device gets its answer from itself, and no request circles."""
    one, other = _free_ports(2)
    urls = f"http://127.0.0.1:{one}", f"http://127.0.0.1:{other}"
    with (  # noqa: SIM117 (two boxes, and then a device)
        LiveAgent(tmp_path / "a", {}, "--port", str(one), gateway=urls[1]),
        LiveAgent(tmp_path / "b", {}, "--port", str(other), gateway=urls[0]) as second,
    ):
        with hybrid.InferenceSession(mlp, gateway=second.url, options=hybrid.Options(placement="offload")) as session:
            began_s = time.monotonic()
            assert session.run(None, FEEDS)[0].shape == (1, 10)
            session.prepare(FEEDS, 3)
            session.run(None, FEEDS)
            assert session.report.placement == "local"
            assert time.monotonic() - began_s < 10


def _infer(url: str, **headers: str) -> tuple[int, dict]:
    body = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": FEEDS["x"].tolist()}]}
    call = urllib.request.Request(f"{url}/v2/models/mlp/infer", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(call, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_any_client_reaches_a_model_that_only_the_gateway_holds_and_may_wait_for_it(mlp: Path, tmp_path: Path) -> None:
    with LiveGateway(tmp_path / "gateway", "--no-auth") as gateway:
        gateway.push(mlp, "mlp")
        with LiveAgent(tmp_path / "box", {}, gateway=gateway.url) as agent:
            with hybrid.InferenceSession(mlp, gateway=None) as alone:
                wanted = alone.run(None, FEEDS)[0]
            status, reply = _infer(agent.url)
            assert status == 200, reply
            np.testing.assert_allclose(np.array(reply["outputs"][0]["data"]), wanted.ravel(), atol=1e-6)
            assert reply["parameters"] == {"hybrid_placement": "offload", "hybrid_gateway": gateway.url}
            with triton.InferenceServerClient(agent.url.removeprefix("http://")) as client:
                tensor = triton.InferInput("x", [1, 64], "FP32")
                tensor.set_data_from_numpy(FEEDS["x"])
                np.testing.assert_allclose(client.infer("mlp", [tensor]).as_numpy("y"), wanted, atol=1e-6)
            gateway.kill()
            end_s = time.monotonic() + 10
            while (status := _infer(agent.url))[0] != 404 and time.monotonic() < end_s:
                time.sleep(0.1)
            assert "Hybrid-Defer" in status[1]["error"]
            status, reply = _infer(agent.url, **{"Hybrid-Defer": "offline"})
            assert status == 202
            assert reply["ticket"]
