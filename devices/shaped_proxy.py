"""A link between two programs on one machine: a TCP proxy with rate, delay, blackholes, refusals and resets.

For tests, demos and wherever network namespaces are not allowed. It needs no rights and runs in a thread of its own.

Design: each direction is one lane that all connections share, with a virtual clock of when it is free again; a chunk
waits for its turn, then spends the lane's delay in a line before it is written on. Socket buffers are small on both
sides, so that a sender feels the rate after some 100 kB and not after megabytes. A blackhole reads and writes nothing
until it ends, then all that was on the way goes on, as retransmissions would bring it. A new connection waits one round
trip before its first byte. There is no loss, no reordering and no slow start: those need real packets.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

from devices.errors import EmulationError
from devices.shape import Direction, Shape

_BUFFER_BYTES: Final = 32 * 1024
_CHUNK_S: Final = 0.001
"""A chunk is about what the lane carries in this time, within the bounds below."""
_MIN_CHUNK_BYTES: Final = 1024
_MAX_CHUNK_BYTES: Final = 16 * 1024
_SLACK_S: Final = 0.004
"""How late a chunk may come and still count as in time: the event loop's clock ticks in milliseconds."""
_LONGEST_SLEEP_S: Final = 0.02
"""After at most this time a changed rate is noticed."""
_LINE_LENGTH: Final = 256
_CONNECT_TIMEOUT_S: Final = 5.0
_THREAD_TIMEOUT_S: Final = 10.0
_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a socket a reset."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What passed so far: bytes delivered each way, connections taken, connections open."""

    up_bytes: int
    down_bytes: int
    n_connections: int
    n_open: int


_Line = asyncio.Queue[tuple[float, bytes | OSError]]
"""What is on its way in one direction of one connection: when it is due, and the bytes, their end, or a reset."""


class _Lane:
    """One direction's state; touched by the proxy's thread alone."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.n_bytes = 0
        self._free_at_s = 0.0
        self._gate = asyncio.Event()
        self.set(direction)

    def set(self, direction: Direction) -> None:
        """Takes the new shape for all that still waits."""
        self.direction = direction
        if direction.open:
            self._gate.set()
        else:
            self._gate.clear()

    @property
    def chunk_bytes(self) -> int:
        """How much to read at once."""
        rate_bps = self.direction.rate_bps
        if rate_bps is None:
            return _MAX_CHUNK_BYTES
        return min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, int(rate_bps * _CHUNK_S / 8)))

    async def opened(self) -> None:
        """Returns while the lane is no blackhole."""
        while not self.direction.open:
            await self._gate.wait()

    async def carry(self, n_bytes: int) -> float:
        """Waits until the lane has taken so many bytes; returns when they are due at the other end."""
        now_s = asyncio.get_running_loop().time
        rate_bps = self.direction.rate_bps
        finish_s = now_s()
        if rate_bps is not None:
            finish_s = max(self._free_at_s, now_s() - _SLACK_S) + n_bytes * 8 / rate_bps
            self._free_at_s = finish_s
        while (left_s := finish_s - now_s()) > 0:
            await asyncio.sleep(min(left_s, _LONGEST_SLEEP_S))
            changed_bps = self.direction.rate_bps
            if changed_bps != rate_bps:
                rate_bps = changed_bps
                own_s = n_bytes * 8 / rate_bps if rate_bps is not None else 0.0
                finish_s = min(finish_s, now_s() + own_s)
                self._free_at_s = finish_s
        await self.opened()
        return now_s() + self.direction.delay_s


class ShapedProxy:
    """A shaped link to one TCP address; a context manager.

    Attributes:
        port: where to connect on 127.0.0.1; stays the same while connections are refused.
    """

    def __init__(self, target_port: int, shape: Shape | None = None, *, target_host: str = "127.0.0.1") -> None:
        """Starts the link and its thread.

        Args:
            target_port: TCP port that connections are carried to.
            shape: of the link at first; without one it is wide open.
            target_host: IPv4 address of the target.
        """
        self._target = (target_host, target_port)
        self._shape = shape or Shape()
        self._n_connections = 0
        self._connections: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}
        listener = _listener(0)
        self.port: int = listener.getsockname()[1]
        ready: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listener, ready)), name="shaped-proxy", daemon=True
        )
        self._thread.start()
        ready.result(_THREAD_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def shape(self) -> Shape:
        """The link's shape now."""
        return self._shape

    def set(self, shape: Shape) -> None:
        """Changes the link; from here on everything that still waits goes by the new shape."""

        def change() -> None:
            self._shape = shape
            self._up.set(shape.up)
            self._down.set(shape.down)

        self._in_loop(change)

    def refuse(self) -> None:
        """New connections are refused, as by a machine without that service; open ones stay."""
        self._in_loop(self._stop_listening)

    def accept(self) -> None:
        """New connections are taken again, on the same port."""
        self._in_loop(self._listen)

    def reset(self) -> None:
        """Every open connection is reset on both sides."""

        def cut() -> None:
            for task, pair in list(self._connections.items()):
                _will_reset(pair)
                task.cancel()

        self._in_loop(cut)

    def traffic(self) -> Traffic:
        """What passed so far."""
        return Traffic(
            up_bytes=self._up.n_bytes,
            down_bytes=self._down.n_bytes,
            n_connections=self._n_connections,
            n_open=len(self._connections),
        )

    def close(self) -> None:
        """Cuts every connection and ends the thread; a second call does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop ended by itself meanwhile
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(_THREAD_TIMEOUT_S)

    def _in_loop(self, act: Callable[[], Result]) -> Result:
        """Runs in the proxy's thread and waits for it."""
        done: Future[Result] = Future()

        def call() -> None:
            try:
                done.set_result(act())
            except Exception as error:  # noqa: BLE001 - handed to the caller's thread
                done.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError as error:
            raise EmulationError("this link is closed; make a new one") from error
        return done.result(_THREAD_TIMEOUT_S)

    async def _main(self, listener: socket.socket, ready: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "this coroutine is what asyncio.run runs"
        self._task = task
        self._up, self._down = _Lane(self._shape.up), _Lane(self._shape.down)
        self._listener: socket.socket | None = None
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._start_accepting(listener)
                ready.set_result(None)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass  # close() asked for it; the group has ended every connection
        finally:
            self._stop_listening()

    def _listen(self) -> None:
        if self._listener is None:
            self._start_accepting(_listener(self.port))

    def _start_accepting(self, listener: socket.socket) -> None:
        self._listener = listener
        self._accepting = self._tasks.create_task(self._accept_all(listener))

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._accepting.cancel()
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    async def _accept_all(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = await self._loop.sock_accept(listener)
            except OSError:
                return  # closed under our hands: refusing
            self._n_connections += 1
            far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            task = self._tasks.create_task(self._serve(near, far))
            self._connections[task] = (near, far)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Closes a connection's sockets, also where its task was cancelled before it began."""
        for one in self._connections.pop(task):
            one.close()

    async def _serve(self, near: socket.socket, far: socket.socket) -> None:
        try:
            for one in (near, far):
                _tune(one)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.sock_connect(far, self._target)
            await asyncio.sleep(self._shape.up.delay_s + self._shape.down.delay_s)
            async with asyncio.TaskGroup() as pumps:
                self._pump(pumps, self._up, near, far)
                self._pump(pumps, self._down, far, near)
        except* OSError:
            _will_reset((near, far))

    def _pump(self, tasks: asyncio.TaskGroup, lane: _Lane, source: socket.socket, sink: socket.socket) -> None:
        line: _Line = asyncio.Queue(_LINE_LENGTH)
        tasks.create_task(self._take(lane, source, line))
        tasks.create_task(self._deliver(lane, line, sink))

    async def _take(self, lane: _Lane, source: socket.socket, line: _Line) -> None:
        data: bytes = b"-"
        while data:
            await lane.opened()
            try:
                data = await self._loop.sock_recv(source, lane.chunk_bytes)
            except OSError as error:
                await line.put((await lane.carry(0), error))  # a reset travels behind what was sent before it
                return
            await line.put((await lane.carry(len(data)), data))

    async def _deliver(self, lane: _Lane, line: _Line, sink: socket.socket) -> None:
        while True:
            due_s, data = await line.get()
            if (left_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(left_s)
            await lane.opened()
            if isinstance(data, OSError):
                raise data
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(sink, data)
            lane.n_bytes += len(data)


def _listener(port: int) -> socket.socket:
    """A listening socket on loopback whose connections inherit the small receive buffer."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _tune(one: socket.socket) -> None:
    one.setblocking(False)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)


def _will_reset(pair: tuple[socket.socket, socket.socket]) -> None:
    """Makes closing these sockets a reset."""
    for one in pair:
        with contextlib.suppress(OSError):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
