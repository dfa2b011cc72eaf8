"""Keeps one gateway connected: verifies it, connects, falls back to HTTP, and comes back after every loss."""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from typing import Final, Literal, Protocol

import aiohttp
from yarl import URL

from hybrid.cost.link import LinkEstimate
from hybrid.errors import (
    ConnectionLost,
    DeadlinePassed,
    GatewayUnreachable,
    GatewayUntrusted,
    HybridError,
    LinkError,
    Unauthenticated,
    VersionMismatch,
)
from hybrid.transport.connection import ChannelConnection, ChannelSocket
from hybrid.transport.http_carrier import HttpCarrier, ask_hello
from hybrid.transport.http_reply import error_of_reply, plainly, whole_body
from hybrid.transport.pending import Pending
from hybrid.transport.token_source import Credential
from hybrid.transport.trust import Tls, Trust, Verifier, showing
from hybrid.wire.channel import Channel
from hybrid.wire.frames import HIGHEST_VERSION, LOWEST_VERSION, Hello
from hybrid.wire.limits import Limits

CHANNEL_PATH: Final = "v2/hybrid/channel"
SOFTWARE: Final = "hybrid-client"
CONNECT_TIMEOUT_S: Final = 4.0
OPEN_TIMEOUT_S: Final = 10.0
BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 2.0
"""Longest pause between attempts: a gateway that is there again is found within three seconds."""

BACKOFF_WANTED_S: Final = 0.6
"""The same while requests come that would use it."""

WANTED_S: Final = 5.0
STAGGER_S: Final = 1.0
"""An attempt that has not succeeded by then gets another one beside it: after an outage the old one's TCP still waits
for a retransmission that is seconds away, while a new one goes through at once."""

WS_MESSAGE_BYTES: Final = 256 * 1024
REPLY_BYTES: Final = 64 * 1024 * 1024

State = Literal["connecting", "ready", "down"]

_log = logging.getLogger("hybrid.transport")


class Carrier(Protocol):
    """A way for requests to the gateway, while it lasts."""

    is_leaving: asyncio.Event

    async def run(self) -> HybridError:
        """Serves until it ends; why it ended."""
        ...

    def start(self, pending: Pending) -> None:
        """Sends a request."""
        ...

    def abandon(self, pending: Pending) -> None:
        """Withdraws a request."""
        ...

    def end(self, error: HybridError) -> None:
        """Ends it."""
        ...

    def silence_in_child(self) -> None:
        """After a fork, in the child: lets go of the parent's socket."""
        ...


_Opened = tuple[Carrier, "asyncio.Task[HybridError]"]


class Supervisor:
    """Owns the way to one gateway; all of it runs on the I/O thread, the attributes may be read from any.

    Attributes:
        state: connecting, ready or down.
        down_reason: why it is down.
        hello: what the gateway said of itself when it was last ready.
        wanted_s: when somebody would have sent a request last.
    """

    def __init__(
        self, url: URL, token: Credential, trust: Trust, *, limits: Limits, link: LinkEstimate,
        on_change: Callable[[State], None],
    ) -> None:  # fmt: skip
        self.state: State = "connecting"
        self.down_reason: str | None = None
        self.hello: Hello | None = None
        self.wanted_s = float("-inf")
        self._url = url
        self._token = token
        self._verifier = Verifier(url, token, trust)
        self._limits = limits
        self._link = link
        self._on_change = on_change
        self._session: aiohttp.ClientSession | None = None
        self._carrier: Carrier | None = None
        self._leaving: set[Carrier] = set()
        self._waiting: list[Pending] = []
        self._closing = asyncio.Event()
        self._address = ""

    async def run(self) -> None:
        """Connects and reconnects until `close`."""
        headers = {"Accept-Encoding": "identity", "User-Agent": SOFTWARE}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        async with (
            aiohttp.ClientSession(
                headers=headers,
                timeout=timeout,
                trust_env=True,
                ws_response_class=ChannelSocket,
                middlewares=(showing(self._token, self._url),),
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            self._session = session
            serving = group.create_task(self._serve(group))
            await self._closing.wait()
            serving.cancel()
            self.state = "down"
            for carrier in self._carriers():
                carrier.end(ConnectionLost("the client was closed"))
        self._set_state("down", ConnectionLost("the client was closed"))

    def close(self) -> None:
        """Ends `run`; requests in flight fail."""
        self._closing.set()

    def begin(self, pending: Pending) -> None:
        """Takes a request: sends it, lets it wait for a first connection, or fails it."""
        if pending.is_over:
            pending.notice_cancelled()
            return
        loop = asyncio.get_running_loop()
        pending.timer = loop.call_later(pending.timeout_s, self._expire, pending)
        if self._carrier is not None and self.state == "ready":
            self._carrier.start(pending)
        elif self.state == "connecting":
            self._waiting.append(pending)
            loop.call_later(pending.stall_s, self._tire, pending)
        else:
            pending.fail(GatewayUnreachable(f"the gateway {self._url} is not connected: {self.down_reason}"))

    def abandon(self, pending: Pending) -> None:
        """Withdraws a request."""
        pending.notice_cancelled()
        if pending in self._waiting:
            self._waiting.remove(pending)
        for carrier in self._carriers():
            carrier.abandon(pending)

    def silence_in_child(self) -> None:
        """After a fork, in the child: lets go of the parent's sockets."""
        for carrier in self._carriers():
            carrier.silence_in_child()

    def _carriers(self) -> list[Carrier]:
        return [*self._leaving, *([self._carrier] if self._carrier is not None else [])]

    async def post_json(self, path: str, body: bytes, timeout_s: float) -> bytes:
        """The reply to a control call.

        Raises:
            GatewayUnreachable: no connection. HybridError: what the gateway answered.
        """
        if self._session is None:
            raise GatewayUnreachable(f"the client of {self._url} is not started; try again")
        try:
            tls = await self._verifier.tls()
            async with (
                asyncio.timeout(timeout_s),
                self._session.post(
                    self._url / path.lstrip("/"), data=body, ssl=tls, allow_redirects=False,
                    headers={"Content-Type": "application/json"},
                ) as reply,
            ):  # fmt: skip
                data = await whole_body(reply, REPLY_BYTES if reply.status < 400 else 65536)
                if reply.status != 200:
                    raise error_of_reply(reply.status, data, str(self._url))
                return data
        except (OSError, aiohttp.ClientError) as exc:
            if isinstance(exc, HybridError):
                raise
            raise GatewayUnreachable(f"POST {self._url / path.lstrip('/')} failed: {exc!r}") from exc

    # -- connecting -------------------------------------------------------------------------------------------------

    async def _serve(self, group: asyncio.TaskGroup) -> None:
        n_failures = 0
        while True:
            error, lived_s = await self._serve_once(group)
            n_failures = 0 if lived_s > BACKOFF_S else n_failures + 1
            if lived_s > 0 and n_failures <= 1:  # a lost connection is replaced at once, unless it keeps dying young
                self._set_state("connecting", error)
                continue
            self._set_state("down", error)
            is_wanted = time.monotonic() - self.wanted_s < WANTED_S
            ceiling_s = min(BACKOFF_WANTED_S if is_wanted else BACKOFF_MAX_S, BACKOFF_S * 2 ** min(n_failures, 10))
            await asyncio.sleep(random.uniform(0, ceiling_s))  # noqa: S311  (jitter, no secret)

    async def _serve_once(self, group: asyncio.TaskGroup) -> tuple[HybridError, float]:
        """One connection from its making to its end: why it ended, and the seconds that it was ready, 0 for never."""
        try:
            carrier, running = await self._open(group)
        except HybridError as exc:
            return exc, 0.0
        except (OSError, ssl.SSLError, aiohttp.ClientError) as exc:
            return self._error_of(exc), 0.0
        since_s = time.monotonic()
        self._carrier = carrier
        self._set_state("ready", None)
        for pending in self._waiting:
            carrier.start(pending)
        self._waiting.clear()
        leaving = group.create_task(carrier.is_leaving.wait())
        try:
            await asyncio.wait([running, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        self._carrier = None
        if running.done():
            error = running.result()
        else:
            error = ConnectionLost("the gateway is going away")
            self._leaving.add(carrier)
            running.add_done_callback(lambda _: self._leaving.discard(carrier))
        _log.info("gateway.lost url=%s code=%s reason=%s", self._url, error.code, error)
        return error, time.monotonic() - since_s

    async def _open(self, group: asyncio.TaskGroup) -> _Opened:
        """The first attempt that ends decides; while none does, another is started beside it now and then."""
        async with asyncio.TaskGroup() as attempts:
            trying = {attempts.create_task(self._attempt(group))}
            while not (done := [task for task in trying if task.done()]):
                await asyncio.wait(trying, timeout=STAGGER_S, return_when=asyncio.FIRST_COMPLETED)
                if not any(task.done() for task in trying):
                    trying.add(attempts.create_task(self._attempt(group)))
            for task in trying:
                task.cancel()
        first, *others = sorted((task.result() for task in done), key=lambda found: isinstance(found, Exception))
        for other in others:
            if not isinstance(other, Exception):
                other[0].end(ConnectionLost("another attempt was faster"))
        if isinstance(first, Exception):
            raise first
        return first

    async def _attempt(self, group: asyncio.TaskGroup) -> _Opened | Exception:
        try:
            return await self._open_one(group)
        except (HybridError, OSError, ssl.SSLError, aiohttp.ClientError) as exc:
            return exc

    async def _open_one(self, group: asyncio.TaskGroup) -> _Opened:
        session = self._session
        if session is None:
            raise GatewayUnreachable(f"the client of {self._url} is closed")
        async with asyncio.timeout(OPEN_TIMEOUT_S):
            tls = await self._verifier.tls()
            try:
                ws = await session.ws_connect(
                    self._url / CHANNEL_PATH, ssl=tls, autoping=True, compress=0, max_msg_size=WS_MESSAGE_BYTES
                )
            except aiohttp.WSServerHandshakeError as exc:
                http = await self._fall_back(session, tls, exc)
                return http, group.create_task(http.run())
        channel = Channel("client", limits=self._limits, software=SOFTWARE, now_s=time.monotonic())
        if not isinstance(ws, ChannelSocket):
            raise TypeError("the session makes ChannelSockets")
        connection = ChannelConnection(ws, channel, self._link)
        if self._address not in ("", connection.local_address):
            self._link.forget()  # another network: nothing that was measured holds
        self._address = connection.local_address
        running = group.create_task(connection.run())
        try:
            await connection.connected(OPEN_TIMEOUT_S)
        except asyncio.CancelledError:
            connection.end(ConnectionLost("the client was closed"))
            raise
        self.hello = channel.peer
        return connection, running

    async def _fall_back(
        self, session: aiohttp.ClientSession, tls: Tls, refusal: aiohttp.WSServerHandshakeError
    ) -> HttpCarrier:
        if refusal.status == 401:
            raise Unauthenticated(f"{self._url} refused the token; is it revoked?") from refusal
        if refusal.status >= 500 or refusal.status == 429:
            raise GatewayUnreachable(f"{self._url} answered HTTP {refusal.status}; it may be starting") from refusal
        hello = await ask_hello(session, self._url, tls, OPEN_TIMEOUT_S)
        if hello.versions[0] > HIGHEST_VERSION or hello.versions[1] < LOWEST_VERSION:
            raise VersionMismatch(
                f"{self._url} speaks versions {hello.versions[0]} to {hello.versions[1]}, this side "
                f"{LOWEST_VERSION} to {HIGHEST_VERSION}; upgrade the older one"
            )
        since_s = time.monotonic()
        await ask_hello(session, self._url, tls, OPEN_TIMEOUT_S)  # again, on the open connection: one round trip
        self._link.observe_rtt(time.monotonic() - since_s, time.monotonic())
        _log.info("gateway.websocket_blocked url=%s status=%d", self._url, refusal.status)
        self.hello = hello
        return HttpCarrier(session, self._url, tls, hello=hello, limits=self._limits, link=self._link)

    def _error_of(self, exc: Exception) -> HybridError:
        if isinstance(exc, aiohttp.ServerFingerprintMismatch):
            self._verifier.forget()
            return GatewayUntrusted(f"{self._url} shows another certificate than the pinned one: {exc.got.hex()}")
        if isinstance(exc, ssl.SSLError | aiohttp.ClientSSLError):
            return GatewayUntrusted(f"{self._url} could not be verified: {exc}; pin its certificate or give a token")
        if isinstance(exc, TimeoutError):
            return GatewayUnreachable(f"{self._url} did not answer in time")
        reason = plainly(exc) if isinstance(exc, aiohttp.ClientConnectorError) else str(exc) or type(exc).__name__
        return GatewayUnreachable(f"{self._url} cannot be reached: {reason}")

    # -- requests ---------------------------------------------------------------------------------------------------

    def _set_state(self, state: State, error: HybridError | None) -> None:
        was, self.state = self.state, state
        if was == "ready" and state != "ready":
            self._link.reconnected()
        self.down_reason = None if error is None else f"{error.code}: {error}"
        if state == "down":
            for pending in self._waiting:
                pending.fail(_unreachable(self._url, error))
            self._waiting.clear()
        if was != state:
            _log.info("gateway.%s url=%s reason=%s", state, self._url, self.down_reason)
        self._on_change(state)

    def _expire(self, pending: Pending) -> None:
        if not pending.is_over:
            self.abandon(pending)
            pending.fail(DeadlinePassed(f"no answer from {self._url} within {pending.timeout_s:.3f} s"))

    def _tire(self, pending: Pending) -> None:
        if pending in self._waiting:
            self._waiting.remove(pending)
            pending.fail(GatewayUnreachable(f"{self._url} is still connecting after {pending.stall_s} s"))


def _unreachable(url: URL, error: HybridError | None) -> HybridError:
    if isinstance(error, LinkError):
        return error
    return GatewayUnreachable(f"the gateway {url} is not connected: {error}")
