"""The device's way to a gateway: one shared connection, requests as futures, usable from any thread."""

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, cast

import msgspec
from yarl import URL

from hybrid.cost.link import LinkEstimate
from hybrid.errors import BadMessage, GatewayUnreachable, HybridError, Overloaded
from hybrid.schedule.standing import Standing
from hybrid.transport import io_thread
from hybrid.transport.pending import Pending, Reply
from hybrid.transport.supervisor import State, Supervisor
from hybrid.transport.token_source import Credential
from hybrid.transport.trust import Trust
from hybrid.wire.frames import Hello
from hybrid.wire.limits import Limits
from hybrid.wire.message import InferRequest, InferResponse

MAX_IN_FLIGHT: Final = 256
CLOSE_TIMEOUT_S: Final = 2.0


class GatewayClient:
    """A client of one gateway; get it from `acquire`, give it back to `release`.

    Attributes:
        url: the gateway.
        trust: how it is verified.
        link: what the transfers have taught about the network.
        standing: how the gateway has done, whatever the model; shared by all who use this client.
    """

    def __init__(self, url: str, token: Credential, *, trust: Trust, limits: Limits | None = None) -> None:
        self.url = url
        self.link = LinkEstimate()
        self.standing = Standing(self.link)
        self._token = token
        self.trust = trust
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._n_in_flight = 0
        self._supervisor: Supervisor | None = None
        self._io: io_thread.IoThread | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._listeners: list[Callable[[State], None]] = []
        _clients.add(self)
        self._running()

    @property
    def state(self) -> State:
        """connecting: a first or replaced connection is being made; ready; down: attempts fail, see `down_reason`."""
        return "down" if self._is_closed else self._running()[1].state

    @property
    def down_reason(self) -> str | None:
        """`code: message` of what keeps it from being ready, None when it is."""
        if self._is_closed:
            return f"{GatewayUnreachable.code}: the client was closed"
        return self._running()[1].down_reason

    @property
    def gateway_info(self) -> Hello | None:
        """What the gateway said of itself when it was last ready."""
        return None if self._supervisor is None else self._supervisor.hello

    def infer(self, request: InferRequest, *, stall_s: float, timeout_s: float) -> Reply:
        """Sends a request; never blocks, never raises: all that goes wrong is the future's error.

        Cancelling the future cancels the request on both sides. The arrays that the request's tensors view must stay
        unchanged until the future is done.

        Args:
            request: what is asked.
            stall_s: longest time without progress; then the connection is replaced and the error is GatewayStalled.
            timeout_s: longest time in all; then the error is DeadlinePassed.
        """
        pending = Pending(request=request, stall_s=stall_s, timeout_s=timeout_s)
        if not self._admit():
            pending.fail(
                Overloaded(f"{MAX_IN_FLIGHT} requests to {self.url} are in flight; wait for some", retry_after_s=0.0)
            )
            return pending.future
        try:
            io, supervisor = self._running()
        except HybridError as exc:
            self._count_down()
            pending.fail(exc)
            return pending.future

        def done(future: "Future[InferResponse]") -> None:
            self._count_down()
            if future.cancelled():
                io.call(supervisor.abandon, pending)

        pending.future.add_done_callback(done)
        if not io.call(supervisor.begin, pending):
            pending.fail(GatewayUnreachable(f"the process is ending; {self.url} is not asked any more"))
        return pending.future

    def post_json(self, path: str, body: object, *, timeout_s: float) -> "Future[dict[str, Any]]":
        """A control call over HTTP, with the same verification and token; the JSON object of the reply."""
        future: Future[dict[str, Any]] = Future()
        try:
            io, supervisor = self._running()
        except HybridError as exc:
            future.set_exception(exc)
            return future
        io.spawn(_answer(supervisor, path, msgspec.json.encode(body), timeout_s, future))
        return future

    def wait_settled(self, timeout_s: float) -> State:
        """Blocks until the first attempt to connect has ended, or the time is over; the state then."""
        with self._changed:
            self._changed.wait_for(lambda: self.state != "connecting", timeout_s)
        return self.state

    def want(self) -> None:
        """Somebody would send a request now: while it is not connected, attempts follow each other more closely."""
        if self._supervisor is not None:
            self._supervisor.wanted_s = time.monotonic()

    def on_change(self, listener: Callable[[State], None]) -> None:
        """Calls the listener on the I/O thread after each change of state; it must not block."""
        self._listeners = [*self._listeners, listener]

    def off_change(self, listener: Callable[[State], None]) -> None:
        """Calls the listener no more."""
        self._listeners = [kept for kept in self._listeners if kept != listener]

    def close(self) -> None:
        """Closes the connection; requests in flight fail."""
        with self._lock:
            self._is_closed = True
            io, supervisor = self._io, self._supervisor
        if io is not None and supervisor is not None:
            io.call(supervisor.close)
            with self._changed:
                self._changed.wait_for(lambda: supervisor.state == "down", CLOSE_TIMEOUT_S)

    def forget_in_child(self) -> None:
        """After a fork: the connection is the parent's; the child connects anew when it needs to."""
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self.link = LinkEstimate()  # its lock may have been held by the parent's thread
        self.standing = Standing(self.link)
        self._n_in_flight = 0
        if self._supervisor is not None:
            self._supervisor.silence_in_child()
            _inherited.append(self._supervisor)
        self._supervisor = None
        self._io = None

    def _running(self) -> tuple[io_thread.IoThread, Supervisor]:
        io, supervisor = self._io, self._supervisor
        if io is not None and supervisor is not None:
            return io, supervisor
        with self._lock:
            if self._is_closed:
                raise GatewayUnreachable(f"the client of {self.url} was closed; acquire another one")
            if self._io is None or self._supervisor is None:
                self._io = io_thread.io_thread()
                self._supervisor = Supervisor(
                    URL(self.url),
                    self._token,
                    self.trust,
                    limits=self._limits,
                    link=self.link,
                    on_change=self._notify,
                )
                self._io.spawn(self._supervisor.run())
            return self._io, self._supervisor

    def _notify(self, state: State) -> None:
        if state == "ready":
            self.standing.reconnected(time.monotonic())
        with self._changed:
            self._changed.notify_all()
        for listener in self._listeners:
            listener(state)

    def _admit(self) -> bool:
        with self._lock:
            self._n_in_flight += 1
            if self._n_in_flight <= MAX_IN_FLIGHT:
                return True
            self._n_in_flight -= 1
            return False

    def _count_down(self) -> None:
        with self._lock:
            self._n_in_flight -= 1


async def _answer(
    supervisor: Supervisor, path: str, body: bytes, timeout_s: float, future: "Future[dict[str, Any]]"
) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        async with asyncio.timeout(timeout_s):
            data = await supervisor.post_json(path, body, timeout_s)
        future.set_result(cast("dict[str, Any]", msgspec.json.decode(data, type=dict)))
    except HybridError as exc:
        future.set_exception(exc)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        future.set_exception(BadMessage(f"the gateway's reply to {path} is no JSON object: {exc}"))
    except TimeoutError:
        future.set_exception(GatewayUnreachable(f"no reply to {path} within {timeout_s} s"))
    finally:
        if not future.done():
            future.set_exception(GatewayUnreachable(f"the client was closed before {path} was answered"))


_Key = tuple[str, Credential, Trust]

_shared: dict[_Key, tuple[GatewayClient, int]] = {}
_shared_lock = threading.Lock()
_clients: "weakref.WeakSet[GatewayClient]" = weakref.WeakSet()
_inherited: list[Supervisor] = []


def acquire(url: str, token: Credential, *, trust: Trust) -> GatewayClient:
    """The process's client of this gateway with this identity: shared, counted, connecting in the background.

    Raises:
        GatewayUnreachable: not an http or https URL.
    """
    parsed = URL(url)
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise GatewayUnreachable(
            f"{url!r} is no gateway's address; give http(s)://HOST:PORT",
            advice="Write the address as http://HOST:PORT or https://HOST:PORT.",
        )
    if parsed.user is not None or parsed.password is not None:
        raise GatewayUnreachable(
            f"{parsed.with_user(None)} was given with a user's name or password; give the address alone, and a token"
        )
    key = (str(parsed), token, trust)
    with _shared_lock:
        client, n_users = _shared.get(key) or (GatewayClient(str(parsed), token, trust=trust), 0)
        _shared[key] = (client, n_users + 1)
        return client


def release(client: GatewayClient) -> None:
    """Gives back what `acquire` gave; the last user closes the connection."""
    with _shared_lock:
        for key, (shared, n_users) in list(_shared.items()):
            if shared is client and n_users > 1:
                _shared[key] = (shared, n_users - 1)
                return
            if shared is client:
                del _shared[key]
    client.close()


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    for client in list(_clients):
        client.forget_in_child()
    io_thread.forget_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
