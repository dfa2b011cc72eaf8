"""Tails and whole models by message: equal to the whole model, refused when anything does not match, prepared once."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from compression.tensor import TensorSpec
from hybrid.artifact.digest import model_digest
from hybrid.errors import (
    BadMessage,
    DeadlinePassed,
    DigestMismatch,
    HybridError,
    NotFound,
    Overloaded,
    PlanError,
    TensorMismatch,
    UnknownCut,
    Warming,
)
from hybrid.graph.shape_key import ShapeKey
from hybrid.partition.prepared import Prepared, prepare
from hybrid.serving.body_budget import BodyBudget
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.statistics import StatisticsBoard
from hybrid.serving.split.service import SplitService
from hybrid.serving.split.tail_shelf import PreparedReply, TailShelf
from hybrid.wire.message import InferRequest, InferResponse, OutputRequest
from hybrid.wire.tensor import Tensor
from tests import small_models

pytestmark = pytest.mark.timeout(60)


class Folder:
    """A source of a few models, all wanted."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = models
        self.unwanted: set[str] = set()

    def find(self, name: str, version: str) -> ServedModel:
        return self._first([model for model in self._models if model.name == name and version in ("", model.version)])

    def find_digest(self, model_digest: str) -> ServedModel:
        return self._first([model for model in self._models if model.model_digest == model_digest])

    def models(self) -> Sequence[ServedModel]:
        return self._models

    def wanted(self, name: str) -> bool:
        return name not in self.unwanted

    def want(self, name: str, *, loaded: bool) -> None:
        (self.unwanted.discard if loaded else self.unwanted.add)(name)

    def _first(self, found: list[ServedModel]) -> ServedModel:
        if not found:
            raise NotFound("no such model here")
        return found[0]


@dataclass
class Side:
    """The device's side of the same model, and the feeds of one request."""

    model: ServedModel
    prepared: Prepared
    feeds: dict[str, np.ndarray]
    whole: list[np.ndarray]

    @property
    def key(self) -> str:
        return self.prepared.shape_key.text

    def crossing(self, cut_id: str) -> tuple[Tensor, ...]:
        cut = self.prepared.table.get(cut_id)
        names = [spec.name for spec in cut.tensors]
        head = ort.InferenceSession(str(self.prepared.head_path(cut_id)))
        return tuple(Tensor.of(name, array) for name, array in zip(names, head.run(names, self.feeds), strict=True))


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Side:
    folder = tmp_path_factory.mktemp("side")
    (folder / "conv").mkdir()
    path = small_models.conv(folder / "conv" / "conv.onnx")
    digest = model_digest(path)
    feeds = {"x": np.random.default_rng(3).standard_normal((1, 3, 224, 224), dtype=np.float32)}
    prepared = prepare(path, digest, ShapeKey.of(feeds), folder / "device-cache")
    model = ServedModel(name="conv", version="1", model_digest=digest, path=path, classes=())
    return Side(model, prepared, feeds, ort.InferenceSession(str(path)).run(None, feeds))


@dataclass
class Running:
    split: SplitService
    models: LoadedModels
    source: Folder
    executor: Executor
    board: StatisticsBoard


@asynccontextmanager
async def gateway(side: Side, cache: Path) -> AsyncIterator[Running]:
    source = Folder([side.model])
    async with Executor(ExecutorSettings()) as executor:
        models, board = LoadedModels(source, executor), StatisticsBoard()
        await models.load_wanted()
        split = SplitService(executor, models, TailShelf(executor, cache), board)
        yield Running(split, models, source, executor, board)


async def warm(split: SplitService, request: InferRequest) -> InferResponse:
    """The answer, asked for again while the tail warms."""
    async with asyncio.timeout(40):
        while True:
            try:
                return await split.infer(request)
            except Warming as warming:
                assert warming.fields["retry_after_s"] > 0
                await asyncio.sleep(0.02)


async def ready(split: SplitService, side: Side) -> PreparedReply:
    async with asyncio.timeout(40):
        while (reply := await split.prepare(side.model.model_digest, side.key)).state != "ready":
            assert reply.state == "preparing"
            await asyncio.sleep(0.02)
        return reply


def same(response: InferResponse, side: Side) -> None:
    (output,) = response.outputs
    np.testing.assert_allclose(output.to_array(), side.whole[0], rtol=0, atol=1e-4 * np.abs(side.whole[0]).max())


@pytest.mark.usefixtures("blocking_calls_fail")
async def test_every_tail_worth_timing_equals_the_whole_model(side: Side, tmp_path: Path) -> None:
    async with gateway(side, tmp_path) as running:
        reply = await ready(running.split, side)
        table = side.prepared.table
        assert {cut.id for cut in reply.cuts} == {cut.id for cut in table.cuts if cut.kind != "output"}
        timed = {cut.id: cut.tail_s for cut in reply.cuts if cut.tail_s is not None}
        interior = [cut.id for cut in table.interior if cut.id in table.pareto]
        assert interior
        assert set(interior) <= set(timed)
        assert reply.whole_s is not None
        assert all(0 < seconds < 5 for seconds in [*timed.values(), reply.whole_s])
        for cut_id in interior:
            tensors = await asyncio.to_thread(side.crossing, cut_id)
            request = InferRequest(
                inputs=tensors, model_digest=side.model.model_digest, shape_key=side.key, cut=cut_id, id="7"
            )
            response = await warm(running.split, request)
            same(response, side)
            assert (response.model_name, response.model_version, response.id) == ("conv", "1", "7")
            assert response.compute_s > 0
        assert running.board.of("conv", "1").n_succeeded == len(interior)


async def test_a_cold_tail_says_warming_at_once_and_is_built_meanwhile(side: Side, tmp_path: Path) -> None:
    cut_id = side.prepared.table.interior[0].id
    request = InferRequest(
        inputs=side.crossing(cut_id), model_digest=side.model.model_digest, shape_key=side.key, cut=cut_id
    )
    async with gateway(side, tmp_path) as running:
        with pytest.raises(Warming):
            async with asyncio.timeout(1):
                await running.split.infer(request)
        same(await warm(running.split, request), side)


async def test_times_are_kept_for_the_next_start(side: Side, tmp_path: Path) -> None:
    async with gateway(side, tmp_path) as running:
        first = await ready(running.split, side)
    async with gateway(side, tmp_path) as running:
        again = await ready(running.split, side)
        assert len(running.executor.sessions) <= 1  # no tail was opened to time it
    assert again == first


async def test_whole_models_by_digest_by_name_and_by_the_input_cut(side: Side, tmp_path: Path) -> None:
    tensors = (Tensor.of("x", side.feeds["x"]),)
    digest = side.model.model_digest
    async with gateway(side, tmp_path) as running:
        same(await running.split.infer(InferRequest(inputs=tensors, model_digest=digest), 0.25), side)
        response = await running.split.infer(InferRequest(inputs=tensors, model_name="conv"), 0.25)
        same(response, side)
        assert response.receive_s == 0.25
        cut_id = side.prepared.table.cuts[0].id
        request = InferRequest(inputs=tensors, model_digest=digest, shape_key=side.key, cut=cut_id)
        same(await warm(running.split, request), side)


@pytest.mark.parametrize("codec", ["none", "lossless", "fp16"])
async def test_codecs_both_ways(side: Side, tmp_path: Path, codec: str) -> None:
    request = InferRequest(
        inputs=(Tensor.of("x", side.feeds["x"], codec),),
        outputs=(OutputRequest(name="y"),),
        model_digest=side.model.model_digest,
        output_codec=codec,
    )
    async with gateway(side, tmp_path) as running:
        (output,) = (await running.split.infer(request)).outputs
    assert output.codec == codec
    atol = 1e-2 if codec == "fp16" else 1e-5
    np.testing.assert_allclose(output.to_array(), side.whole[0], atol=atol * np.abs(side.whole[0]).max())


async def test_a_preparation_that_cannot_be_is_a_typed_error_and_not_warming_for_ever(
    side: Side, tmp_path: Path
) -> None:
    key = ShapeKey.of({"x": np.zeros((1, 3, 8, 8), np.float32)}).text
    async with gateway(side, tmp_path) as running:
        with pytest.raises(TensorMismatch):
            async with asyncio.timeout(40):
                while True:
                    assert (await running.split.prepare(side.model.model_digest, key)).state == "preparing"
                    await asyncio.sleep(0.02)


async def test_what_does_not_match_is_refused(side: Side, tmp_path: Path) -> None:
    digest, tensors = side.model.model_digest, (Tensor.of("x", side.feeds["x"]),)
    output_cut = side.prepared.table.cuts[-1].id
    refused: list[tuple[type[HybridError], dict[str, object]]] = [
        (NotFound, {"model_digest": "0" * 64}),
        (NotFound, {"model_name": "nobody"}),
        (BadMessage, {}),
        (BadMessage, {"model_name": "conv", "cut": "0" * 16}),
        (BadMessage, {"model_digest": digest, "cut": "0" * 16}),
        (BadMessage, {"model_digest": digest, "cut": "0" * 16, "shape_key": "[]"}),
        (UnknownCut, {"model_digest": digest, "cut": "0" * 16, "shape_key": side.key}),
        (PlanError, {"model_digest": digest, "cut": output_cut, "shape_key": side.key}),
        (NotFound, {"model_digest": digest, "model_name": "nobody"}),
        (TensorMismatch, {"model_digest": digest, "outputs": (OutputRequest(name="z"),)}),
        (TensorMismatch, {"model_digest": digest, "inputs": (Tensor.of("z", side.feeds["x"]),)}),
        (TensorMismatch, {"model_digest": digest, "inputs": (Tensor.of("x", side.feeds["x"][:, :1]),)}),
        (DeadlinePassed, {"model_digest": digest, "deadline_s": 0.0}),
    ]
    async with gateway(side, tmp_path) as running:
        await ready(running.split, side)
        for kind, fields in refused:
            with pytest.raises(kind):
                await running.split.infer(InferRequest(**{"inputs": tensors, **fields}))  # type: ignore[arg-type]
        assert (await running.split.prepare("0" * 64, side.key)).state == "unknown"
        assert running.split.n_active == 0


@pytest.mark.parametrize("shape", [(1, 3, 2048, 2048), (1, 3, 224, 223), (3, 224, 224)])
async def test_encoded_tensors_that_the_model_does_not_take_are_refused_before_they_are_decoded(
    side: Side, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    spec = TensorSpec(name="x", dtype="FP32", shape=shape)
    request = InferRequest(
        inputs=(Tensor(spec=spec, codec="lossless", payload=b"\xff" * 50),), model_digest=side.model.model_digest
    )
    async with gateway(side, tmp_path) as running:
        with pytest.raises(TensorMismatch, match="is wanted"):  # decoding would say that it does not decode
            await running.split.infer(request)


class Counting(ThreadPoolExecutor):
    """Counts what is given to threads."""

    n_submitted = 0

    def submit(self, *args: object, **fields: object) -> object:
        self.n_submitted += 1
        return super().submit(*args, **fields)  # type: ignore[arg-type]


async def test_few_bytes_that_decode_to_many_are_decoded_off_the_loop(side: Side, tmp_path: Path) -> None:
    tensor = Tensor.of("x", np.zeros((1, 3, 224, 224), np.float32), "lossless")
    assert tensor.n_bytes < 2000
    async with gateway(side, tmp_path) as running:
        request = InferRequest(inputs=(tensor,), model_digest=side.model.model_digest)
        threads = Counting(1)
        asyncio.get_running_loop().set_default_executor(threads)
        await running.split.infer(request)
        assert threads.n_submitted == 1


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (1, 3, 4096, 1024)])
async def test_what_a_message_decodes_to_is_held_of_the_budget(
    side: Side, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    tensor = Tensor.of("x", np.zeros(shape, np.float32), "lossless")
    request = InferRequest(inputs=(tensor,), model_digest=side.model.model_digest)
    n_bytes = tensor.spec.n_bytes
    assert tensor.n_bytes < 0.02 * n_bytes
    async with gateway(side, tmp_path) as running:
        running.split._bodies = BodyBudget(n_bytes - 1)
        with pytest.raises(TensorMismatch if shape[2] != 224 else Overloaded):
            await running.split.infer(request)
        assert running.split._bodies.peak_bytes == 0
        if shape[2] == 224:
            running.split._bodies = BodyBudget(n_bytes)
            await running.split.infer(request)
            assert (running.split._bodies.peak_bytes, running.split._bodies.n_bytes) == (n_bytes, 0)


async def test_who_leaves_while_a_message_is_decoded_is_held_until_the_thread_has_ended(
    side: Side, tmp_path: Path
) -> None:
    tensor = Tensor.of("x", side.feeds["x"], "lossless")
    request = InferRequest(inputs=(tensor,), model_digest=side.model.model_digest)
    async with gateway(side, tmp_path) as running:
        threads = ThreadPoolExecutor(1)
        asyncio.get_running_loop().set_default_executor(threads)
        gate = threading.Event()
        threads.submit(gate.wait)  # the decoding waits behind this
        asked = asyncio.ensure_future(running.split.infer(request))
        async with asyncio.timeout(10):
            while not running.split._bodies.n_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
            asked.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asked
            assert running.split._bodies.n_bytes == tensor.spec.n_bytes
            gate.set()
            while running.split._bodies.n_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("codec", ["jpeg", "lossless-webp"])
async def test_whatever_a_decoder_raises_is_the_senders_error(
    side: Side, tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    array = np.arange(3 * 224 * 224, dtype=np.float32).reshape(1, 3, 224, 224) % 200
    tensor = Tensor.of("x", array, codec)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow's DecompressionBombError is no OSError
    async with gateway(side, tmp_path) as running:
        with pytest.raises(TensorMismatch, match="decode"):
            await running.split.infer(InferRequest(inputs=(tensor,), model_digest=side.model.model_digest))
        assert running.split._bodies.n_bytes == 0


async def test_a_name_with_another_digest_is_never_composed(side: Side, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    path = small_models.mlp(tmp_path / "other" / "other.onnx")
    other = ServedModel(name="other", version="1", model_digest=model_digest(path), path=path)
    async with gateway(side, tmp_path / "cache") as running:
        running.source._models = [side.model, other]
        request = InferRequest(
            inputs=(Tensor.of("x", side.feeds["x"]),), model_name="other", model_digest=side.model.model_digest
        )
        with pytest.raises(DigestMismatch):
            await running.split.infer(request)


async def test_an_unloaded_model_has_no_tails_either(side: Side, tmp_path: Path) -> None:
    async with gateway(side, tmp_path) as running:
        await running.models.unload("conv")
        request = InferRequest(inputs=(Tensor.of("x", side.feeds["x"]),), model_digest=side.model.model_digest)
        with pytest.raises(NotFound, match="not loaded"):
            await running.split.infer(request)
        assert (await running.split.prepare(side.model.model_digest, side.key)).state == "unknown"


async def test_a_request_that_took_its_deadline_to_arrive_is_not_computed(side: Side, tmp_path: Path) -> None:
    request = InferRequest(
        inputs=(Tensor.of("x", side.feeds["x"]),), model_digest=side.model.model_digest, deadline_s=0.5
    )
    async with gateway(side, tmp_path) as running:
        with pytest.raises(DeadlinePassed, match="on its way"):
            await running.split.infer(request, 0.6)
        same(await running.split.infer(request, 0.01), side)
