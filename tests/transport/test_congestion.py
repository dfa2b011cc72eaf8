"""The congestion control of a connection is read from its socket, so that the link estimate begins with it."""

import asyncio
import socket

import pytest

from hybrid.transport.pump import congestion_control


async def _of_a_connection(wanted: bytes) -> tuple[str, str]:
    """The name that is read of a connection whose control was set, and the one that the kernel tells."""
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    tcp = writer.get_extra_info("socket")
    try:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, wanted)
    except OSError:
        pytest.skip(f"this kernel does not offer {wanted.decode()}")
    found = congestion_control(writer.transport)
    writer.close()
    server.close()
    return found, wanted.decode()


@pytest.mark.skipif(not hasattr(socket, "TCP_CONGESTION"), reason="this platform does not tell it")
@pytest.mark.parametrize("wanted", [b"reno", b"cubic", b"bbr"])
def test_the_name_is_that_of_the_kernel(wanted: bytes) -> None:
    found, named = asyncio.run(_of_a_connection(wanted))
    assert found == named


def test_without_a_socket_nothing_is_told() -> None:
    assert congestion_control(None) == ""
    assert congestion_control(asyncio.BaseTransport()) == ""
