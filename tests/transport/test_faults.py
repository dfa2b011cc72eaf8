"""Faults between a client and a real server process: every request ends, typed and in time, and service returns."""

import json
import os
import signal
import threading
import time
import traceback
from concurrent.futures import wait

import pytest
from aiohttp import web

from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy
from hybrid.errors import ConnectionLost, GatewayStalled, GatewayUnreachable, LinkError, Overloaded, VersionMismatch
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire import frames
from hybrid.wire.frames import Hello
from tests.transport.conftest import ask, counts, eventually

STALL_S = 0.6
BLACKHOLE = Shape(up=Direction(open=False), down=Direction(open=False))


def works_again(client) -> bool:
    def answers() -> bool:
        if client.state != "ready":
            return False
        return client.infer(ask("echo"), stall_s=5, timeout_s=5).exception(10) is None

    return eventually(answers, 20)


def seconds_to_error(future, kinds) -> float:
    since_s = time.monotonic()
    with pytest.raises(kinds):
        future.result(10)
    return time.monotonic() - since_s


def test_a_server_killed_in_mid_request(server_of, client_of):
    server = server_of()
    client = client_of(server.url)
    futures = [client.infer(ask("slow:30"), stall_s=5, timeout_s=30) for _ in range(3)]
    assert eventually(lambda: counts(client)["running"] == 3)
    server.kill()
    since_s = time.monotonic()
    for future in futures:
        assert isinstance(future.exception(5), ConnectionLost)
    assert time.monotonic() - since_s < 1
    server.start()
    assert works_again(client)


def test_a_server_frozen_in_mid_upload(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port, Shape(up=Direction(rate_bps=4e6))) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        future = client.infer(ask("echo", 3_000_000), stall_s=STALL_S, timeout_s=30)
        assert eventually(lambda: link.traffic().up_bytes > 100_000)
        server.freeze()
        assert seconds_to_error(future, GatewayStalled) < STALL_S + 2.5
        server.thaw()
        assert works_again(client)


def test_a_server_frozen_while_it_computes(server_of, client_of):
    server = server_of()
    client = client_of(server.url)
    future = client.infer(ask("slow:30"), stall_s=STALL_S, timeout_s=30)
    assert eventually(lambda: counts(client)["running"] == 1)
    server.freeze()
    assert STALL_S / 3 < seconds_to_error(future, GatewayStalled) < STALL_S * 1.4 + 0.5
    server.thaw()
    assert works_again(client)
    assert eventually(lambda: counts(client)["running"] == 0), "the lost request was cancelled"


def test_a_frozen_server_stalls_over_http_too(server_of, client_of):
    server = server_of("--block", "403")
    client = client_of(server.url)
    future = client.infer(ask("slow:30"), stall_s=STALL_S, timeout_s=30)
    assert eventually(lambda: counts(client)["running"] == 1)
    server.freeze()
    assert seconds_to_error(future, GatewayStalled) < STALL_S + 1.5
    server.thaw()
    assert works_again(client)


def test_a_connection_that_is_reset(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        future = client.infer(ask("slow:30"), stall_s=5, timeout_s=30)
        assert eventually(lambda: counts(client)["running"] == 1)
        link.reset()
        assert seconds_to_error(future, ConnectionLost) < 1
        assert works_again(client)
        assert eventually(lambda: counts(client)["running"] == 0), "its loss cancels the computation"


def test_a_blackhole_stalls_and_the_way_back_is_found(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        future = client.infer(ask("slow:30"), stall_s=STALL_S, timeout_s=30)
        assert eventually(lambda: counts(client)["running"] == 1)
        link.set(BLACKHOLE)
        assert seconds_to_error(future, GatewayStalled) < STALL_S * 1.4 + 0.5
        doomed = client.infer(ask("echo"), stall_s=STALL_S, timeout_s=30)
        assert seconds_to_error(doomed, LinkError) < STALL_S * 1.4 + 0.5
        link.set(Shape())
        assert works_again(client)


def test_a_slow_link_is_no_stall(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port, Shape(up=Direction(rate_bps=1e6, delay_s=0.05))) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        since_s = time.monotonic()
        response = client.infer(ask("echo", 250_000), stall_s=1.0, timeout_s=30).result(30)
        assert time.monotonic() - since_s > 1.9, "2 Mbit at 1 Mbit/s"
        assert response.outputs[0].n_bytes == 250_000


@pytest.mark.slow
def test_an_upload_does_not_delay_small_frames(server_of, client_of):
    server = server_of()
    shape = Shape(up=Direction(rate_bps=2e6, delay_s=0.02), down=Direction(rate_bps=2e6, delay_s=0.02))
    with ShapedProxy(server.port, shape) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        slow = client.infer(ask("slow:60"), stall_s=10, timeout_s=60)
        assert eventually(lambda: counts(client)["running"] == 1)
        upload = client.infer(ask("echo", 600_000), stall_s=10, timeout_s=30)
        assert eventually(lambda: link.traffic().up_bytes > 150_000)
        since_s = time.monotonic()
        assert counts(client)["running"] == 1, "a small request passes a large one"
        small_s = time.monotonic() - since_s
        slow.cancel()
        since_s = time.monotonic()
        # Asked by a second connection of its own, which shares nothing with the upload.
        watcher = acquire(server.url, None, trust=Trust())
        assert eventually(lambda: counts(watcher)["running"] == 0)
        cancel_s = time.monotonic() - since_s
        release(watcher)
        assert not upload.done(), "all this happened during the upload"
        assert upload.result(30).outputs[0].n_bytes == 600_000
        assert small_s < 0.8
        assert cancel_s < 0.6
        print(f"small request {small_s:.3f} s, cancel {cancel_s:.3f} s")


def test_a_server_that_drains_answers_what_it_has(server_of):
    server = server_of()
    client = acquire(server.url, None, trust=Trust())
    client.wait_settled(10)
    future = client.infer(ask("slow:1"), stall_s=5, timeout_s=30)
    assert eventually(lambda: counts(client)["running"] == 1)
    server.process.send_signal(signal.SIGTERM)
    assert future.result(10).compute_s == 1.0
    late = client.infer(ask("echo"), stall_s=2, timeout_s=5)
    assert isinstance(late.exception(10), LinkError | Overloaded)
    assert server.process.wait(10) == 0
    release(client)


@pytest.mark.parametrize("carrier", ["websocket", "http"])
def test_a_gateway_of_another_protocol_version(carrier, client_of):
    hello = Hello(versions=(7, 9), software="future", initial_credit_bytes=1, max_streams=1, max_message_bytes=1)

    async def channel(request: web.Request) -> web.StreamResponse:
        if carrier == "http":
            return web.Response(status=403)
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_bytes(frames.hello_frame(hello))
        async for _ in ws:
            continue
        return ws

    async def say_hello(_: web.Request) -> web.Response:
        return web.json_response({name: getattr(hello, name) for name in hello.__struct_fields__})

    app = web.Application()
    app.router.add_get("/v2/hybrid/channel", channel)
    app.router.add_get("/v2/hybrid/hello", say_hello)
    with serving(app) as port:
        client = client_of(f"http://127.0.0.1:{port}", wait=False)
        assert client.wait_settled(10) == "down"
        assert client.down_reason.startswith(VersionMismatch.code)
        assert "7 to 9" in client.down_reason
        assert isinstance(client.infer(ask("echo"), stall_s=1, timeout_s=1).exception(5), GatewayUnreachable)


def test_a_gateway_that_talks_nonsense(client_of):
    async def channel(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        await ws.send_bytes(b"\xff" * 100)
        async for _ in ws:
            continue
        return ws

    app = web.Application()
    app.router.add_get("/v2/hybrid/channel", channel)
    with serving(app) as port:
        client = client_of(f"http://127.0.0.1:{port}", wait=False)
        assert client.wait_settled(10) == "down"
        assert client.down_reason.startswith("bad_frame")


class serving:  # noqa: N801  (reads as a verb)
    """An application on a thread of its own."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._port: list[int] = []
        self._ready = threading.Event()

    def __enter__(self) -> int:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()
        return self._port[0]

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        import asyncio

        async def main() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            runner = web.AppRunner(self._app, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self._port.append(runner.addresses[0][1])
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_leaves_the_parent_alone_and_the_child_connects_anew(server_of, client_of):
    client = client_of(server_of().url)
    in_flight = client.infer(ask("slow:2"), stall_s=5, timeout_s=20)
    assert eventually(lambda: counts(client)["running"] == 1)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = client.infer(ask("echo", 50_000), stall_s=5, timeout_s=10).result(15)
            found = {"n_bytes": answer.outputs[0].n_bytes, "running": counts(client)["running"]}
        except BaseException:  # noqa: BLE001  (the parent shall see it)
            found = {"error": traceback.format_exc()}
        os.write(write_end, json.dumps(found).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        found = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert found == {"n_bytes": 50_000, "running": 1}
    assert in_flight.result(10).compute_s == 2.0
    assert client.infer(ask("echo"), stall_s=5, timeout_s=10).result(10).model_name == "echo"


def test_a_thousand_requests_over_a_link_that_keeps_breaking_all_end(server_of, client_of):
    server = server_of()
    with ShapedProxy(server.port) as link:
        client = client_of(f"http://127.0.0.1:{link.port}")
        futures = []
        for n in range(20):
            futures += [client.infer(ask("echo", 30_000), stall_s=1, timeout_s=5) for _ in range(50)]
            if n % 3 == 0:
                link.reset()
            wait(futures[-50:], 0.2)
        done, not_done = wait(futures, 20)
        assert not not_done
        results = [future for future in done if future.exception() is None]
        errors = {type(future.exception()) for future in done if future.exception() is not None}
        assert results
        assert all(future.result().outputs[0].n_bytes == 30_000 for future in results)
        assert errors <= {ConnectionLost, GatewayUnreachable, GatewayStalled, Overloaded}
        assert works_again(client)
