"""The gateway's end of the wire: the channel over a WebSocket, and the same message over HTTP POST."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Final

import msgspec
import numpy as np
from aiohttp import web

from hybrid.errors import BadMessage, HybridError, Overloaded
from hybrid.hosting.http_replies import error_reply
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.http_carrier import HEADER_LENGTH, header_length
from hybrid.transport.pump import FramePump, keep_unsent_low
from hybrid.wire.channel import Channel
from hybrid.wire.events import Event, Failed, RequestCancelled, RequestReceived, RequestRefused
from hybrid.wire.frames import Hello
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse, decode_request, encode_response

SOFTWARE: Final = f"hybrid-gateway {version('hybrid-split')}"
IDLE_TIMEOUT_S: Final = 60.0
"""A client pings at least every 15 s; one that says nothing for so long is gone."""

READ_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 2.0
WS_MESSAGE_BYTES: Final = 256 * 1024

Infer = Callable[[InferRequest, float], Awaitable[InferResponse]]
Admit = Callable[[web.Request], object]

_log = logging.getLogger("hybrid.serving")


class SplitChannel:
    """All channels of one application, and their routes."""

    def __init__(self, infer: Infer, admit: Admit, limits: Limits, bodies: BodyBudget) -> None:
        self._infer = infer
        self._admit = admit
        self._limits = limits
        self._bodies = bodies
        self._connections: set[_Connection] = set()
        self._is_draining = False

    @property
    def n_streams(self) -> int:
        """Requests on open channels that are arriving, being computed or being answered."""
        return sum(connection.n_streams for connection in self._connections)

    async def serve_channel(self, request: web.Request) -> web.StreamResponse:
        """`GET /v2/hybrid/channel`: one client's WebSocket until it ends."""
        try:
            self._admit(request)
            if self._is_draining:
                raise Overloaded("the gateway is draining; connect to another one or later", retry_after_s=1.0)
        except HybridError as exc:
            return error_reply(exc)
        ws = web.WebSocketResponse(
            compress=False, max_msg_size=WS_MESSAGE_BYTES, writer_limit=0, timeout=CLOSE_TIMEOUT_S
        )
        await ws.prepare(request)
        keep_unsent_low(request.transport)
        connection = _Connection(ws, self._infer, self._limits, self._bodies)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
        return ws

    async def serve_post(self, request: web.Request) -> web.StreamResponse:
        """`POST /v2/hybrid/infer`: one request."""
        since_s = time.monotonic()
        held = _Held(self._bodies)
        try:
            self._admit(request)
            async with asyncio.timeout(READ_TIMEOUT_S):
                message = await _read_request(request, self._limits, held)
            response = await self._infer(message, time.monotonic() - since_s)
            encoded = encode_response(response)
        except HybridError as exc:
            return error_reply(exc)
        except TimeoutError:
            return error_reply(BadMessage(f"the request's body did not arrive within {READ_TIMEOUT_S} s"))
        except Exception:  # noqa: BLE001  (logged; whatever breaks inside is one failed request)
            _log.exception("infer.failed")
            return error_reply(HybridError("the gateway failed while it computed; its log says why"))
        finally:
            held.release()
        headers = {HEADER_LENGTH: str(len(encoded.header))}
        body = b"".join((encoded.header, *encoded.buffers))
        return web.Response(body=body, content_type="application/octet-stream", headers=headers)

    async def serve_hello(self, request: web.Request) -> web.StreamResponse:
        """`GET /v2/hybrid/hello`: what a HELLO would say."""
        try:
            self._admit(request)
        except HybridError as exc:
            return error_reply(exc)
        hello = Hello(
            software=SOFTWARE,
            initial_credit_bytes=self._limits.initial_credit_bytes,
            max_streams=self._limits.streams,
            max_message_bytes=self._limits.message_bytes,
        )
        return web.Response(body=msgspec.json.encode(hello), content_type="application/json")

    async def drain(self, timeout_s: float) -> None:
        """Takes no more requests, lets those in flight end, then closes every channel."""
        self._is_draining = True
        connections = list(self._connections)
        for connection in connections:
            connection.leave()
        try:
            async with asyncio.timeout(timeout_s):
                for connection in connections:
                    await connection.ended.wait()
        except TimeoutError:
            _log.warning("channel.drain_cut n_connections=%d limit_s=%.1f", len(self._connections), timeout_s)
        for connection in list(self._connections):
            connection.cut()


class _Connection:
    """One client's channel.

    Attributes:
        ended: it is over.
    """

    def __init__(self, ws: web.WebSocketResponse, infer: Infer, limits: Limits, bodies: BodyBudget) -> None:
        self._ws = ws
        self._infer = infer
        self._bodies = bodies
        self._channel = Channel("server", limits=limits, software=SOFTWARE, now_s=time.monotonic(), ledger=bodies)
        self._pump = FramePump(self._channel, ws.send_bytes, time.monotonic)
        self._heard_s = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.ended = asyncio.Event()
        self._cut = asyncio.Event()

    @property
    def n_streams(self) -> int:
        """Requests that are arriving, being computed or being answered."""
        return self._channel.n_streams

    async def run(self) -> None:
        """Serves until the client leaves, breaks the protocol or is cut off."""
        try:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(part) for part in (self._read(group), self._write(), self._cut.wait())]
                self._watch()
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                if self._channel.is_closed:  # our last words say why
                    await asyncio.wait(parts[1:2], timeout=CLOSE_TIMEOUT_S)
                for task in (*parts, *self._tasks.values()):
                    task.cancel()
        finally:
            self.ended.set()
            self._channel.abandon()
            if self._timer is not None:
                self._timer.cancel()
            await self._ws.close(code=1002 if self._channel.is_closed else 1001)

    def leave(self) -> None:
        """Tells the client to go; it closes when its requests have been answered."""
        self._channel.go_away(Overloaded("the gateway is draining; ask another one or later", retry_after_s=1.0))
        self._pump.wake()

    def cut(self) -> None:
        """Closes now."""
        self._cut.set()

    async def _read(self, group: asyncio.TaskGroup) -> None:
        try:
            while not self._channel.is_closed:
                message = await self._ws.receive()
                if message.type is not web.WSMsgType.BINARY:
                    return
                self._heard_s = time.monotonic()
                for event in self._channel.receive(message.data, self._heard_s):
                    self._on_event(event, group)
                if self._channel.has_frames or self._channel.is_closed:
                    self._pump.wake()
        except OSError as exc:
            _log.info("channel.lost reason=%r", exc)

    def _watch(self) -> None:
        """Cuts off a client that has said nothing for too long; looks again when that may be."""
        left_s = self._heard_s + IDLE_TIMEOUT_S - time.monotonic()
        if left_s > 0:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._watch)
        else:
            _log.info("channel.idle limit_s=%.0f", IDLE_TIMEOUT_S)
            self.cut()

    async def _write(self) -> None:
        try:
            await self._pump.run()
        except (OSError, RuntimeError) as exc:
            _log.info("channel.lost reason=%r", exc)

    def _on_event(self, event: Event, group: asyncio.TaskGroup) -> None:
        if isinstance(event, RequestReceived):
            stream = event.stream
            n_bytes = sum(tensor.n_bytes for tensor in event.request.inputs)
            self._bodies.hold(n_bytes)  # the channel has just let them go
            task = self._tasks[stream] = group.create_task(self._answer(event))
            task.add_done_callback(lambda _: self._forget(stream, n_bytes))  # also of one that never began
        elif isinstance(event, RequestCancelled):
            running = self._tasks.get(event.stream)
            if running is not None:
                running.cancel()
        elif isinstance(event, RequestRefused | Failed):
            _log.info("channel.refused code=%s reason=%s", event.error.code, event.error)

    def _forget(self, stream: int, n_bytes: int) -> None:
        self._tasks.pop(stream, None)
        self._bodies.give(n_bytes)

    async def _answer(self, received: RequestReceived) -> None:
        channel, stream = self._channel, received.stream
        try:
            response = await self._infer(received.request, received.receive_s)
        except HybridError as exc:
            channel.send_error(stream, exc)
        except Exception:  # noqa: BLE001  (logged; whatever breaks inside is one failed request)
            _log.exception("infer.failed")
            channel.send_error(stream, HybridError("the gateway failed while it computed; its log says why"))
        else:
            channel.send_response(stream, response)
        self._pump.wake()


class _Held:
    """What one posted message holds of the budget."""

    def __init__(self, bodies: BodyBudget) -> None:
        self._bodies = bodies
        self._n_bytes = 0

    def take(self, n_bytes: int) -> None:
        """Hold the message's body. Raises `Overloaded`."""
        self._bodies.take(n_bytes)
        self._n_bytes += n_bytes

    def release(self) -> None:
        """It was answered."""
        self._bodies.give(self._n_bytes)


async def _read_request(request: web.Request, limits: Limits, held: _Held) -> InferRequest:
    """The message in a POST; its sizes are checked before its body is read."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise BadMessage("a Content-Encoding; send tensors with hybrid_codec instead")
    n_header = header_length(request.headers.get(HEADER_LENGTH))
    try:
        header = await request.content.readexactly(n_header)
        plan = decode_request(memoryview(header), limits)
        if request.content_length not in {None, n_header + plan.n_body_bytes}:
            raise BadMessage(
                f"Content-Length is {request.content_length}, the message has {n_header + plan.n_body_bytes} bytes"
            )
        held.take(plan.n_body_bytes)
        body = np.empty(plan.n_body_bytes, dtype=np.uint8)
        at = 0
        while at < len(body):
            piece = await request.content.read(len(body) - at)
            if not piece:
                raise BadMessage(f"the body ends after {at} bytes, {len(body)} were declared")
            body[at : at + len(piece)] = np.frombuffer(piece, dtype=np.uint8)
            at += len(piece)
    except asyncio.IncompleteReadError as exc:
        raise BadMessage(f"the body ends after {len(exc.partial)} bytes, {exc.expected} were declared") from exc
    if await request.content.read(1):
        raise BadMessage("there are bytes after the last declared tensor")
    return plan.fill(body.data)


def add_routes(
    app: web.Application,
    infer: Infer,
    admit: Admit,
    *,
    limits: Limits | None = None,
    bodies: BodyBudget | None = None,
) -> SplitChannel:
    """Adds channel, POST and hello to an application; on its shutdown the channels drain.

    Args:
        app: the application.
        infer: computes a request, given its receive seconds; cancelled when the client cancels or is lost. Over POST a
            lost client cancels it only where the runner was made with `handler_cancellation=True`.
        admit: raises a HybridError for a request that may not come in.
        limits: what is accepted from one client.
        bodies: memory of all clients' bodies.
    """
    split = SplitChannel(infer, admit, limits or Limits(), bodies or BodyBudget())
    app.router.add_get("/v2/hybrid/channel", split.serve_channel)
    app.router.add_post("/v2/hybrid/infer", split.serve_post)
    app.router.add_get("/v2/hybrid/hello", split.serve_hello)

    async def on_shutdown(_: web.Application) -> None:
        await split.drain(CLOSE_TIMEOUT_S)

    app.on_shutdown.append(on_shutdown)
    return split
