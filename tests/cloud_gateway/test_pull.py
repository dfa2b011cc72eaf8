"""Pulling a model: resumed, verified, cached, by name without a gateway; and the models command."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import onnxruntime as ort
import pytest

from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.digest import model_digest
from hybrid.errors import Conflict, CorruptContent, DiskFull, ExitCode, ModelUnavailable, NotFound
from hybrid.transport.model_pull import pull, pull_model, pull_to
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.pulled_names import cached_model
from hybrid.transport.registry_client import RegistryClient
from tests import zoo
from tests.live_gateway import LiveGateway
from tests.model_making import files_below, make_model
from tests.registry_server import RegistryServer, serving


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    async with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def client(server: RegistryServer) -> AsyncIterator[RegistryClient]:
    async with RegistryClient(server.url, None) as connected:
        yield connected


@pytest.fixture
async def large(client: RegistryClient, tmp_path: Path) -> Path:
    """A pushed model of 12 MB: `large:1`."""
    path = make_model(tmp_path / "source", external=True)
    with (path.parent / "net.onnx.data").open("ab") as file:
        file.write(random.Random(3).randbytes(12 << 20))
    await push(client, path, "large", PushOptions())
    return path


def _command(*words: object, **settings: str) -> dict:
    hybrid = Path(sys.executable).parent / "hybrid"
    return {"args": [str(hybrid), *map(str, words)], "env": dict(os.environ) | settings, "text": True}


async def _run(*words: object, **settings: str) -> subprocess.CompletedProcess[str]:
    """The real command, run to its end while the test's event loop serves it."""
    return await asyncio.to_thread(
        lambda: subprocess.run(**_command(*words, **settings), capture_output=True, timeout=60, check=False)
    )


def _part_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.part"))


async def test_a_pull_goes_on_after_resets(server, large, cache):
    with ShapedProxy(int(server.url.rpartition(":")[2]), Shape(down=Direction(rate_bps=80e6))) as link:
        async with RegistryClient(f"http://127.0.0.1:{link.port}", None) as client:
            moved = asyncio.Event()
            seen: list[int] = []

            def begin(total_bytes: int):
                def advance(n_bytes: int) -> None:
                    seen.append(n_bytes)
                    moved.set()

                return advance

            work = asyncio.create_task(pull(client, "large", None, cache, begin=begin))
            for mark in (3, 7):
                while sum(seen) < mark << 20:
                    moved.clear()
                    await asyncio.wait_for(moved.wait(), 30)
                link.reset()
            artifact = await work
        down_bytes = link.traffic().down_bytes
    total_bytes = artifact.manifest.size_bytes
    assert model_digest(artifact.model_path) == model_digest(large)
    assert sum(seen) == total_bytes
    assert down_bytes < total_bytes + (3 << 20)
    assert files_below(cache / "parts") == [f"{artifact.digest}.lock"]


async def test_a_killed_pull_goes_on_where_it_was(server, large, tmp_path):
    with ShapedProxy(int(server.url.rpartition(":")[2]), Shape(down=Direction(rate_bps=40e6))) as link:
        words = (
            "models",
            "pull",
            "large",
            "--gateway",
            f"http://127.0.0.1:{link.port}",
            "--out",
            tmp_path / "out",
            "--json",
        )
        puller = await asyncio.to_thread(lambda: subprocess.Popen(**_command(*words), stdout=subprocess.PIPE))
        parts = tmp_path / "out" / ".parts"
        async with asyncio.timeout(30):
            while not parts.exists() or _part_bytes(parts) < 4 << 20:  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.01)
        puller.send_signal(signal.SIGKILL)
        await asyncio.to_thread(puller.communicate)
        here_bytes = _part_bytes(parts)
        assert not (tmp_path / "out" / "large").exists()
        link.set(Shape())
        before_bytes = link.traffic().down_bytes
        done = await _run(*words)
        again_bytes = link.traffic().down_bytes - before_bytes
    assert done.returncode == 0, done.stderr
    path = Path(json.loads(done.stdout)["data"]["path"])
    assert path == tmp_path / "out" / "large" / "1" / "net.onnx"
    assert model_digest(path) == model_digest(large)
    total_bytes = sum(file.stat().st_size for file in large.parent.iterdir())
    assert again_bytes < total_bytes - here_bytes + (1 << 20)
    assert not parts.exists()


async def test_what_lies_in_the_way_is_not_touched(server, client, large, tmp_path):
    place = tmp_path / "out" / "large" / "1"
    place.mkdir(parents=True)
    (place / "mine.txt").write_text("precious")
    info = await client.version("large", "1")
    with pytest.raises(Conflict, match="something else"):
        await pull_to(client, info, place, tmp_path / "out" / ".parts")
    assert files_below(place) == ["mine.txt"]


async def test_a_damaged_cache_is_pulled_again(client, large, cache):
    artifact = await pull(client, "large", None, cache)
    os.truncate(artifact.folder / "net.onnx.data", 100)
    again = await pull(client, "large", None, cache)
    assert model_digest(again.model_path) == model_digest(large)


async def test_damage_at_the_gateway_never_reaches_the_cache(server, client, large, cache):
    path = server.registry.resolve("large").path.parent / "net.onnx.data"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptContent):
        await pull(client, "large", None, cache)
    assert not (cache / "artifacts").exists() or files_below(cache / "artifacts") == []
    assert cached_model("large", None, cache) is None


async def test_many_pulls_at_once_end_with_one_copy(server, large, cache):
    async def one():
        async with RegistryClient(server.url, None) as client:
            return await pull(client, "large", None, cache)

    artifacts = await asyncio.gather(*(one() for _ in range(4)))
    assert len({artifact.folder for artifact in artifacts}) == 1
    assert model_digest(artifacts[0].model_path) == model_digest(large)
    assert sum(1 for method, path, _ in server.sent if method == "GET" and "/blobs/" in path) == 2


async def test_an_unknown_model_is_not_found(client, cache):
    with pytest.raises(NotFound):
        await pull(client, "none", None, cache)


async def test_a_full_disk_on_the_device(server, large, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    done = await asyncio.to_thread(lambda: subprocess.run(mount, capture_output=True, text=True, check=False))
    if done.returncode:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    try:
        async with RegistryClient(server.url, None) as client:
            with pytest.raises(DiskFull):
                await pull(client, "large", None, disk)
        assert not (disk / "artifacts").exists()
    finally:
        await asyncio.to_thread(lambda: subprocess.run(["umount", "-l", str(disk)], check=True))


# By name, as a session asks.


async def test_by_name_from_the_gateway_then_from_the_cache(tmp_path, cache):
    first, second = make_model(tmp_path / "a", 1), make_model(tmp_path / "b", 2)
    async with serving(tmp_path / "data") as server:
        async with RegistryClient(server.url, None) as client:
            await push(client, first, "net", PushOptions())
            path = await asyncio.to_thread(pull_model, server.url, None, "net", None, cache)
            assert path.read_bytes() == first.read_bytes()
            await push(client, second, "net", PushOptions())
        newest = await asyncio.to_thread(pull_model, server.url, None, "net", None, cache)
        assert newest.read_bytes() == second.read_bytes()
        server.sent.clear()
        assert await asyncio.to_thread(pull_model, server.url, None, "net", "1", cache) == path
        assert server.sent == []  # a version never changes: nobody is asked
        url = server.url
    assert pull_model(url, None, "net", None, cache) == newest  # the gateway is gone
    assert pull_model(url, None, "net", "1", cache) == path
    assert cached_model("net", None, cache) == newest
    with pytest.raises(ModelUnavailable, match="http"):
        pull_model("http://127.0.0.1:9", None, "net", "3", cache)
    with pytest.raises(ModelUnavailable):
        pull_model("http://127.0.0.1:9", None, "other", None, cache)


# The command.


async def test_the_command_lists_and_says_what_is_next(server, tmp_path):
    done = await _run("models", "ls", "--gateway", server.url)
    assert (done.returncode, done.stdout) == (0, "no models\n")
    assert done.stderr == "next: hybrid models push FILE --name NAME\n"
    path = make_model(tmp_path / "a")
    done = await _run("models", "push", path, "--name", "net", HYBRID_GATEWAY=server.url)
    assert done.returncode == 0
    assert done.stdout.startswith("pushed net:1 ")
    assert done.stderr.endswith("next: hybrid models ls net\n")
    done = await _run("models", "ls", "net", HYBRID_GATEWAY=server.url)
    assert "\nnet:1  " in done.stdout
    done = await _run("models", "ls", "--json", HYBRID_GATEWAY=server.url)
    [model] = json.loads(done.stdout)["data"]["models"]
    assert (model["name"], [one["version"] for one in model["versions"]]) == ("net", ["1"])
    assert done.stderr == ""


async def test_exit_codes(server, tmp_path):
    path = make_model(tmp_path / "a")
    push_words = ("models", "push", path, "--name", "net")
    assert (await _run(*push_words, "--version", "1", HYBRID_GATEWAY=server.url)).returncode == ExitCode.OK
    assert (await _run("models", "pull", "none", HYBRID_GATEWAY=server.url)).returncode == ExitCode.NOT_FOUND
    assert (await _run("models", "pull", "../x", HYBRID_GATEWAY=server.url)).returncode == ExitCode.USAGE
    assert (await _run("models", "push", path, "--name", "Bad", HYBRID_GATEWAY=server.url)).returncode == ExitCode.USAGE
    other = make_model(tmp_path / "b", 9)
    words = ("models", "push", other, "--name", "net", "--version", "1", "--json")
    done = await _run(*words, HYBRID_GATEWAY=server.url)
    assert done.returncode == ExitCode.REFUSED
    assert json.loads(done.stdout)["error"]["code"] == "conflict"
    server.role = "device"
    done = await _run("models", "push", other, "--name", "net", HYBRID_GATEWAY=server.url)
    assert done.returncode == ExitCode.PERMISSION


@pytest.mark.slow
def test_the_real_gateway_with_the_real_command(tmp_path, cache):
    path = zoo.path("ppocr_cls")
    with LiveGateway(tmp_path / "gateway") as gateway:
        gateway.push(path, "cls")
        settings = dict(os.environ) | {"HYBRID_TOKEN": gateway.token, "HYBRID_GATEWAY": gateway.url}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [str(Path(sys.executable).parent / "hybrid"), "models", *words]
            return subprocess.run(command, capture_output=True, text=True, env=settings, timeout=60, check=False)

        listed = json.loads(run("ls", "--json").stdout)["data"]["models"]
        assert [model["name"] for model in listed] == ["cls"]
        pulled = run("pull", "cls:1", "--out", str(tmp_path / "out"))
        assert pulled.returncode == 0, pulled.stderr
        assert ort.InferenceSession(pulled.stdout.strip()).get_inputs()
        assert Path(pulled.stdout.strip()).read_bytes() == path.read_bytes()
        settings["HYBRID_TOKEN"] = "hyb_aaaaaaaa_" + "a" * 32
        assert run("ls").returncode == ExitCode.PERMISSION
        gateway.kill()
        assert run("pull", "other").returncode == ExitCode.UNREACHABLE
