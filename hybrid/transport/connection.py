"""One WebSocket to a gateway: a channel, the requests on it, and the watch over its progress."""

import asyncio
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from hybrid.cost.link import LinkEstimate
from hybrid.errors import ConnectionLost, GatewayStalled, HybridError
from hybrid.transport.pending import Pending
from hybrid.transport.pump import FramePump, congestion_control, keep_unsent_low
from hybrid.wire.channel import Channel
from hybrid.wire.events import (
    Connected,
    Event,
    Failed,
    GoawayReceived,
    PongReceived,
    RequestFailed,
    ResponseReceived,
    WithdrawalSettled,
)

BUSY_PING_S: Final = 1.0
IDLE_PING_S: Final = 15.0
WARM_S: Final = 10.0
"""For so long after the last request a connection is watched as if one were in flight: the next one finds it well."""

WARM_STALL_S: Final = 1.0
"""The least silence after which a connection is replaced that nobody waits for right now."""

IDLE_PONG_S: Final = 10.0
"""An idle connection whose PONG takes longer is replaced."""

CLOSE_TIMEOUT_S: Final = 0.5
LAG_S: Final = 0.1
"""A check that runs later than this says that we were asleep, not the gateway."""

_log = logging.getLogger("hybrid.transport")


class ChannelSocket(aiohttp.ClientWebSocketResponse):
    """A WebSocket whose `send_bytes` returns only when little is left unsent."""

    def __init__(self, reader: Any, writer: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(reader, writer, *arguments, **options)
        writer._limit = 0  # noqa: SLF001  (aiohttp's server takes writer_limit, its client has no name for it)
        self.transport: asyncio.Transport = writer.transport
        keep_unsent_low(self.transport)


@dataclass(slots=True)
class _Sent:
    """A request on the channel, and the counters when it went there."""

    pending: Pending
    since_s: float
    sent_bytes: int
    received_bytes: int
    unacked_bytes: int


class ChannelConnection:
    """A connection that is open; runs on the I/O thread.

    Attributes:
        is_leaving: the gateway takes no more requests here.
    """

    def __init__(self, ws: ChannelSocket, channel: Channel, link: LinkEstimate) -> None:
        self.is_leaving = asyncio.Event()
        self._ws = ws
        self._channel = channel
        self._link = link
        link.paced(congestion_control(ws.transport))
        self._loop = asyncio.get_running_loop()
        self._pump = FramePump(channel, ws.send_bytes, time.monotonic)
        self._sent: dict[int, _Sent] = {}
        self._withdrawn: dict[int, _Sent] = {}
        self._used_s = float("-inf")
        self._last_stall_s = IDLE_PONG_S
        self._bytes_before_ping = 0
        self._over: asyncio.Future[HybridError] = self._loop.create_future()
        self._connected: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = float("inf")
        self._ping_s = time.monotonic()
        self._failure: HybridError | None = None

    async def run(self) -> HybridError:
        """Serves until the connection ends; its requests have failed then. Why it ended."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._read()), group.create_task(self._write())]
                self._watch()
                error = await self._over
                for task in tasks:
                    task.cancel()
            return error
        except ExceptionGroup as exc:
            _log.exception("connection.failed")
            self.end(ConnectionLost(f"the connection was given up after a fault of this side: {exc.exceptions[0]!r}"))
            return self._over.result()
        finally:
            await self._close()

    async def connected(self, timeout_s: float) -> None:
        """Returns when both hellos have been said and the round trip is known.

        Raises:
            HybridError: the connection ended instead, or the gateway said nothing.
        """
        first: list[asyncio.Future[Any]] = [self._connected, self._over]
        done, _ = await asyncio.wait(first, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._over in done:
            raise self._over.result()
        if not done:
            self.end(GatewayStalled(f"the gateway did not say hello within {timeout_s} s"))
            raise self._over.result()

    @property
    def local_address(self) -> str:
        """The address of this machine from which the connection leaves; empty where it is not known."""
        name = self._ws.transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    def start(self, pending: Pending) -> None:
        """Sends a request."""
        if self._over.done():
            pending.fail(self._over.result())
            return
        now_s = time.monotonic()
        channel = self._channel
        sent = _Sent(pending, now_s, channel.sent_bytes, channel.received_bytes, channel.unacked_bytes)
        try:
            stream = channel.send_request(pending.request, now_s)
        except HybridError as exc:
            pending.fail(exc)
            return
        self._sent[stream] = sent
        pending.future.upload = channel.upload(stream)
        self._used_s, self._last_stall_s = now_s, pending.stall_s
        self._pump.wake()
        if now_s + self._interval_s(pending.stall_s) < self._due_s:
            self._watch()

    def abandon(self, pending: Pending) -> None:
        """Withdraws a request that its caller gave up."""
        for stream, sent in list(self._sent.items()):
            if sent.pending is pending:
                self._withdrawn[stream] = self._sent.pop(stream)
                self._channel.cancel(stream)
                self._ping(time.monotonic(), 0.0)
                self._pump.wake()
                self._leave_if_done()

    def end(self, error: HybridError) -> None:
        """Ends the connection and its requests; `run` returns."""
        if not self._over.done():
            self._over.set_result(error)
            sent, self._sent = self._sent, {}
            for request in sent.values():
                request.pending.fail(error)

    def silence_in_child(self) -> None:
        """After a fork, in the child: lets go of the socket without a word to the gateway, which is the parent's."""
        tcp = self._ws.transport.get_extra_info("socket")
        if tcp is not None and tcp.fileno() >= 0:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, tcp.fileno())
            os.close(null)

    # -- reading and writing ----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            async for message in self._ws:
                if message.type is not aiohttp.WSMsgType.BINARY:
                    break
                for event in self._channel.receive(message.data, time.monotonic()):
                    self._on_event(event)
                if self._channel.has_frames:
                    self._pump.wake()
        except (OSError, aiohttp.ClientError) as exc:
            self.end(ConnectionLost(f"the connection to the gateway broke: {exc!r}"))
        if self._failure is None:
            code = self._ws.close_code
            self.end(ConnectionLost(f"the gateway closed the connection (WebSocket code {code})"))

    async def _write(self) -> None:
        try:
            await self._pump.run()
        except (OSError, RuntimeError, aiohttp.ClientError) as exc:
            self.end(ConnectionLost(f"the connection to the gateway broke: {exc!r}"))
        else:
            self.end(self._failure or ConnectionLost("the channel is closed"))

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self._on_response(event)
        elif isinstance(event, RequestFailed):
            sent = self._sent.pop(event.stream, None)
            if sent is not None:
                sent.pending.fail(event.error)
        elif isinstance(event, WithdrawalSettled):
            self._on_settled(event)
        elif isinstance(event, PongReceived):
            if self._channel.has_withdrawn:  # they were cancelled after that ping
                self._ping(time.monotonic(), 0.0)
            if not self._connected.done():
                self._connected.set_result(None)
            if event.is_quiet:
                self._link.observe_rtt(event.rtt_s, time.monotonic())
        elif isinstance(event, Connected):
            self._channel.ping(time.monotonic())
        elif isinstance(event, GoawayReceived):
            self.is_leaving.set()
        elif isinstance(event, Failed):
            self._failure = event.error
            self._pump.wake()
        self._leave_if_done()

    def _on_response(self, event: ResponseReceived) -> None:
        sent = self._sent.pop(event.stream, None)
        if sent is None:
            return
        now_s = time.monotonic()
        response = event.response
        sent.pending.succeed(response)
        # All bytes of the connection in that time count, so that requests which share the link do not halve it.
        self._link.observe_transfer(
            self._channel.sent_bytes - sent.sent_bytes,
            self._channel.received_bytes - sent.received_bytes,
            max(0.0, now_s - sent.since_s - response.queue_s - response.compute_s),
            now_s,
            response.receive_s,
            reply_s=event.receive_s,
        )

    def _on_settled(self, event: WithdrawalSettled) -> None:
        """An upload that was cut off still tells the goodput: the PONG says when all that had gone was there."""
        sent = self._withdrawn.pop(event.stream, None)
        if sent is None:
            return
        now_s = time.monotonic()
        is_dated = (
            event.arrived_s < now_s - LAG_S / 10
        )  # by an acknowledgement; all else that went by then is not known
        n_bytes = event.n_bytes if is_dated else self._bytes_before_ping - sent.sent_bytes
        self._link.observe_settled(n_bytes + sent.unacked_bytes, event.arrived_s - sent.since_s, now_s)

    def _leave_if_done(self) -> None:
        if self.is_leaving.is_set() and not self._sent:
            self.end(ConnectionLost("the gateway is going away"))

    # -- the watch --------------------------------------------------------------------------------------------------

    def _interval_s(self, stall_s: float) -> float:
        return min(BUSY_PING_S, stall_s / 3)

    def _watch(self) -> None:
        """Sets the timer for the next look at the connection."""
        if self._timer is not None:
            self._timer.cancel()
        now_s = time.monotonic()
        limit_s = self._limit_s(now_s)
        interval_s = self._interval_s(limit_s) if limit_s is not None else IDLE_PONG_S / 2
        self._due_s = now_s + interval_s
        self._timer = self._loop.call_later(interval_s, self._look)

    def _limit_s(self, now_s: float) -> float | None:
        """The longest silence that those who use the connection bear; None while nobody does."""
        if self._sent:
            return min(sent.pending.stall_s for sent in self._sent.values())
        if self._channel.has_withdrawn:
            return self._last_stall_s
        return max(self._last_stall_s, WARM_STALL_S) if now_s - self._used_s < WARM_S else None

    def _look(self) -> None:
        now_s = time.monotonic()
        channel = self._channel
        lag_s = now_s - self._due_s
        if lag_s > LAG_S:
            channel.last_progress_s += lag_s  # what the gateway sent meanwhile has not been read yet
        limit_s = self._limit_s(now_s)
        if limit_s is not None:
            silent_s = channel.stalled_s(now_s)
            if channel.is_ping_out:
                silent_s = max(silent_s, now_s - max(channel.last_progress_s, self._ping_s + max(0.0, lag_s)))
            if silent_s > limit_s:
                self.end(
                    GatewayStalled(f"no progress from the gateway for {silent_s:.2f} s, the limit is {limit_s:.2f} s")
                )
            self._ping(now_s, self._interval_s(limit_s))
        elif channel.is_ping_out and now_s - self._ping_s - max(0.0, lag_s) > IDLE_PONG_S:
            self.end(ConnectionLost(f"the idle gateway did not answer a ping within {IDLE_PONG_S} s"))
        else:
            self._ping(now_s, IDLE_PING_S)
        self._watch()

    def _ping(self, now_s: float, interval_s: float) -> None:
        if not self._channel.is_ping_out and now_s - self._ping_s >= interval_s * 0.9:
            self._ping_s = now_s
            self._bytes_before_ping = self._channel.sent_bytes
            self._channel.ping(now_s)
            self._pump.wake()

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.end(ConnectionLost("the client was closed"))
        if isinstance(self._over.result(), GatewayStalled):
            self._ws.transport.abort()  # a close handshake would wait for the one that does not answer
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._ws.close()
        except (OSError, aiohttp.ClientError) as exc:
            _log.debug("connection.close_failed reason=%r", exc)
        finally:
            self._ws.transport.abort()  # also what the transport still holds for a peer that takes nothing
