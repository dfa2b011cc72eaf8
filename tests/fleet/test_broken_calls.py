"""A box's calls over a link that breaks in the middle of an answer: what is raised is one of ours."""

import asyncio
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hybrid.errors import ConnectionLost
from hybrid.fleet.messages import Hello
from hybrid.transport import environment_proxy
from hybrid.transport.fleet_hello import Met
from hybrid.transport.fleet_link import FleetLink


async def _nowhere() -> Met:
    raise AssertionError("it is met already")


def _link(url: str) -> FleetLink:
    """A link to a gateway that was met."""
    link = FleetLink(_nowhere, learn_time=lambda time_s: None)
    link.token.text = "hyb_token"
    link.met = Met(
        url=url,
        hello=Hello(protocol=1, authority_key=b"", nonce=b"", time_s=0.0, signature=b""),
        spki_sha256=b"",
        certificate_sha256=None,
        protocol=1,
    )
    return link


async def test_an_error_that_is_cut_off_is_a_lost_connection():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    link = _link(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        with pytest.raises(ConnectionLost):
            async with link.call("GET", "/v2/anything"):
                pass
        assert isinstance(link.trouble, ConnectionLost)
    finally:
        await link.close()
        server.close()


async def test_the_environments_proxy_is_asked_for_once_and_logins_in_files_disturb_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    asked = []
    ask = environment_proxy.environment_proxy
    monkeypatch.setattr(environment_proxy, "environment_proxy", lambda url: (asked.append(url), ask(url))[1])
    (tmp_path / "netrc").write_text("default login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # a login beside the token would be an error of every call
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    monkeypatch.setenv("http_proxy", f"http://box:word@127.0.0.1:{server.sockets[0].getsockname()[1]}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    link = _link("http://gateway.invalid:8080")
    try:
        for _ in range(3):
            async with link.call("GET", "/v2/anything") as response:
                assert await response.read() == b"ok"
    finally:
        await link.close()
        server.close()
    assert [head.split()[1] for head in heads] == ["http://gateway.invalid:8080/v2/anything"] * 3
    assert all("Authorization: Bearer hyb_token" in head for head in heads)
    assert all("Proxy-Authorization: Basic Ym94OndvcmQ=" in head for head in heads)
    assert len(asked) == 1


async def test_a_connection_that_ended_while_the_loop_was_busy_is_not_used_again() -> None:
    ends = threading.Event()

    def serve(listening: socket.socket) -> None:
        for is_last in (False, True):
            connection, _ = listening.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                assert is_last or ends.wait(10)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(5)
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        link = _link(f"http://127.0.0.1:{listening.getsockname()[1]}")
        try:
            for n_calls in range(2):
                async with link.call("POST", "/v2/anything", data=b"x") as response:
                    assert await response.read() == b"ok"
                if not n_calls:
                    ends.set()
                    time.sleep(0.1)  # noqa: ASYNC251 (the loop is busy while the gateway goes)
        finally:
            ends.set()
            await link.close()
            thread.join(10)
