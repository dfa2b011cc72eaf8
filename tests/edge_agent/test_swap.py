"""Another version answers: no request is lost, none is answered by a mixture, and counts begin anew."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybrid.errors import DigestMismatch, ModelInvalid, NotFound
from hybrid.graph.shape_key import ShapeKey
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import TailShelf
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests import small_models
from tests.edge_agent.model_room import ask, model_room, version

FEEDS = {"x": np.random.default_rng(3).standard_normal((1, 64)).astype(np.float32)}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        paths.append(small_models.mlp(tmp_path / str(seed) / "mlp.onnx", seed=seed))
    return paths


async def test_a_swap_under_load_loses_no_request_and_mixes_none(files: list[Path], tmp_path: Path) -> None:
    async with model_room(tmp_path / "data", n_runs=2) as room:
        await room.host.answer(version(files[0], number="1"))
        wanted = [(await ask(room, "m", FEEDS)).outputs[0]]
        await room.host.open(version(files[1], number="2"))
        assert room.models.opened("m", "").model.version == "1"
        found: list[np.ndarray] = []
        stop = asyncio.Event()

        async def load() -> None:
            while not stop.is_set():
                found.append((await ask(room, "m", FEEDS)).outputs[0])

        clients = [asyncio.ensure_future(load()) for _ in range(6)]
        for number in range(20):
            await asyncio.sleep(0.01)
            await room.host.answer(version(files[(number + 1) % 2], number=str((number + 1) % 2 + 1)))
        stop.set()
        await asyncio.gather(*clients)
        await room.host.answer(version(files[1], number="2"))
        wanted.append((await ask(room, "m", FEEDS)).outputs[0])
        assert not np.array_equal(*wanted)
        by_version = [sum(np.array_equal(answer, value) for answer in found) for value in wanted]
        assert sum(by_version) == len(found)
        assert min(by_version) > 0


async def test_the_same_version_string_with_other_content_answers_with_the_new_content(
    files: list[Path], tmp_path: Path
) -> None:
    async with model_room(tmp_path / "data") as room:
        await room.host.answer(version(files[0], number="7"))
        before = (await ask(room, "m", FEEDS)).outputs[0]
        await room.host.answer(version(files[1], number="7"))
        assert not np.array_equal(before, (await ask(room, "m", FEEDS)).outputs[0])
        assert (await room.models.open("m", "7")).model.path == files[1]


async def test_counts_begin_with_the_version_and_a_change_of_priority_alone_keeps_them(
    files: list[Path], tmp_path: Path
) -> None:
    async with model_room(tmp_path / "data") as room:
        await room.host.answer(version(files[0]))
        await ask(room, "m", FEEDS)
        await room.host.answer(version(files[0], priority=9))
        assert room.answering.priority(version(files[0]).model_digest) == 9
        assert room.host.runs("m").n_good == 1
        assert room.host.runs("m").by_place == {"local": 1}
        await room.host.answer(version(files[1], number="2"))
        assert room.host.runs("m").n_good == 0


async def test_a_version_that_cannot_be_opened_leaves_the_old_one(files: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "mlp.onnx"
    broken.parent.mkdir()
    broken.write_bytes(files[1].read_bytes()[:2000])
    async with model_room(tmp_path / "data") as room:
        await room.host.answer(version(files[0]))
        with pytest.raises(ModelInvalid):
            await room.host.answer(replace(version(files[1], number="2"), model_digest="f" * 64, path=broken))
        assert (await ask(room, "m", FEEDS)).outputs[0].shape == (1, 10)
        assert room.models.opened("m", "").model.version == "1"


async def test_a_model_that_is_dropped_answers_no_more_and_gives_its_memory_back(
    files: list[Path], tmp_path: Path
) -> None:
    async with model_room(tmp_path / "data") as room:
        await room.host.answer(version(files[0]))
        await room.host.drop("m")
        with pytest.raises(NotFound):
            await ask(room, "m", FEEDS)
        assert len(room.executor.sessions) == 0


async def test_after_a_swap_halves_of_the_old_digest_are_refused(files: list[Path], tmp_path: Path) -> None:
    """Heads and tails of different digests never meet."""
    async with model_room(tmp_path / "data") as room:
        split = SplitService(
            room.executor,
            room.models,
            TailShelf(room.executor, tmp_path / "p"),
            StatisticsBoard(),
            compute=room.compute,
        )
        await room.host.answer(version(files[0]))
        old = version(files[0]).model_digest
        request = InferRequest(model_digest=old, inputs=(Tensor.of("x", FEEDS["x"]),))
        assert (await split.infer(request)).outputs[0].spec.shape == (1, 10)
        await room.host.answer(version(files[1], number="2"))
        with pytest.raises(NotFound):
            await split.infer(request)
        assert (await split.prepare(old, ShapeKey.of(FEEDS).text)).state == "unknown"
        with pytest.raises((DigestMismatch, NotFound)):
            await split.infer(InferRequest(model_name="m", model_digest=old, inputs=request.inputs))
