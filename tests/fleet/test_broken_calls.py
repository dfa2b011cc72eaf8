"""A box's calls over a link that breaks in the middle of an answer: what is raised is one of ours."""

import asyncio

import pytest

from hybrid.errors import ConnectionLost
from hybrid.fleet.messages import Hello
from hybrid.transport.fleet_hello import Met
from hybrid.transport.fleet_link import FleetLink


async def _nowhere() -> Met:
    raise AssertionError("it is met already")


async def test_an_error_that_is_cut_off_is_a_lost_connection():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    link = FleetLink(_nowhere, learn_time=lambda time_s: None)
    link.token.text = "hyb_token"
    link.met = Met(
        url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        hello=Hello(protocol=1, authority_key=b"", nonce=b"", time_s=0.0, signature=b""),
        spki_sha256=b"",
        certificate_sha256=None,
        protocol=1,
    )
    try:
        with pytest.raises(ConnectionLost):
            async with link.call("GET", "/v2/anything"):
                pass
        assert isinstance(link.trouble, ConnectionLost)
    finally:
        await link.close()
        server.close()
