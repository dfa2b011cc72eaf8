"""The shaped link does what it says: rate, delay, blackhole, refusal, reset; over real sockets."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from devices.errors import EmulationError
from devices.shape import Direction, Shape
from devices.shaped_proxy import ShapedProxy

WAIT_S = 20.0


class Sink:
    """A server that sends back what it gets, or only notes when how much of it came."""

    def __init__(self, *, echo: bool) -> None:
        self.echo = echo
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.received: list[tuple[float, int]] = []
        self.threads: list[threading.Thread] = []
        self.acceptor = threading.Thread(target=self.accept)
        self.acceptor.start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self.answer, args=(connection,))
            thread.start()
            self.threads.append(thread)

    def answer(self, connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while data := connection.recv(65536):
                    self.received.append((time.perf_counter(), len(data)))
                    if self.echo:
                        connection.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in (self.acceptor, *self.threads):
            thread.join(WAIT_S)


@contextmanager
def link(shape: Shape | None = None, *, echo: bool = True) -> Iterator[tuple[ShapedProxy, Sink]]:
    sink = Sink(echo=echo)
    try:
        with ShapedProxy(sink.port, shape) as proxy:
            yield proxy, sink
    finally:
        sink.close()


def connect(proxy: ShapedProxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), WAIT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def exchange(connection: socket.socket, data: bytes) -> float:
    """Seconds until all of it came back."""
    started_s = time.perf_counter()
    connection.sendall(data)
    left = len(data)
    while left:
        piece = connection.recv(left)
        assert piece, "the connection ended"
        left -= len(piece)
    return time.perf_counter() - started_s


def goodput_bps(received: list[tuple[float, int]]) -> float:
    """Between the first fifth, where buffers fill, and the end."""
    later = received[len(received) // 5 :]
    return 8 * sum(n_bytes for _, n_bytes in later[1:]) / (later[-1][0] - later[0][0])


@pytest.mark.parametrize("rate_mbps", [1, 5, 20, 50])
def test_uplink_goodput_is_the_set_rate(rate_mbps: int) -> None:
    rate_bps = rate_mbps * 1e6
    with link(Shape(up=Direction(rate_bps=rate_bps)), echo=False) as (proxy, sink), connect(proxy) as connection:
        connection.sendall(bytes(int(rate_bps / 8 * 0.9)))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
        assert goodput_bps(sink.received) == pytest.approx(rate_bps, rel=0.08)
        assert proxy.traffic().up_bytes == int(rate_bps / 8 * 0.9)


def test_connections_share_the_rate() -> None:
    rate_bps = 8e6
    n_bytes = 300_000
    with link(Shape(up=Direction(rate_bps=rate_bps)), echo=False) as (proxy, _sink):
        connections = [connect(proxy) for _ in range(3)]

        def send(connection: socket.socket) -> None:
            with connection:
                connection.sendall(bytes(n_bytes))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)

        threads = [threading.Thread(target=send, args=(connection,)) for connection in connections]
        started_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert time.perf_counter() - started_s == pytest.approx(3 * n_bytes * 8 / rate_bps, rel=0.15)


def test_round_trip_is_the_two_delays() -> None:
    shape = Shape(up=Direction(delay_s=0.03), down=Direction(delay_s=0.02))
    with link(shape) as (proxy, _), connect(proxy) as connection:
        started_s = time.perf_counter()
        exchange(connection, b"x")
        assert time.perf_counter() - started_s >= 0.1, "a new connection costs one round trip more"
        round_trips_s = sorted(exchange(connection, b"x") for _ in range(15))
        assert round_trips_s[0] >= 0.0495
        assert round_trips_s[len(round_trips_s) // 2] < 0.06


def test_a_sender_feels_the_rate() -> None:
    """What lies in buffers between a sender and a slow lane stays small."""
    with link(Shape(up=Direction(rate_bps=200e3)), echo=False) as (proxy, _), connect(proxy) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 * 1024)
        connection.setblocking(False)
        sent, until_s = 0, time.perf_counter() + 1.0
        while time.perf_counter() < until_s:
            try:
                sent += connection.send(bytes(4096))
            except BlockingIOError:
                time.sleep(0.005)
        assert sent < 300_000


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_blackhole_holds_everything_and_lets_it_go_on(way: str) -> None:
    wide = Direction(rate_bps=20e6, delay_s=0.005)
    dead = Direction(rate_bps=20e6, delay_s=0.005, open=False)
    with link(Shape(up=wide, down=wide)) as (proxy, _), connect(proxy) as connection:
        exchange(connection, b"before")
        proxy.set(Shape(up=dead if way == "up" else wide, down=dead if way == "down" else wide))
        connection.sendall(b"during")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(WAIT_S)
        proxy.set(Shape(up=wide, down=wide))
        assert connection.recv(6, socket.MSG_WAITALL) == b"during"
        assert exchange(connection, b"after") < 0.1


def test_the_rate_changes_under_way() -> None:
    slow, fast = Shape(up=Direction(rate_bps=100e3)), Shape(up=Direction(rate_bps=50e6))
    with link(slow) as (proxy, _), connect(proxy) as connection:
        seconds: list[float] = []
        thread = threading.Thread(target=lambda: seconds.append(exchange(connection, bytes(200_000))))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "16 s of data cannot be there after 0.3"
        proxy.set(fast)
        thread.join(WAIT_S)
        assert seconds[0] < 2.0
        assert proxy.shape == fast


def test_refused_then_taken_again_on_the_same_port() -> None:
    with link() as (proxy, _):
        with connect(proxy) as connection:
            exchange(connection, b"taken, not only queued by the kernel")
            proxy.refuse()
            proxy.refuse()
            assert exchange(connection, b"open ones stay") < WAIT_S
            with pytest.raises(ConnectionRefusedError):
                connect(proxy)
            proxy.accept()
            proxy.accept()
        with connect(proxy) as connection:
            exchange(connection, b"again")


def test_reset_reaches_both_sides() -> None:
    with link() as (proxy, _), connect(proxy) as connection:
        exchange(connection, b"x")
        assert proxy.traffic().n_open == 1
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        with connect(proxy) as second:
            exchange(second, b"y")
            assert (proxy.traffic().n_connections, proxy.traffic().n_open) == (2, 1)


def test_a_reset_comes_behind_what_was_sent_before_it() -> None:
    """A server that answers and is killed: the answer, still on its way, arrives first."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        delay = Direction(delay_s=0.2)
        with ShapedProxy(server.getsockname()[1], Shape(down=delay)) as proxy, connect(proxy) as connection:
            accepted, _ = server.accept()
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.sendall(b"answer")
            connection.sendall(b"x")
            assert accepted.recv(1) == b"x", "the proxy has long taken the answer"
            accepted.close()
            assert connection.recv(6, socket.MSG_WAITALL) == b"answer"
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_a_dead_target_resets_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        port = nobody.getsockname()[1]
    with ShapedProxy(port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as connection:
        connection.recv(1)


def test_half_closed_connections_finish() -> None:
    with (
        link(Shape(up=Direction(rate_bps=2e6), down=Direction(delay_s=0.02))) as (proxy, _),
        connect(proxy) as connection,
    ):
        connection.sendall(bytes(100_000))
        connection.shutdown(socket.SHUT_WR)
        received = 0
        while data := connection.recv(65536):
            received += len(data)
        assert received == 100_000


def test_close_ends_the_thread_and_a_closed_link_says_so() -> None:
    with link() as (proxy, _):
        connection = connect(proxy)
        exchange(connection, b"x")
        proxy.close()
        proxy.close()
        assert not any(thread.name == "shaped-proxy" for thread in threading.enumerate())
        with pytest.raises(EmulationError, match="closed"):
            proxy.reset()
        connection.close()


@pytest.mark.parametrize("bad", [{"rate_bps": 0}, {"rate_bps": -1.0}, {"rate_bps": float("inf")}, {"delay_s": -0.1}])
def test_impossible_shapes_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(EmulationError):
        Direction(**bad)
