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
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeVar

from devices.errors import EmulationError
from devices.proxy_lane import Lane
from devices.shape import LinkStatistics, Shape, Step, sound_steps

_BUFFER_BYTES: Final = 32 * 1024
_LINE_LENGTH: Final = 256
_CONNECT_TIMEOUT_S: Final = 5.0
_THREAD_TIMEOUT_S: Final = 10.0
_HALF_TICK_S: Final = 0.0005
"""The event loop rounds its sleeps up to milliseconds; so on average they end in time."""
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


@dataclass(slots=True)
class _Door:
    """One port where connections are taken, and the port that they are carried to."""

    port: int
    target_port: int
    listener: socket.socket | None = None
    accepting: "asyncio.Task[None] | None" = None


class ShapedProxy:
    """A shaped link to TCP ports of one address; a context manager.

    Attributes:
        port: where to connect on 127.0.0.1; stays the same while connections are refused.
    """

    def __init__(
        self, target_port: int, shape: Shape | None = None, *, target_host: str = "127.0.0.1", seed: int = 0
    ) -> None:
        """Starts the link and its thread.

        Args:
            target_port: TCP port that connections are carried to.
            shape: of the link at first; without one it is wide open.
            target_host: IPv4 address of the target.
            seed: of losses and jitter.
        """
        self._target_host, self._seed = target_host, seed
        self._shape = shape or Shape()
        self._n_connections = 0
        self._connections: dict[asyncio.Task[None], tuple[socket.socket, socket.socket]] = {}
        listener = _listener(0)
        self.port: int = listener.getsockname()[1]
        self._doors = {target_port: _Door(self.port, target_port, listener)}
        self._taking = True
        self._playing: asyncio.Task[None] | None = None
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="shaped-proxy", daemon=True)
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
        """Changes the link; from here on everything that still waits goes by the new shape. Ends a played trace."""

        def change() -> None:
            self._stop_playing()
            self._change(shape)

        self._in_loop(change)

    def blackhole(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes these ways until `restore`, whatever the shape says."""

        def turn() -> None:
            self._up.close(up)
            self._down.close(down)

        self._in_loop(turn)

    def restore(self) -> None:
        """Ends a blackhole; what waited goes on."""
        self.blackhole(up=False, down=False)

    def play(self, steps: Sequence[Step], *, loop_s: float = 0.0) -> None:
        """Plays a trace from now on; the last shape stays.

        Args:
            steps: shapes and when they begin.
            loop_s: begin anew every so many seconds, later than the last step; 0 plays once.
        """
        sound = sound_steps(steps, loop_s)

        def start() -> None:
            self._stop_playing()
            self._playing = self._tasks.create_task(self._play(sound, loop_s))

        self._in_loop(start)

    def refuse(self) -> None:
        """New connections are refused, as by a machine without that service; open ones stay."""
        self._in_loop(self._stop_listening)

    def accept(self) -> None:
        """New connections are taken again, on the same ports."""
        self._in_loop(self._listen)

    def port_to(self, target_port: int) -> int:
        """The port on 127.0.0.1 that leads over this same link to another port of the target."""

        def find() -> int:
            if target_port not in self._doors:
                listener = _listener(0)
                self._doors[target_port] = door = _Door(listener.getsockname()[1], target_port, listener)
                self._start_accepting(door)
                if not self._taking:
                    self._shut(door)
            return self._doors[target_port].port

        return self._in_loop(find)

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
            up_bytes=self._up.tally.n_bytes,
            down_bytes=self._down.tally.n_bytes,
            n_connections=self._n_connections,
            n_open=len(self._connections),
        )

    def statistics(self) -> LinkStatistics:
        """What passed so far either way, and what the emulation itself cost."""
        return self._in_loop(
            lambda: LinkStatistics(
                up=self._up.tally.passage(),
                down=self._down.tally.passage(),
                elapsed_s=self._loop.time() - self._began_s,
                cpu_s=time.thread_time(),
            )
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

    async def _main(self, ready: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None, "this coroutine is what asyncio.run runs"
        self._task, self._began_s = task, self._loop.time()
        self._up, self._down = Lane(self._shape.up, self._seed), Lane(self._shape.down, self._seed + 1_000_003)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for door in self._doors.values():
                    self._start_accepting(door)
                ready.set_result(None)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass  # close() asked for it; the group has ended every connection
        finally:
            self._stop_listening()

    def _change(self, shape: Shape) -> None:
        self._shape = shape
        self._up.set(shape.up)
        self._down.set(shape.down)

    def _stop_playing(self) -> None:
        if self._playing is not None:
            self._playing.cancel()
            self._playing = None

    async def _play(self, steps: tuple[Step, ...], loop_s: float) -> None:
        from_s = self._loop.time()
        while True:
            for step in steps:
                await asyncio.sleep(from_s + step.at_s - self._loop.time())
                self._change(step.shape)
            if not loop_s:
                return
            from_s += loop_s

    def _listen(self) -> None:
        self._taking = True
        for door in self._doors.values():
            if door.listener is None:
                door.listener = _listener(door.port)
                self._start_accepting(door)

    def _start_accepting(self, door: _Door) -> None:
        assert door.listener is not None, "a door that opens has a socket"
        door.accepting = self._tasks.create_task(self._accept_all(door.listener, door.target_port))

    def _stop_listening(self) -> None:
        self._taking = False
        for door in self._doors.values():
            self._shut(door)

    def _shut(self, door: _Door) -> None:
        if door.listener is not None:
            if door.accepting is not None:
                door.accepting.cancel()
            self._loop.remove_reader(door.listener)
            door.listener.close()
            door.listener = None

    async def _accept_all(self, listener: socket.socket, target_port: int) -> None:
        while True:
            try:
                near, _ = await self._loop.sock_accept(listener)
            except OSError:
                return  # closed under our hands: refusing
            self._n_connections += 1
            far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            task = self._tasks.create_task(self._serve(near, far, target_port))
            self._connections[task] = (near, far)
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Closes a connection's sockets, also where its task was cancelled before it began."""
        for one in self._connections.pop(task):
            one.close()

    async def _serve(self, near: socket.socket, far: socket.socket, target_port: int) -> None:
        try:
            for one in (near, far):
                _tune(one)
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._loop.sock_connect(far, (self._target_host, target_port))
            await asyncio.sleep(self._shape.rtt_s)
            async with asyncio.TaskGroup() as pumps:
                self._pump(pumps, self._up, near, far)
                self._pump(pumps, self._down, far, near)
        except* OSError:
            _will_reset((near, far))

    def _pump(self, tasks: asyncio.TaskGroup, lane: Lane, source: socket.socket, sink: socket.socket) -> None:
        line: _Line = asyncio.Queue(_LINE_LENGTH)
        tasks.create_task(self._take(lane, source, line))
        tasks.create_task(self._deliver(lane, line, sink))

    async def _take(self, lane: Lane, source: socket.socket, line: _Line) -> None:
        data: bytes = b"-"
        while data:
            await lane.opened()
            has_waited = True
            try:
                try:
                    data = source.recv(lane.chunk_bytes)
                except BlockingIOError:
                    has_waited = False
                    data = await self._loop.sock_recv(source, lane.chunk_bytes)
            except OSError as error:
                await line.put((await lane.carry(0, 0.0), error))  # a reset travels behind what was sent before it
                return
            await line.put((await lane.carry(len(data), self._shape.rtt_s, has_waited=has_waited), data))

    async def _deliver(self, lane: Lane, line: _Line, sink: socket.socket) -> None:
        while True:
            due_s, data = await line.get()
            if (left_s := due_s - _HALF_TICK_S - self._loop.time()) > 0:
                await asyncio.sleep(left_s)
            await lane.opened()
            if isinstance(data, OSError):
                raise data
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            now_s = self._loop.time()
            await self._loop.sock_sendall(sink, data)
            lane.tally.delivered(len(data), now_s, max(0.0, now_s - due_s))


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
