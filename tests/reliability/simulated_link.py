"""A link between simulated machines: late, lossy, cut in one direction, doubling and reordering what it carries.

Design: what travels is encoded and decoded as on the real wire, so that nothing is shared by reference and a message of
another release is what its bytes say. A lost request was not done, a lost reply was: the caller cannot tell them apart.
Two messages under way together arrive in any order; a doubled one may arrive again half a minute later.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec

from hybrid.errors import ConnectionLost, GatewayStalled, GatewayUnreachable, HybridError, from_code
from hybrid.fleet.messages import IngestAnswer, IngestCall, OutcomesAnswer, OutcomesCall, StateAnswer, StateCall
from tests.reliability.virtual_loop import NODE, Node, VirtualLoop

Handler = Callable[[str, bytes], Awaitable[bytes]]
PIECE_BYTES = 65536


@dataclass
class Weather:
    """How a link is just now; changed while it works."""

    delay_s: float = 0.02
    jitter_s: float = 0.01
    bytes_per_s: float = 5e6
    lost_ratio: float = 0.0
    doubled_ratio: float = 0.0
    is_cut_up: bool = False
    is_cut_down: bool = False


class Server:
    """What listens at the far end.

    Attributes:
        node: the life of its process.
        handlers: by call.
        open: requests that wait for a reply, and the links on which they came.
    """

    def __init__(self) -> None:
        self.node: Node | None = None
        self.handlers: dict[str, Handler] = {}
        self.open: dict[Came, Link] = {}

    def end(self, *, is_told: bool) -> None:
        """Its process is gone: the kernel resets its connections, unless the machine went with it."""
        for came, link in self.open.items() if is_told else ():
            link._reply(came, ConnectionLost("connection reset"))
        self.open = {}

    @property
    def is_up(self) -> bool:
        return self.node is not None and not self.node.is_dead and bool(self.handlers)


class Link:
    """Carries requests to a server, and replies back.

    Attributes:
        weather: how it is now.
        n_requests: that arrived at the server, doubled ones included.
        arrivals_s: when.
    """

    def __init__(self, loop: VirtualLoop, server: Server, rng: Random, weather: Weather | None = None) -> None:
        self.loop, self.server, self.rng = loop, server, rng
        self.weather = weather or Weather()
        self.n_requests = 0
        self.arrivals_s: list[float] = []

    async def ask(self, who: str, call: str, request: bytes, timeout_s: float) -> bytes:
        """The reply's bytes.

        Raises:
            LinkError: it is unknown whether the server did it.
            HybridError: the server refused.
        """
        reply: asyncio.Future[bytes] = self.loop.create_future()
        came = Came(reply, NODE.get())
        self._carry(len(request), self.weather.is_cut_up, self._arrive, who, call, request, came)
        if self.rng.random() < self.weather.doubled_ratio:
            twin = Came(self.loop.create_future(), None)
            self.loop.call_later(
                self.rng.uniform(0, 30), self._carry, len(request), False, self._arrive, who, call, request, twin
            )
        try:
            async with asyncio.timeout(timeout_s):
                return await reply
        except TimeoutError:
            raise GatewayStalled(f"no reply to {call} within {timeout_s} s") from None

    def _carry(self, n_bytes: int, is_cut: bool, then: Callable, *what: Any) -> None:
        weather = self.weather
        if is_cut or self.rng.random() < weather.lost_ratio:
            return
        delay_s = weather.delay_s + self.rng.random() * weather.jitter_s + n_bytes / weather.bytes_per_s
        token = NODE.set(None)  # what is on the wire belongs to no process
        try:
            self.loop.call_later(delay_s, then, *what)
        finally:
            NODE.reset(token)

    def _arrive(self, who: str, call: str, request: bytes, came: "Came") -> None:
        if not self.server.is_up:
            self._reply(came, GatewayUnreachable("connection refused"))
            return
        self.n_requests += 1
        self.arrivals_s.append(self.loop.now_s)
        node = self.server.node
        assert node is not None, "it is up"
        self.server.open[came] = self
        self.loop.start(node, self._serve(self.server.handlers[call], who, request, came, node))

    async def _serve(self, handler: Handler, who: str, request: bytes, came: "Came", node: Node) -> None:
        try:
            answer: bytes | HybridError = await handler(who, request)
        except HybridError as exc:
            answer = exc
        if not node.is_dead:
            self.server.open.pop(came, None)
            self._reply(came, answer)

    def _reply(self, came: "Came", answer: bytes | HybridError) -> None:
        n_bytes = len(answer) if isinstance(answer, bytes) else 200
        self._carry(n_bytes, self.weather.is_cut_down, came.take, answer)


class Came:
    """Where a reply goes."""

    def __init__(self, reply: "asyncio.Future[bytes]", node: Node | None) -> None:
        self.reply, self.node = reply, node

    def take(self, answer: bytes | HybridError) -> None:
        if self.reply.done() or (self.node is not None and self.node.is_dead):
            return
        if isinstance(answer, bytes):
            self.reply.set_result(answer)
        else:
            again = from_code(answer.code, str(answer), **answer.fields)
            self.reply.set_exception(again)
            self.reply.exception()


class SimulatedCalls:
    """`FleetCalls` of one box over a link.

    Attributes:
        who: the box, as the gateway knows it; the real calls prove it by their token.
    """

    def __init__(self, link: Link, who: str) -> None:
        self.link = link
        self.who = who

    async def state(self, call: StateCall) -> StateAnswer:
        reply = await self._ask("state", msgspec.json.encode(call), call.wait_s + 15.0)
        return msgspec.json.decode(reply, type=StateAnswer)

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        return msgspec.msgpack.decode(await self._ask("ingest", msgspec.msgpack.encode(call)), type=IngestAnswer)

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        reply = await self._ask("outcomes", msgspec.msgpack.encode(call), call.wait_s + 15.0)
        return msgspec.msgpack.decode(reply, type=OutcomesAnswer)

    async def put_blob(self, sha256: str, content: bytes) -> None:
        await self._ask("put_blob", msgspec.msgpack.encode((sha256, content)))

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        reply = await self._ask("manifest", msgspec.msgpack.encode((name, version)))
        return msgspec.msgpack.decode(reply, type=tuple[bytes, str | None])

    def blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        return self._pieces("blob", sha256, offset)

    def own_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        return self._pieces("own_blob", sha256, offset)

    async def _pieces(self, call: str, sha256: str, offset: int) -> AsyncIterator[bytes]:
        while True:
            piece = await self._ask(call, msgspec.msgpack.encode((sha256, offset, PIECE_BYTES)))
            if piece:
                yield piece
            offset += len(piece)
            if len(piece) < PIECE_BYTES:
                return

    async def chunk_index(self, call: Any) -> Any:
        await self._ask("chunk_index", b"")
        raise AssertionError("the simulated gateway has no chunks")

    async def _ask(self, call: str, request: bytes, timeout_s: float = 15.0) -> bytes:
        return await self.link.ask(self.who, call, request, timeout_s)
