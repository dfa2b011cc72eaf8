"""Which version is newest: pushes, loads and unloads at once, versions that cannot be opened, what readiness says."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hybrid.errors import ModelInvalid, NotFound, StorageError
from hybrid.serving.engines.executor import Executor, ExecutorSettings
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from tests import small_models

pytestmark = pytest.mark.timeout(60)


class Shelf:
    """A source of the versions of one model, "m"; `want` waits for `may_want`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[ServedModel] = []
        self._wanted = True
        self.wanting = threading.Event()
        self.may_want = threading.Event()
        self.may_want.set()
        self.is_broken = False

    def push(self, version: str, *, is_sound: bool = True) -> None:
        path = self._folder / version / "m.onnx"
        path.parent.mkdir()
        if is_sound:
            small_models.mlp(path)
        else:
            path.write_bytes(b"no model")
        self._held.append(ServedModel(name="m", version=version, model_digest=version, path=path))

    def find(self, name: str, version: str) -> ServedModel:
        found = [model for model in self._held if model.name == name and version in ("", model.version)]
        if not found:
            raise NotFound("no such model here")
        return found[-1]

    def find_digest(self, model_digest: str) -> ServedModel:
        return self.find("m", model_digest)

    def models(self) -> Sequence[ServedModel]:
        if self.is_broken:
            raise StorageError("the disk is gone")
        return list(self._held)

    def wanted(self, name: str) -> bool:
        return self._wanted and name == "m"

    def want(self, name: str, *, loaded: bool) -> None:
        assert name == "m"
        if loaded:
            self.wanting.set()
            assert self.may_want.wait(20)
        self._wanted = loaded


class Gates(Executor):
    """An executor that notes which versions it was asked to open, and holds some of them back."""

    def __init__(self) -> None:
        super().__init__(ExecutorSettings())
        self.asked: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def open_whole(self, model: ServedModel) -> EngineSession:
        self.asked.append(model.version)
        if model.version in self.gates:
            await self.gates[model.version].wait()
        return await super().open_whole(model)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@asynccontextmanager
async def serving(shelf: Shelf, retry_failed_s: float = 60.0) -> AsyncIterator[tuple[LoadedModels, Gates]]:
    async with Gates() as executor:
        yield LoadedModels(shelf, executor, retry_failed_s=retry_failed_s), executor


async def until(condition: object, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 (tables without events)
            await asyncio.sleep(0.001)


def newest(models: LoadedModels) -> str | None:
    loaded = models.opened("m", "")
    return None if loaded is None else loaded.model.version


async def test_the_newest_version_never_goes_backwards(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, executor):
        await models.load_wanted()
        executor.gates["2"] = asyncio.Event()
        shelf.push("2")
        slow = asyncio.create_task(models.refresh("m"))
        await until(lambda: "2" in executor.asked)
        shelf.push("3")
        fast = asyncio.create_task(models.refresh("m"))
        await asyncio.wait({fast}, timeout=0.5)
        executor.gates["2"].set()
        await asyncio.gather(slow, fast)
        assert newest(models) == "3"


async def test_a_start_does_not_put_an_old_version_over_a_push(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, executor):
        executor.gates["1"] = asyncio.Event()
        start = asyncio.create_task(models.load_wanted())
        first = asyncio.create_task(models.open("m", ""))
        await until(lambda: "1" in executor.asked)
        shelf.push("2")
        push = asyncio.create_task(models.refresh("m"))
        await asyncio.wait({push}, timeout=0.5)
        executor.gates["1"].set()
        await asyncio.gather(start, first, push)
        assert newest(models) == "2"


async def test_an_unload_during_a_load_wins(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, _):
        shelf.may_want.clear()
        load = asyncio.create_task(models.load("m"))
        await until(shelf.wanting.is_set)
        unload = asyncio.create_task(models.unload("m"))
        await asyncio.wait({unload}, timeout=0.5)
        shelf.may_want.set()
        await asyncio.gather(load, unload)
        assert not shelf.wanted("m")
        assert newest(models) is None
        with pytest.raises(NotFound, match="not loaded"):
            await models.open("m", "")
        assert (await models.load("m")).model.version == "1"
        assert newest(models) == "1"


async def test_asking_for_readiness_opens_the_newest(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, _):
        assert await models.reason("m", "") == "being opened"
        await until(lambda: newest(models) == "1", timeout_s=5)


async def test_readiness_of_a_name_whose_newest_version_was_opened_by_number(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, _):
        await models.open("m", "1")
        assert await models.reason("m", "") == "being opened"
        await until(lambda: newest(models) == "1", timeout_s=5)


async def test_asking_for_readiness_of_a_version_opens_only_that_one(shelf: Shelf) -> None:
    shelf.push("1")
    shelf.push("2")
    async with serving(shelf) as (models, executor):
        assert await models.reason("m", "1") == "being opened"
        await until(lambda: models.opened("m", "1") is not None, timeout_s=5)
        assert newest(models) is None
        assert executor.asked == ["1"]


async def test_a_broken_newest_version_leaves_the_one_before_after_a_restart(shelf: Shelf) -> None:
    shelf.push("1")
    shelf.push("2")
    shelf.push("3", is_sound=False)
    async with serving(shelf) as (models, executor):
        await models.load_wanted()
        assert newest(models) == "2"
        assert (await models.open("m", "")).model.version == "2"
        assert executor.asked == ["3", "2"]
        states = {entry.version: entry for entry in await models.index()}
        assert {version: entry.state for version, entry in states.items()} == {
            "1": "UNAVAILABLE",
            "2": "READY",
            "3": "UNAVAILABLE",
        }
        assert "not an ONNX model" in states["3"].reason


async def test_readiness_goes_past_a_broken_newest_version(shelf: Shelf) -> None:
    shelf.push("1")
    shelf.push("2", is_sound=False)
    async with serving(shelf) as (models, _):
        with pytest.raises(ModelInvalid):
            await models.open("m", "2")
        assert await models.reason("m", "") == "being opened"
        await until(lambda: newest(models) == "1", timeout_s=5)


async def test_a_broken_version_is_not_opened_by_each_request(shelf: Shelf) -> None:
    shelf.push("1", is_sound=False)
    shelf.push("2", is_sound=False)
    async with serving(shelf) as (models, executor):
        for version in ("", "", "1", "2", ""):
            with pytest.raises(ModelInvalid, match="not an ONNX model"):
                await models.open("m", version)
        await models.refresh("m")
        assert "not an ONNX model" in await models.reason("m", "")
        assert executor.asked == ["2", "1"]
        with pytest.raises(ModelInvalid):
            await models.load("m")
        assert executor.asked == ["2", "1", "2"]


async def test_a_broken_version_is_tried_again_later(shelf: Shelf) -> None:
    shelf.push("1", is_sound=False)
    async with serving(shelf, retry_failed_s=0.0) as (models, executor):
        for _ in range(2):
            with pytest.raises(ModelInvalid):
                await models.open("m", "")
        small_models.mlp(shelf.find("m", "").path)
        assert (await models.open("m", "")).model.version == "1"
        assert executor.asked == ["1", "1", "1"]


async def test_a_source_that_cannot_be_read_does_not_end_the_service(
    shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.push("1")
    shelf.is_broken = True
    async with serving(shelf) as (models, executor):
        await executor.spawn(models.load_wanted(), name="load-models")
        assert "the disk is gone" in caplog.text
        shelf.is_broken = False
        assert (await models.open("m", "")).model.version == "1"


async def test_a_version_that_is_forgotten_while_it_is_opened_answers_no_more(shelf: Shelf) -> None:
    shelf.push("1")
    async with serving(shelf) as (models, executor):
        executor.gates["1"] = asyncio.Event()
        asked = [asyncio.create_task(models.open("m", "1")) for _ in range(2)]
        await until(lambda: executor.asked == ["1", "1"])
        shelf._held.clear()
        await models.forget("m", "1")
        executor.gates["1"].set()
        for each in asked:
            with pytest.raises(NotFound):
                await each
        assert models.opened("m", "1") is None
        assert executor.sessions.peek(("1",)) is None
