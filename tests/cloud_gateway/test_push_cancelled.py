"""Clients that leave in the middle of a push: what was begun ends by itself, holds nothing, and is told on."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web

from cloud_gateway.blobs import BlobStore
from cloud_gateway.registry import Registry
from cloud_gateway.uploads import add_routes
from hybrid.artifact.folder import from_onnx
from hybrid.errors import Conflict
from hybrid.transport.registry_client import RegistryClient
from tests.model_making import make_model, upload

BODY = b"some bytes of a blob"
SHA = hashlib.sha256(BODY).hexdigest()
BLOB = f"/v2/hybrid/blobs/{SHA}"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@asynccontextmanager
async def _serving(folder: Path) -> AsyncIterator[SimpleNamespace]:
    """A registry whose handlers are cancelled when their client leaves, as the gateway's are."""
    blobs = BlobStore(folder)
    registry = Registry(folder, blobs)
    server = SimpleNamespace(registry=registry, blobs=blobs, told=[], requests=[])

    @web.middleware
    async def watch(request: web.Request, handler: Callable) -> web.StreamResponse:
        server.requests.append(request)
        return await handler(request)

    app = web.Application(middlewares=[watch])
    add_routes(app, registry, blobs, lambda request, right: None, committed=server.told.append)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.port = runner.addresses[0][1]
    server.url = f"http://127.0.0.1:{server.port}"
    try:
        yield server
    finally:
        await runner.cleanup()
        registry.close()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[SimpleNamespace]:
    async with _serving(tmp_path / "data") as running:
        yield running


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (threads move it)
            await asyncio.sleep(0.01)


class _Gate:
    """Stands in for a lock: says when a thread came, and lets it in when it is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""


async def _ask(server: SimpleNamespace, method: str, path: str, body: bytes) -> asyncio.StreamWriter:
    """Send a whole request; the answer is not read."""
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nUpload-Offset: 0\r\nUpload-Length: {len(body)}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return writer


async def _leave(server: SimpleNamespace, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    await _until(lambda: server.requests[0].transport is None)  # its handler is cancelled at the same time


async def test_a_commit_whose_client_left_is_told_and_so_is_its_repetition(server, tmp_path):
    artifact = from_onnx(make_model(tmp_path / "a"), "net", "1")
    upload(server.registry, artifact)
    path = "/v2/hybrid/models/net/versions"
    server.registry._committing = gate = _Gate()
    writer = await _ask(server, "POST", path, artifact.manifest_bytes)
    await _until(gate.reached.is_set)
    await _leave(server, writer)
    assert server.told == []
    gate.opened.set()
    await _until(lambda: server.told == ["net"])
    assert server.registry.resolve("net").version == "1"
    async with aiohttp.ClientSession() as http:
        async with http.post(server.url + path, data=artifact.manifest_bytes) as answer:
            assert answer.status == 200
        assert server.told == ["net", "net"]
        async with http.post(server.url + path, data=b"{}") as answer:
            assert answer.status == 400
    assert server.told == ["net", "net"]


async def test_an_upload_whose_client_left_before_it_was_opened_holds_nothing(server):
    server.blobs._sweeping = gate = _Gate()
    writer = await _ask(server, "PATCH", BLOB, BODY)
    await _until(gate.reached.is_set)
    await _leave(server, writer)
    gate.opened.set()
    async with RegistryClient(server.url, None) as client, asyncio.timeout(10):
        while True:
            try:
                state = await client.send_piece(SHA, BODY, offset=0, total_bytes=len(BODY))
                break
            except Conflict:  # until what was opened late is closed
                await asyncio.sleep(0.01)
    assert state.is_complete
    assert server.blobs.find(SHA).read_bytes() == BODY


async def test_a_blob_is_verified_to_the_end_though_its_client_left(server, monkeypatch):
    gate = _Gate()
    digest = hashlib.file_digest

    def slow_digest(*args: object) -> object:
        with gate:
            return digest(*args)

    monkeypatch.setattr(hashlib, "file_digest", slow_digest)
    writer = await _ask(server, "PATCH", BLOB, BODY)
    await _until(gate.reached.is_set)
    await _leave(server, writer)
    async with RegistryClient(server.url, None) as client:
        with pytest.raises(Conflict):
            await client.send_piece(SHA, b"", offset=len(BODY), total_bytes=len(BODY))
        gate.opened.set()
        await _until(lambda: server.blobs.find(SHA) is not None)
        assert (await client.send_piece(SHA, b"", offset=len(BODY), total_bytes=len(BODY))).is_complete
    assert server.blobs.find(SHA).read_bytes() == BODY


def test_a_closed_upload_takes_nothing_more(tmp_path):
    held = BlobStore(tmp_path).begin(SHA, offset=0, total_bytes=len(BODY))
    held.append(BODY[:4])
    held.close()
    with pytest.raises(Conflict):
        held.append(BODY[4:])
    with pytest.raises(Conflict):
        held.finish()
    held.close()
