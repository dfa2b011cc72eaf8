"""Requests that their callers withdraw, as a faster device does: they still tell of the link, dead or alive."""

import time

import pytest

from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from tests.transport.conftest import ask, eventually

BLACKHOLE = Shape(up=Direction(open=False), down=Direction(open=False))
STALL_S = 0.6


def withdrawn(client, after_s: float, n_bytes: int = 20_000) -> None:
    """A request that is withdrawn before its answer."""
    future = client.infer(ask("slow:30", n_bytes), stall_s=STALL_S, timeout_s=30)
    time.sleep(after_s)
    future.cancel()


@pytest.mark.parametrize("flags", [(), ("--block", "403")], ids=["channel", "http"])
def test_a_dead_link_is_noticed_though_every_request_is_withdrawn(server_of, client_of, flags):
    server = server_of(*flags)
    with ShapedProxy(server.port) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        for _ in range(5):
            withdrawn(client, 0.02)
        assert client.state == "ready", "withdrawing alone is no fault"
        link.set(BLACKHOLE)
        since_s = time.monotonic()
        while client.state == "ready" and time.monotonic() - since_s < 10:
            withdrawn(client, 0.02)
        assert time.monotonic() - since_s < 3 * STALL_S
        time.sleep(3)  # longer than one attempt to connect is left alone
        link.set(Shape())
        since_s = time.monotonic()
        assert eventually(lambda: client.state == "ready", 10)
        assert time.monotonic() - since_s < 3.0


def test_a_connection_that_was_just_used_is_watched(server_of, client_of):
    server = server_of()
    client = client_of(server.url)
    client.infer(ask("echo"), stall_s=STALL_S, timeout_s=5).result(5)
    server.freeze()
    assert eventually(lambda: client.state != "ready", 4), "before anybody asks it again"
    server.thaw()
    assert eventually(lambda: client.state == "ready", 5)


def test_an_upload_that_is_cut_off_teaches_the_goodput(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port, Shape(up=Direction(rate_bps=8e6, delay_s=0.01))) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        assert client.link.view.uplink_bps is None
        for _ in range(6):
            withdrawn(client, 0.25, 3_000_000)
            time.sleep(0.3)
        measured_bps = client.link.view.uplink_bps
        assert measured_bps is not None
        assert 5e6 < measured_bps < 9e6


def test_a_reply_tells_how_far_its_request_is(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port, Shape(up=Direction(rate_bps=4e6))) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        reply = client.infer(ask("echo", 400_000), stall_s=5, timeout_s=20)
        assert eventually(lambda: reply.acked_bytes > 0)
        assert reply.acked_bytes <= reply.sent_bytes < 400_000
        reply.result(10)
        assert reply.sent_bytes > 400_000
