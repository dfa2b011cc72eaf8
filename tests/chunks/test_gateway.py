"""Chunks over a real link: pulled from a real registry, by who may read, from files larger than memory may be."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cloud_gateway import chunk_service
from cloud_gateway.chunk_service import ChunkService, Kept
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.artifact.chunk_messages import FileRef, IndexCall, RangesCall, decompress, digest_of, put_ranges
from hybrid.artifact.digest import model_digest
from hybrid.errors import BadMessage, Forbidden, LinkError, NotFound
from hybrid.hosting.identity import RIGHTS
from hybrid.transport.chunk_download import Traffic
from hybrid.transport.model_pull import pull
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.registry_client import RegistryClient
from tests.chunks.local_calls import entries
from tests.chunks.making import layered, reordered, retrained, saved
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


async def two_versions(client: RegistryClient, room: Path, *, external: bool = False) -> tuple[Path, int]:
    """Push versions 1 and 2 of `net`; the second's file, and how many bytes of tensors changed."""
    old = layered(200)
    new, changed_bytes = retrained(reordered(old), 5, 6, 7)
    await push(client, saved(old, room / "v1", external=external) / "model.onnx", "net", PushOptions())
    path = saved(new, room / "v2", external=external) / "model.onnx"
    await push(client, path, "net", PushOptions())
    return path, changed_bytes


@pytest.mark.parametrize("external", [False, True])
async def test_a_pull_fetches_what_older_versions_in_the_cache_lack(client, cache, tmp_path, external):
    path, changed_bytes = await two_versions(client, tmp_path, external=external)
    await pull(client, "net", "1", cache)
    traffic = Traffic()
    artifact = await pull(client, "net", "2", cache, traffic=traffic)
    assert model_digest(artifact.model_path) == model_digest(path)
    assert traffic.fetched_bytes <= 1.05 * changed_bytes + (64 << 10)
    assert traffic.range_bytes == changed_bytes
    assert not [part for part in (cache / "parts").iterdir() if part.suffix in (".part", ".index")]


async def test_a_pull_by_chunks_goes_on_after_resets(server, cache, tmp_path):
    with ShapedProxy(int(server.url.rpartition(":")[2]), Shape(down=Direction(rate_bps=3e6))) as link:
        async with RegistryClient(f"http://127.0.0.1:{link.port}", None) as client:
            path, _ = await two_versions(client, tmp_path)
            await pull(client, "net", "1", cache)
            traffic = Traffic()
            pulling = asyncio.create_task(pull(client, "net", "2", cache, traffic=traffic))
            for _ in range(3):
                await asyncio.sleep(0.02)
                link.reset()
            artifact = await pulling
    assert model_digest(artifact.model_path) == model_digest(path)
    assert traffic.whole_bytes == 0


async def test_a_damaged_version_in_the_cache_does_no_harm(client, cache, tmp_path):
    path, _ = await two_versions(client, tmp_path)
    first = await pull(client, "net", "1", cache)
    content = bytearray(first.model_path.read_bytes())
    content[5000:9000] = bytes(4000)
    first.model_path.write_bytes(content)
    artifact = await pull(client, "net", "2", cache)
    assert model_digest(artifact.model_path) == model_digest(path)


async def test_only_who_may_read_gets_chunks_and_calls_are_bounded(client, tmp_path, monkeypatch):
    path, _ = await two_versions(client, tmp_path)
    sha256 = entries(path.parent)["model.onnx"].sha256
    ref = FileRef(sha256=sha256)
    answer = await client.chunk_index(IndexCall(file=ref))
    assert digest_of(decompress(answer.body)) == answer.digest
    with pytest.raises(NotFound):
        await client.chunk_index(IndexCall(file=FileRef(sha256="0" * 64)))
    with pytest.raises(BadMessage):
        await client.chunk_index(IndexCall(file=FileRef(sha256="../../etc/passwd")))
    with pytest.raises(BadMessage):
        await client.chunk_index(IndexCall(file=ref, have=(ref,) * 5))
    with pytest.raises(BadMessage):
        await client.chunk_index(IndexCall(file=FileRef(sha256=sha256, models={f"{i:064x}": "x" for i in range(9)})))
    with pytest.raises(BadMessage):
        await client.post("v2/hybrid/chunks", b"\xc1")
    with pytest.raises(BadMessage):
        await client.post("v2/hybrid/chunks", b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0")
    with pytest.raises(BadMessage):
        await client.post("v2/hybrid/chunks", msgspec.msgpack.encode({"sha256": sha256, "ranges": -1}))
    with pytest.raises(BadMessage):
        _ = [b async for b in client.chunk_ranges(RangesCall(sha256=sha256, ranges=put_ranges([(0, 1 << 40)])))]
    wanted = put_ranges([(3, 10), (1000, 300_000)])
    data = path.read_bytes()
    parts = [block async for block in client.chunk_ranges(RangesCall(sha256=sha256, ranges=wanted))]
    assert b"".join(parts) == data[3:13] + data[1000:301_000]
    monkeypatch.setitem(RIGHTS, "publisher", frozenset({"publish"}))
    with pytest.raises(Forbidden):
        await client.chunk_index(IndexCall(file=ref))
    with pytest.raises(Forbidden):
        _ = [block async for block in client.chunk_ranges(RangesCall(sha256=sha256, ranges=wanted))]


async def test_a_file_that_shrinks_while_it_is_sent_breaks_the_answer_off(server, client, tmp_path):
    path, _ = await two_versions(client, tmp_path)
    entry = entries(path.parent)["model.onnx"]
    held = server.registry.find_blob(entry.sha256)
    assert held is not None
    stream = client.chunk_ranges(RangesCall(sha256=entry.sha256, ranges=put_ranges([(0, entry.size)])))
    with held.open("rb+") as file:
        file.truncate(entry.size - 1)
    with pytest.raises((LinkError, BadMessage)):
        _ = [block async for block in stream]


def test_an_index_is_made_once_for_a_herd_and_kept_over_a_restart(tmp_path, monkeypatch):
    folder = saved(layered(300), tmp_path / "m")
    files = {entry.sha256: folder / name for name, entry in entries(folder).items()}
    n_made = 0

    def counted(*args, **settings):
        nonlocal n_made
        n_made += 1
        return made(*args, **settings)

    made = chunk_service.index_file
    monkeypatch.setattr(chunk_service, "index_file", counted)
    service = ChunkService(files.get, tmp_path / "kept")
    call = IndexCall(file=FileRef(sha256=next(iter(files))))
    answers = []
    herd = [threading.Thread(target=lambda: answers.append(service.index(call))) for _ in range(8)]
    for thread in herd:
        thread.start()
    for thread in herd:
        thread.join()
    assert n_made == 1
    assert len({answer.body for answer in answers}) == 1
    later = ChunkService(files.get, tmp_path / "kept")
    assert later.index(call) == answers[0]
    assert n_made == 1
    for index in range(20):  # models that are not here, and names that no model has
        odd = {f"{index:064x}": "x", next(iter(files)): f"name{index}"}
        later.index(IndexCall(file=FileRef(sha256=next(iter(files)), models=odd)))
    assert n_made == 1
    assert len(list((tmp_path / "kept").iterdir())) == 1
    for note in (tmp_path / "kept").iterdir():
        note.write_bytes(note.read_bytes()[:-9] + b"corrupted")
    assert ChunkService(files.get, tmp_path / "kept").index(call) == answers[0]
    assert n_made == 2


def test_what_is_kept_stays_within_its_limit():
    kept = Kept(100)
    for index in range(20):
        kept.keep(str(index), bytes(30))
    assert [kept.find(str(index)) is not None for index in range(20)] == [False] * 17 + [True] * 3
    kept.keep("large", bytes(1000))
    assert kept.find("large") is not None
    assert kept.find("19") is None


def test_a_large_file_is_cut_and_put_together_in_little_memory(tmp_path):
    """A sparse file of 500 MB, in a process that may not have 320 MB of addresses more than it begins with."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chunks.large_file", str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_parts_far_behind_four_gigabytes_are_sent(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(5 << 30)
        file.seek((5 << 30) - 100)
        file.write(b"far away")
    service = ChunkService({"a" * 64: path}.get, tmp_path / "kept")
    wanted = put_ranges([(1 << 32, 10), ((5 << 30) - 100, 8)])
    n_bytes, blocks = service.ranges(RangesCall(sha256="a" * 64, ranges=wanted))
    assert (n_bytes, b"".join(blocks)) == (18, bytes(10) + b"far away")
