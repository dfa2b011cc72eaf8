"""Splits at a box: decoded where it holds them, passed on where only its gateway does, refused where nobody does."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from compression.bottleneck.prior import Prior
from compression.tensor import TensorSpec
from edge_agent.models.onward import Onward
from edge_agent.models.room import ModelRoom
from hybrid.errors import CorruptContent, NotFound, UnknownSplit, Warming
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.split.decoders import Decoders
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import PreparedReply, TailShelf
from hybrid.session.connected import Neighbourhood
from hybrid.wire.message import InferRequest, InferResponse
from hybrid.wire.tensor import Tensor
from tests.edge_agent.model_room import model_room, version
from tests.session.split_artifacts import CROSSING, SHAPE_KEY, Made, damage, feeds


@asynccontextmanager
async def box(folder: Path, urls: tuple[str, ...]) -> AsyncIterator[tuple[ModelRoom, Onward, BodyBudget]]:
    async with model_room(folder / "box", n_runs=1) as room:
        shelf, bodies = TailShelf(room.executor, folder / "prepared"), BodyBudget()
        decoders = Decoders(room.executor, room.answering.splits, bodies)
        split = SplitService(
            room.executor, room.models, shelf, StatisticsBoard(), bodies, compute=room.compute, decoders=decoders
        )
        onward = Onward(split, shelf, room, lambda: Neighbourhood(urls, None) if urls else None)
        try:
            yield room, onward, bodies
        finally:
            await asyncio.to_thread(onward.close)


@pytest.fixture(scope="module")
def request_and_answer(made: Made) -> tuple[InferRequest, np.ndarray]:
    """A request by the bottleneck, and what it gives."""
    folder = made.artifact.folder
    prior = Prior.from_json((folder / "prior.json").read_bytes())
    encoder, decoder, head, tail = (
        onnxruntime.InferenceSession(str(path))
        for path in (
            folder / "encoder.onnx",
            folder / "decoder.onnx",
            made.prepared.head_path(made.cut),
            made.prepared.tail_path(made.cut),
        )
    )
    latent = encoder.run(None, {encoder.get_inputs()[0].name: head.run([CROSSING], feeds())[0]})[0]
    spec = TensorSpec(name=CROSSING, dtype="FP32", shape=(1, 8, 32, 32))
    request = InferRequest(
        inputs=(Tensor(spec=spec, codec="split:learned", payload=prior.encode(latent)),),
        model_digest=made.artifact.manifest.model_digest,
        shape_key=SHAPE_KEY,
        cut=made.cut,
        split=made.digest("learned"),
    )
    return request, tail.run(None, {CROSSING: decoder.run(None, {"latent": latent})[0]})[0]


async def prepared(onward: Onward, digest: str) -> PreparedReply:
    async with asyncio.timeout(20):
        while (reply := await onward.prepare(digest, SHAPE_KEY)).state != "ready":  # noqa: ASYNC110 (asked anew)
            await asyncio.sleep(0.02)
    return reply


async def answered(onward: Onward, request: InferRequest) -> InferResponse:
    until_s = time.monotonic() + 20
    while True:
        try:
            return await onward.infer(request)
        except (Warming, NotFound):  # a gateway that is warming is left alone for a moment
            assert time.monotonic() < until_s
            await asyncio.sleep(0.02)


async def test_a_box_that_holds_the_artifact_decodes_itself(made, request_and_answer, tmp_path):
    request, wanted = request_and_answer
    async with box(tmp_path, ()) as (room, onward, bodies):
        await room.host.answer(version(made.model, "net", folder=made.artifact.folder))
        reply = await prepared(onward, request.model_digest)
        assert reply.splits == (request.split,)
        response = await answered(onward, request)
        np.testing.assert_allclose(response.outputs[0].to_array(), wanted, atol=1e-4)
        assert (response.via, bodies.n_bytes) == ("", 0)
        assert response.compute_s > 0
        kept = {key for key, _ in room.executor.sessions.sessions()}
        assert (made.artifact.manifest.files["decoder.onnx"].sha256, "decoder") in kept  # under the same budget


async def test_a_box_without_the_artifact_passes_it_on(made, holder, request_and_answer, tmp_path):
    request, wanted = request_and_answer
    async with box(tmp_path, (holder.url,)) as (_, onward, _):
        reply = await prepared(onward, request.model_digest)
        assert reply.splits == (request.split,)
        response = await answered(onward, request)
        np.testing.assert_allclose(response.outputs[0].to_array(), wanted, atol=1e-4)
        assert response.via == holder.url


async def test_a_box_with_the_model_alone_refuses_it(made, request_and_answer, tmp_path):
    request, _ = request_and_answer
    async with box(tmp_path, ()) as (room, onward, bodies):
        await room.host.answer(version(made.model, "net"))
        assert (await prepared(onward, request.model_digest)).splits == ()
        with pytest.raises(UnknownSplit, match="push the one that the device has"):
            await answered(onward, request)
        assert bodies.n_bytes == 0


@pytest.mark.parametrize("name", ["decoder.onnx", "prior.json"])
async def test_damaged_files_cost_that_split_alone(made, request_and_answer, tmp_path, name):
    request, _ = request_and_answer
    mine = made.copied(tmp_path / "net")
    damage(mine.artifact.path_of(name))
    async with box(tmp_path, ()) as (room, onward, bodies):
        await room.host.answer(version(mine.model, "net", folder=mine.artifact.folder))
        await prepared(onward, request.model_digest)
        for _ in range(2):
            with pytest.raises(CorruptContent, match="digest is not the manifest's"):
                await answered(onward, request)
        head = np.zeros((1, 8, 32, 32), np.float32)
        plain = replace(request, split="", inputs=(Tensor.of(CROSSING, head, "q8z"),))
        assert (await answered(onward, plain)).outputs[0].to_array().shape == (1, 10)
        assert bodies.n_bytes == 0
