"""The registry's HTTP calls with hostile names, sizes and bodies: always JSON, never a 5xx."""

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from cloud_gateway.uploads import MAX_PIECE_BYTES
from hybrid.artifact.folder import from_onnx
from hybrid.errors import Conflict
from hybrid.transport.model_push import PushOptions, push
from hybrid.transport.registry_client import RegistryClient
from tests.model_making import files_below, make_model
from tests.registry_server import RegistryServer, serving

BODY = b"some bytes of a blob"
SHA = hashlib.sha256(BODY).hexdigest()
BLOB = f"/v2/hybrid/blobs/{SHA}"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RegistryServer]:
    async with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def _ask(http, server, method: str, path: str, **more) -> tuple[int, dict]:
    """Status and JSON of an answer; `path` goes out as it is written."""
    url = URL(server.url + path, encoded=True)
    async with http.request(method, url, **more) as response:
        return response.status, json.loads(await response.read() or b"{}")


HOSTILE = [
    "%2e%2e", "..%2f..%2fetc", "%2Fetc%2Fpasswd", "a%00b", "C%3A", "%E2%80%A5", "%EF%BC%8E%EF%BC%8E", "a" * 300,
    "file%3A%2F%2Fx", "A", "-x", "a%5Cb", "a%0A", "%FF%FE",
]  # fmt: skip


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize(
    "path",
    [
        "/v2/hybrid/models/{}", "/v2/hybrid/models/{}/versions/1", "/v2/hybrid/models/net/versions/{}",
        "/v2/hybrid/models/net/versions/{}/manifest", "/v2/hybrid/blobs/{}",
    ],
)  # fmt: skip
async def test_hostile_names_are_refused(http, server, path, word):
    status, answer = await _ask(http, server, "GET", path.format(word))
    assert (status, answer["code"]) == (400, "bad_message")


@pytest.mark.parametrize("word", HOSTILE)
async def test_hostile_names_cannot_be_written(http, server, tmp_path, word):
    before = files_below(tmp_path)
    headers = {"Upload-Offset": "0", "Upload-Length": str(len(BODY))}
    status, answer = await _ask(http, server, "PATCH", f"/v2/hybrid/blobs/{word}", data=BODY, headers=headers)
    assert (status, answer["code"]) == (400, "bad_message")
    status, answer = await _ask(http, server, "POST", f"/v2/hybrid/models/{word}/versions", data=b"{}")
    assert (status, answer["code"]) == (400, "bad_message")
    assert [name for name in files_below(tmp_path) if "registry.db" not in name] == [
        name for name in before if "registry.db" not in name
    ]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Upload-Offset": "0"},
        {"Upload-Offset": "-1", "Upload-Length": "20"},
        {"Upload-Offset": "x", "Upload-Length": "20"},
        {"Upload-Offset": "0", "Upload-Length": "٢٠"},
        {"Upload-Offset": "21", "Upload-Length": "20"},
        {"Upload-Offset": "0", "Upload-Length": "10"},
        {"Upload-Offset": "0", "Upload-Length": "9" * 15},
        {"Upload-Offset": "0", "Upload-Length": "9" * 400},
        {"Upload-Offset": "0", "Upload-Length": "20", "Content-Encoding": "gzip"},
        {"Upload-Offset": "7", "Upload-Length": "20"},
    ],
)
async def test_nonsense_headers_are_refused(http, server, headers):
    status, answer = await _ask(http, server, "PATCH", BLOB, data=BODY, headers=headers)
    assert 400 <= status < 500
    assert answer["error"]
    assert server.blobs.find(SHA) is None


async def test_a_body_without_a_length_is_refused(http, server):
    async def chunks():
        yield BODY

    headers = {"Upload-Offset": "0", "Upload-Length": str(len(BODY))}
    status, answer = await _ask(http, server, "PATCH", BLOB, data=chunks(), headers=headers)
    assert (status, answer["code"]) == (400, "bad_message")


async def test_a_large_body_is_refused_before_it_is_sent(server):
    """Only the head of the request goes out; the answer comes at once."""
    port = int(server.url.rpartition(":")[2])
    piece = f"PATCH {BLOB} HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nUpload-Length: {MAX_PIECE_BYTES * 2}\r\n"
    manifest = "POST /v2/hybrid/models/net/versions HTTP/1.1\r\nHost: x\r\n"
    for request in (
        f"{piece}Content-Length: {MAX_PIECE_BYTES + 1}\r\n\r\n",
        f"{manifest}Content-Length: {2 << 20}\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        started_s = time.perf_counter()
        writer.write(request.encode())
        answer = await asyncio.wait_for(reader.readline(), 5)
        assert b" 413 " in answer
        assert time.perf_counter() - started_s < 2
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff" * 100, b'{"schema":1}', b"[" * 100_000])
async def test_a_body_that_is_no_manifest_is_refused(http, server, body):
    status, answer = await _ask(http, server, "POST", "/v2/hybrid/models/net/versions", data=body)
    assert (status, answer["code"]) == (400, "bad_message")


async def test_a_manifest_under_another_name_is_refused(http, server, tmp_path):
    manifest = from_onnx(make_model(tmp_path / "a"), "net", "1").manifest_bytes
    status, answer = await _ask(http, server, "POST", "/v2/hybrid/models/other/versions", data=manifest)
    assert (status, answer["code"]) == (400, "bad_message")
    status, answer = await _ask(http, server, "POST", "/v2/hybrid/models/net/versions", data=manifest)
    assert (status, answer["code"]) == (404, "not_found")
    assert len(answer["missing"]) == 1
    headers = {"Hybrid-Signature": "nonsense"}
    status, _ = await _ask(http, server, "POST", "/v2/hybrid/models/net/versions", data=manifest, headers=headers)
    assert status == 400


async def test_the_calls_of_the_docs(http, server, tmp_path):
    head = {"Upload-Offset": "0", "Upload-Length": str(len(BODY))}
    async with http.head(server.url + BLOB) as answer:
        assert (answer.status, answer.headers["Upload-Offset"]) == (404, "0")
    async with http.patch(server.url + BLOB, data=BODY[:5], headers=head) as answer:
        assert (answer.status, answer.headers["Upload-Offset"]) == (204, "5")
    async with http.head(server.url + BLOB) as answer:
        state = (answer.status, answer.headers["Upload-Offset"], answer.headers["Upload-Complete"])
        assert state == (200, "5", "?0")
    async with http.patch(server.url + BLOB, data=BODY, headers=head) as answer:
        assert (answer.status, answer.headers["Upload-Offset"]) == (409, "5")
        assert (await answer.json())["code"] == "conflict"
    async with http.patch(server.url + BLOB, data=BODY[5:], headers=head | {"Upload-Offset": "5"}) as answer:
        assert (answer.status, answer.headers["Upload-Complete"]) == (201, "?1")
    async with http.get(server.url + BLOB, headers={"Range": "bytes=5-9"}) as answer:
        assert (answer.status, await answer.read()) == (206, BODY[5:10])
    async with http.get(server.url + BLOB) as answer:
        assert await answer.read() == BODY
    async with http.get(server.url + "/v2/hybrid/blobs/" + "0" * 64) as answer:
        assert (answer.status, (await answer.json())["code"]) == (404, "not_found")

    async with RegistryClient(server.url, None) as client:
        await push(client, make_model(tmp_path / "a"), "net", PushOptions())
    record = server.registry.resolve("net")
    status, shown = await _ask(http, server, "GET", "/v2/hybrid/models/net/versions/latest")
    assert (status, shown["artifact_digest"]) == (200, record.artifact_digest)
    assert set(shown) == {
        "name", "version", "sequence", "model_digest", "artifact_digest", "size_bytes", "created_s", "signed_by",
    }  # fmt: skip
    async with http.get(server.url + "/v2/hybrid/models/net/versions/1/manifest") as answer:
        data = await answer.read()
        assert hashlib.sha256(data).hexdigest() == answer.headers["Hybrid-Artifact-Digest"] == record.artifact_digest
    assert (await _ask(http, server, "GET", "/v2/hybrid/models"))[1]["models"][0]["versions"][0] == shown
    assert (await _ask(http, server, "GET", "/v2/hybrid/models/none"))[0] == 404


async def test_a_device_reads_and_does_not_write(http, server):
    server.role = "device"
    headers = {"Upload-Offset": "0", "Upload-Length": str(len(BODY))}
    for method, path in (("PATCH", BLOB), ("POST", "/v2/hybrid/models/net/versions")):
        status, answer = await _ask(http, server, method, path, data=BODY, headers=headers)
        assert (status, answer["code"]) == (403, "forbidden")
    assert (await _ask(http, server, "GET", "/v2/hybrid/models"))[0] == 200
    async with http.head(server.url + BLOB) as answer:
        assert answer.status == 403  # whether an upload is under way is the publishers' business


async def test_an_upload_that_breaks_off_keeps_what_came(server):
    port = int(server.url.rpartition(":")[2])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    content = bytes(3 << 20)
    sha256 = hashlib.sha256(content).hexdigest()
    writer.write(
        f"PATCH /v2/hybrid/blobs/{sha256} HTTP/1.1\r\nHost: x\r\nUpload-Offset: 0\r\nUpload-Length: {len(content)}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n".encode()
        + content[: 2 << 20]
    )
    async with asyncio.timeout(10):
        while server.blobs.offset(sha256) < 1 << 20:  # noqa: ASYNC110 (the server writes in threads of its own)
            await asyncio.sleep(0.01)
    writer.transport.abort()
    async with RegistryClient(server.url, None) as client, asyncio.timeout(10):
        while True:
            try:
                offset = (await client.blob_state(sha256)).offset
                state = await client.send_piece(sha256, content[offset:], offset=offset, total_bytes=len(content))
                break
            except Conflict:  # until the server noticed the break
                await asyncio.sleep(0.05)
    assert state.is_complete
    assert offset >= 1 << 20
