"""A TLS gateway that is asked in plain HTTP: the message says what to look at."""

import asyncio

import pytest

from hybrid.errors import ConnectionLost
from hybrid.transport.registry_client import RegistryClient


async def test_a_plain_call_to_tls_says_so() -> None:
    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLost, match="does it speak TLS") as caught:
            async with RegistryClient(f"http://127.0.0.1:{port}", None) as client:
                await client.get("v2/health/live")
    assert "https://" in str(caught.value.advice)
