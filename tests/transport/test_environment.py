"""What the environment says of proxies is kept to; logins in files for a gateway's host are never shown to it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from hybrid.transport.registry_client import RegistryClient


@pytest.fixture
async def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, list[str]]]:
    """Where somebody listens, and the heads of what was asked there; a login for any host lies in a file."""
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + b'{"models":[]}')
        writer.close()

    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", heads


async def test_a_login_in_a_file_disturbs_no_call(heard: tuple[str, list[str]]) -> None:
    place, heads = heard
    async with RegistryClient(f"http://{place}", None) as client:
        assert await client.models() == ()
    assert "authorization" not in heads[0].lower()


async def test_calls_go_by_the_environments_proxy(
    heard: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, heads = heard
    monkeypatch.setenv("http_proxy", f"http://box:word@{place}")
    async with RegistryClient("http://gateway.invalid:8080", None) as client:
        assert await client.models() == ()
    assert heads[0].split()[1] == "http://gateway.invalid:8080/v2/hybrid/models"
    assert "Proxy-Authorization: Basic Ym94OndvcmQ=" in heads[0]
