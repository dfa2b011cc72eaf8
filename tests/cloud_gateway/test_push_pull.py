"""Pushing a model, and what may happen on the way: breaks, kills, rivals, damage, a full disk."""

import asyncio
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import onnxruntime as ort
import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx

from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.digest import model_digest
from hybrid.artifact.folder import from_onnx, write_folder
from hybrid.artifact.signature import new_private_key, sign
from hybrid.artifact.stored_zip import pack
from hybrid.errors import Conflict, CorruptContent, DiskFull, ExitCode, Forbidden, LinkError, ModelInvalid
from hybrid.transport.model_pull import pull
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.registry_client import RegistryClient, Timeouts
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.model_making import files_below, make_model
from tests.registry_server import RegistryServer, serving

PIECE_BYTES = 4 << 20


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    async with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def client(server: RegistryServer) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(server.url, None) as connected:
        yield connected


@pytest.fixture(scope="module")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model with 24 MB of external data behind what its one tensor needs."""
    path = make_model(tmp_path_factory.mktemp("large"), external=True)
    with (path.parent / "net.onnx.data").open("ab") as file:
        file.write(random.Random(1).randbytes(24 << 20))
    return path


def _command(*words: object, **settings: str) -> dict:
    """Arguments of a process that runs the real command."""
    hybrid = Path(sys.executable).parent / "hybrid"
    return {"args": [str(hybrid), *map(str, words)], "env": dict(os.environ) | settings, "text": True}


async def _run(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """The real command, run to its end while the test's event loop serves it."""
    return await asyncio.to_thread(
        lambda: subprocess.run(**_command(*words, **settings), capture_output=True, timeout=60, check=False)
    )


class Steps:
    """Counts what a transfer says."""

    def __init__(self) -> None:
        self.total_bytes = 0
        self.steps: list[int] = []
        self._moved = asyncio.Event()

    def begin(self, total_bytes: int):
        self.total_bytes = total_bytes
        return self._advance

    def _advance(self, n_bytes: int) -> None:
        self.steps.append(n_bytes)
        self._moved.set()

    async def reach(self, n_bytes: int) -> None:
        """Return when so much was said."""
        async with asyncio.timeout(30):
            while sum(self.steps) < n_bytes:
                self._moved.clear()
                await self._moved.wait()


@pytest.fixture
def no_blocking() -> Iterator[None]:
    """Calls of ours that would block the event loop are errors."""
    with blockbuster_ctx(scanned_modules=["hybrid", "cloud_gateway"]):
        yield


@pytest.mark.parametrize("name", ["magika", "ppocr_cls"])
async def test_there_and_back(server, client, tmp_path, name, no_blocking):
    path = zoo.path(name)
    up, down = Steps(), Steps()
    pushed = await push(client, path, name, PushOptions(), begin=up.begin)
    assert (pushed.version.version, pushed.is_new) == ("1", True)
    assert pushed.sent_bytes == up.total_bytes == sum(up.steps) == path.stat().st_size
    artifact = await pull(client, name, None, tmp_path / "cache", begin=down.begin)
    assert sum(down.steps) == down.total_bytes == up.total_bytes
    assert artifact.model_path.read_bytes() == path.read_bytes()
    assert await asyncio.to_thread(model_digest, artifact.model_path) == pushed.version.model_digest
    assert [one.name for one in ort.InferenceSession(artifact.model_path).get_inputs()]
    again = Steps()
    assert (await pull(client, name, "1", tmp_path / "cache", begin=again.begin)).folder == artifact.folder
    assert again.steps == []


async def test_external_data_travels_with_its_name(server, client, large_model, tmp_path):
    pushed = await push(client, large_model, "large", PushOptions())
    assert pushed.sent_bytes == sum(path.stat().st_size for path in large_model.parent.iterdir())
    record = server.registry.resolve("large")
    assert (record.path.parent / "net.onnx.data").stat().st_nlink == 1
    assert model_digest(record.path) == model_digest(large_model)
    artifact = await pull(client, "large", None, tmp_path / "cache")
    assert model_digest(artifact.model_path) == model_digest(large_model)


async def test_the_same_again_sends_nothing(server, client, tmp_path):
    path = make_model(tmp_path / "a")
    first = await push(client, path, "net", PushOptions())
    for options in (PushOptions(), PushOptions(version="1")):
        again = await push(client, path, "net", options)
        assert (again.version, again.is_new, again.sent_bytes) == (first.version, False, 0)
    named = await push(client, path, "net", PushOptions(version="stable"))
    assert (named.version.version, named.is_new, named.sent_bytes) == ("stable", True, 0)
    assert named.version.sequence == first.version.sequence + 1
    other = await push(client, make_model(tmp_path / "b", 5), "net", PushOptions())
    assert (other.version.version, other.version.sequence) == ("2", 3)


async def test_a_version_that_is_another_model_is_a_conflict_before_the_upload(server, client, tmp_path):
    await push(client, make_model(tmp_path / "a", 1), "net", PushOptions())
    with pytest.raises(Conflict, match="net:1"):
        await push(client, make_model(tmp_path / "b", 2), "net", PushOptions(version="1"))
    assert sum(1 for method, _, _ in server.sent if method == "PATCH") == 1


@pytest.mark.parametrize("way", ["folder", "zip"])
async def test_artifacts_are_pushed_as_they_are(server, client, tmp_path, way):
    bare = from_onnx(make_model(tmp_path / "a"), "net", "2026.1", sequence=40)
    signed = bare.signed(sign(bare.manifest_bytes, new_private_key()))
    place = tmp_path / ("net.zip" if way == "zip" else "net")
    pack(signed, place) if way == "zip" else write_folder(signed, place)
    pushed = await push(client, place, "net", PushOptions())
    assert pushed.version.artifact_digest == bare.digest
    assert (pushed.version.version, pushed.version.sequence) == ("2026.1", 40)
    artifact = await pull(client, "net", None, tmp_path / "cache")
    assert artifact.manifest_bytes == bare.manifest_bytes
    assert artifact.signature == signed.signature


# Breaks.


async def test_a_push_goes_on_after_resets(server, large_model):
    with ShapedProxy(int(server.url.rpartition(":")[2]), Shape(up=Direction(rate_bps=160e6))) as link:
        async with RegistryClient(f"http://127.0.0.1:{link.port}", None) as client:
            steps = Steps()
            work = asyncio.create_task(push(client, large_model, "large", PushOptions(), begin=steps.begin))
            breaks = 0
            for mark in (6, 13, 20):
                await steps.reach(mark << 20)
                link.reset()
                breaks += 1
            pushed = await work
    assert pushed.version.model_digest == model_digest(large_model)
    assert pushed.sent_bytes <= steps.total_bytes + breaks * PIECE_BYTES
    assert sum(steps.steps) == steps.total_bytes


async def test_a_killed_pusher_goes_on_where_it_was(server, large_model):
    total_bytes = sum(path.stat().st_size for path in large_model.parent.iterdir())
    words = ("models", "push", large_model, "--name", "large", "--gateway", server.url, "--json")
    pieces = 0

    def kill_at_the_fourth(request: web.Request) -> None:
        nonlocal pieces
        pieces += request.method == "PATCH"
        if pieces == 4:
            pusher.send_signal(signal.SIGKILL)

    server.before = kill_at_the_fourth
    pusher = await asyncio.to_thread(lambda: subprocess.Popen(**_command(*words), stdout=subprocess.PIPE))
    assert (await asyncio.to_thread(pusher.communicate))[0] == ""
    assert pusher.returncode == -signal.SIGKILL
    server.before = None
    first_bytes = server.uploaded_bytes()
    server.sent.clear()

    done = await _run(*words)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)["data"]
    assert answer["is_new"]
    assert answer["model"]["model_digest"] == model_digest(large_model)
    assert first_bytes > PIECE_BYTES
    assert first_bytes + server.uploaded_bytes() <= total_bytes + PIECE_BYTES
    assert answer["sent_bytes"] == server.uploaded_bytes() < total_bytes


async def test_damage_on_the_way_is_found_and_sent_again(server, client, tmp_path):
    path = make_model(tmp_path / "a")
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    with pytest.raises(CorruptContent):
        await client.send_piece(sha256, bytes(len(content)), offset=0, total_bytes=len(content))
    assert (await client.blob_state(sha256)).offset == 0
    await client.send_piece(sha256, bytes(100), offset=0, total_bytes=len(content))  # the push finds this rotten part
    pushed = await push(client, path, "net", PushOptions())
    assert model_digest(server.registry.resolve("net").path) == pushed.version.model_digest == model_digest(path)


async def test_a_file_that_changes_while_it_is_pushed_is_named(server, client, tmp_path):
    path = make_model(tmp_path / "a")

    def begin(total_bytes: int):
        path.write_bytes(bytes(path.stat().st_size))
        return lambda n_bytes: None

    with pytest.raises(CorruptContent, match=r"net\.onnx"):
        await push(client, path, "net", PushOptions(), begin=begin)
    assert server.registry.list_versions() == ()
    assert files_below(tmp_path / "data" / "blobs") == files_below(tmp_path / "data" / "parts") == []


async def test_no_gateway_is_said_within_the_patience(tmp_path):
    async with RegistryClient("http://127.0.0.1:9", None) as client:
        with pytest.raises(LinkError, match="127"):
            await push(client, make_model(tmp_path / "a"), "net", PushOptions(patience_s=0.3))


async def test_a_gateway_that_never_answers_is_left(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:  # the kernel takes connections, nobody answers
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with RegistryClient(url, None, timeouts=Timeouts(answer_s=0.2)) as client:
            with pytest.raises(LinkError):
                await push(client, make_model(tmp_path / "a"), "net", PushOptions(patience_s=0.3))


# Rivals.


async def test_two_pushers_of_one_model_at_once(server, large_model):
    async def one(version: str | None):
        async with RegistryClient(server.url, None) as client:
            return await push(client, large_model, "large", PushOptions(version=version))

    pushed = await asyncio.gather(*(one("1") for _ in range(3)), one(None))
    assert {one.version.version for one in pushed} == {"1"}
    assert sum(one.is_new for one in pushed) == 1
    assert len(server.registry.list_versions()) == 1
    assert model_digest(server.registry.resolve("large").path) == model_digest(large_model)


async def test_two_pushers_of_one_version_with_other_models(server, tmp_path):
    async def one(seed: int):
        async with RegistryClient(server.url, None) as client:
            return await push(client, make_model(tmp_path / str(seed), seed), "net", PushOptions(version="1"))

    ends = await asyncio.gather(*map(one, range(4)), return_exceptions=True)
    assert sorted(type(end).__name__ for end in ends) == ["Conflict", "Conflict", "Conflict", "Pushed"]
    assert len(server.registry.list_versions()) == 1


async def test_pushers_without_a_version_each_get_their_number(server, tmp_path):
    async def one(seed: int):
        async with RegistryClient(server.url, None) as client:
            return await push(client, make_model(tmp_path / str(seed), seed), "net", PushOptions())

    pushed = await asyncio.gather(*map(one, range(4)))
    assert sorted(one.version.version for one in pushed) == ["1", "2", "3", "4"]


# Refusals, and a disk.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB where the server keeps its data."""
    folder = tmp_path / "data"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_is_said_and_nothing_is_half_stored(small_disk, large_model, tmp_path):
    async with serving(small_disk) as server:
        done = await _run("models", "push", large_model, "--name", "large", "--gateway", server.url, "--json")
        assert done.returncode == ExitCode.REFUSED
        assert json.loads(done.stdout)["error"]["code"] == "disk_full"
        async with RegistryClient(server.url, None) as client:
            with pytest.raises(DiskFull):
                await push(client, large_model, "large", PushOptions())
            assert files_below(small_disk / "parts") == []
            assert server.registry.list_versions() == ()
            small = await push(client, make_model(tmp_path / "a"), "net", PushOptions())
            assert small.is_new


async def test_a_disk_that_fills_up_in_mid_upload(small_disk, tmp_path):
    path = make_model(tmp_path / "a", external=True)
    with (path.parent / "net.onnx.data").open("ab") as file:
        file.write(random.Random(2).randbytes(6 << 20))
    async with serving(small_disk) as server, RegistryClient(server.url, None) as client:
        pieces = 0

        def fill_at_the_second(request: web.Request) -> None:
            nonlocal pieces
            pieces += request.method == "PATCH"
            if pieces == 3:
                (small_disk / "filler").write_bytes(bytes(3 << 20))

        server.before = fill_at_the_second
        with pytest.raises(DiskFull):
            await push(client, path, "net", PushOptions(piece_bytes=2 << 20))
        assert files_below(small_disk / "blobs") == [] or server.registry.list_versions() == ()
        (small_disk / "filler").unlink()
        server.before = None
        assert (await push(client, path, "net", PushOptions())).is_new


async def test_a_device_may_not_push(server, client, tmp_path):
    server.role = "device"
    with pytest.raises(Forbidden):
        await push(client, make_model(tmp_path / "a"), "net", PushOptions())
    assert not any(method == "PATCH" for method, _, _ in server.sent)


BROKEN = {"text.onnx": b"no model at all", "empty.onnx": b"", "cut.onnx": None, "broken.zip": b"PK\5\6" + bytes(10)}


@pytest.mark.parametrize("name", ["missing.onnx", *BROKEN])
async def test_what_is_no_model_is_named_and_never_sent(server, client, tmp_path, name):
    path = tmp_path / name
    if name == "cut.onnx":
        path.write_bytes(zoo.path("magika").read_bytes()[:-1000])
    elif name in BROKEN:
        path.write_bytes(BROKEN[name])
    with pytest.raises(ModelInvalid) as caught:
        await push(client, path, "net", PushOptions())
    assert str(path) in str(caught.value)
    assert server.sent == []
    done = await _run("models", "push", path, "--name", "net", "--gateway", server.url, "--json")
    is_missing = name == "missing.onnx"
    assert done.returncode == (ExitCode.NOT_FOUND if is_missing else ExitCode.FAILED)
    answer = json.loads(done.stdout)
    assert answer["error"]["code"] == ("model_missing" if is_missing else "model_invalid")
    assert name in answer["error"]["what"]


# The real service.


@pytest.mark.slow
async def test_the_real_gateway_killed_in_mid_upload(tmp_path, large_model):
    with LiveGateway(tmp_path / "gateway") as gateway:
        with ShapedProxy(gateway.port, Shape(up=Direction(rate_bps=80e6))) as link:
            async with RegistryClient(f"http://127.0.0.1:{link.port}", gateway.token) as client:
                steps = Steps()
                work = asyncio.create_task(
                    push(client, large_model, "large", PushOptions(patience_s=60), begin=steps.begin)
                )
                await steps.reach(9 << 20)
                await asyncio.to_thread(gateway.kill)
                await asyncio.to_thread(gateway.start)
                pushed = await work
        assert pushed.sent_bytes <= steps.total_bytes + PIECE_BYTES
        assert pushed.version.model_digest == model_digest(large_model)
        async with RegistryClient(gateway.url, gateway.token) as client:
            artifact = await pull(client, "large", None, tmp_path / "cache")
    assert model_digest(artifact.model_path) == model_digest(large_model)
