"""The same message over HTTP POST, where the WebSocket is blocked: one exchange a request, the same errors."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from hybrid.cost.link import LinkEstimate
from hybrid.errors import BadMessage, ConnectionLost, DeadlinePassed, GatewayStalled, HybridError, TooLarge
from hybrid.transport.http_reply import error_of_reply, whole_body
from hybrid.transport.pending import Pending
from hybrid.transport.trust import Tls
from hybrid.wire.frames import Hello, parse_hello
from hybrid.wire.limits import HEADER_BYTES, Limits
from hybrid.wire.message import EncodedMessage, InferResponse, decode_response, encode_request

HEADER_LENGTH: Final = "Inference-Header-Content-Length"
INFER_PATH: Final = "v2/hybrid/infer"
HELLO_PATH: Final = "v2/hybrid/hello"
PIECE_BYTES: Final = 64 * 1024

_log = logging.getLogger("hybrid.transport")


async def ask_hello(session: aiohttp.ClientSession, url: URL, tls: Tls, timeout_s: float) -> Hello:
    """The gateway's hello over HTTP.

    Raises:
        HybridError: what the gateway answered instead; BadMessage where it is no gateway.
    """
    async with (
        asyncio.timeout(timeout_s),
        session.get(url / HELLO_PATH, ssl=tls, allow_redirects=False) as reply,
    ):
        body = await whole_body(reply, HEADER_BYTES)
        if reply.status >= 400:
            raise error_of_reply(reply.status, body, str(url))
        hello = parse_hello(body)
        if hello is None:
            raise BadMessage(f"{url} answered HTTP {reply.status} and is no hybrid gateway; check the address")
        return hello


@dataclass(slots=True)
class _Posted:
    """How far a message is; an HTTP exchange acknowledges nothing before its reply."""

    sent_bytes: int = 0
    acked_bytes: int = 0


class HttpCarrier:
    """Carries requests by POST; runs on the I/O thread."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        url: URL,
        tls: Tls,
        *,
        hello: Hello,
        limits: Limits,
        link: LinkEstimate,
    ) -> None:
        self.is_leaving = asyncio.Event()
        self._session = session
        self._url = url
        self._tls = tls
        self._hello = hello
        self._limits = limits
        self._link = link
        self._group = asyncio.TaskGroup()
        self._tasks: dict[Pending, asyncio.Task[None]] = {}
        self._check: asyncio.Task[None] | None = None
        self._over: asyncio.Future[HybridError] = asyncio.get_running_loop().create_future()

    async def run(self) -> HybridError:
        """Serves until the gateway cannot be reached any more; why."""
        async with self._group:
            error = await self._over
            for pending, task in list(self._tasks.items()):
                pending.fail(error)
                task.cancel()
            if self._check is not None:
                self._check.cancel()
        return error

    def start(self, pending: Pending) -> None:
        """Sends a request."""
        if self._over.done():
            pending.fail(self._over.result())
            return
        task = self._group.create_task(self._exchange(pending))
        self._tasks[pending] = task
        task.add_done_callback(lambda _: self._tasks.pop(pending, None))

    def abandon(self, pending: Pending) -> None:
        """Withdraws a request: its connection is closed, which cancels it at the gateway."""
        task = self._tasks.get(pending)
        if task is not None:
            task.cancel()
            if self._check is None and not self._over.done():
                self._check = self._group.create_task(self._look(pending.stall_s))

    async def _look(self, stall_s: float) -> None:
        """After a withdrawn request, which says nothing of the gateway by itself: is it still there?"""
        try:
            await ask_hello(self._session, self._url, self._tls, stall_s)
        except TimeoutError:
            self.end(GatewayStalled(f"{self._url} did not answer within {stall_s} s"))
        except (OSError, aiohttp.ClientError, HybridError) as exc:
            self.end(ConnectionLost(f"{self._url} does not answer any more: {exc!r}"))
        finally:
            self._check = None

    def silence_in_child(self) -> None:
        """After a fork, in the child: the pooled connections are the parent's, and nothing here uses them again."""

    def end(self, error: HybridError) -> None:
        """Ends the carrier; `run` returns."""
        if not self._over.done():
            self._over.set_result(error)

    async def _exchange(self, pending: Pending) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch(pending.stall_s))
                response = await self._post(pending)
                watch.cancel()
            pending.succeed(response)
        except* HybridError as group_error:
            error = group_error.exceptions[0]
            pending.fail(error if isinstance(error, HybridError) else ConnectionLost(str(error)))
        except* TimeoutError:
            pending.fail(DeadlinePassed(f"no answer from {self._url} within {pending.timeout_s:.3f} s"))
        except* (OSError, aiohttp.ClientError) as group_error:
            lost = ConnectionLost(f"the exchange with {self._url} broke: {group_error.exceptions[0]!r}")
            pending.fail(lost)
            self.end(lost)
        except* Exception:  # noqa: BLE001  (logged; a fault of ours must end one request, not the carrier)
            _log.exception("exchange.failed")
            pending.fail(HybridError(f"the exchange with {self._url} failed; the log says why"))

    async def _post(self, pending: Pending) -> InferResponse:
        message = encode_request(pending.request)
        if message.n_body_bytes > self._hello.max_message_bytes:
            raise TooLarge(
                f"the request has {message.n_body_bytes} bytes, the gateway takes {self._hello.max_message_bytes}"
            )
        n_bytes_up = len(message.header) + message.n_body_bytes
        headers = {
            HEADER_LENGTH: str(len(message.header)),
            "Content-Length": str(n_bytes_up),
            "Content-Type": "application/octet-stream",
        }
        posted = _Posted()
        pending.future.upload = posted
        since_s = time.monotonic()
        async with (
            asyncio.timeout(pending.timeout_s),
            self._session.post(
                self._url / INFER_PATH,
                data=_pieces(message, posted),
                headers=headers,
                ssl=self._tls,
                allow_redirects=False,
            ) as reply,
        ):
            if reply.status != 200:
                raise error_of_reply(reply.status, await whole_body(reply, HEADER_BYTES), str(self._url))
            response, n_bytes = await read_message(reply, self._limits)
        now_s = time.monotonic()
        network_s = max(0.0, now_s - since_s - response.queue_s - response.compute_s)
        self._link.observe_transfer(n_bytes_up, n_bytes, network_s, now_s, response.receive_s)
        return response

    async def _watch(self, stall_s: float) -> None:
        """Where an exchange takes longer than the stall limit, asks whether the gateway still answers at all."""
        while True:
            await asyncio.sleep(stall_s / 2)
            try:
                await ask_hello(self._session, self._url, self._tls, stall_s / 2)
            except TimeoutError as exc:
                stalled = GatewayStalled(f"{self._url} did not answer within {stall_s} s")
                self.end(stalled)
                raise stalled from exc


async def _pieces(message: EncodedMessage, posted: _Posted) -> AsyncIterator[bytes | memoryview]:
    """The message in pieces small enough to leave the loop free in between."""
    for buffer in (message.header, *message.buffers):
        for at in range(0, len(buffer), PIECE_BYTES):
            piece = memoryview(buffer)[at : at + PIECE_BYTES]
            yield piece
            posted.sent_bytes += len(piece)


async def read_message(reply: aiohttp.ClientResponse, limits: Limits) -> tuple[InferResponse, int]:
    """A response from its HTTP form, and its bytes; sizes are checked before the body is read.

    Raises:
        BadMessage, TensorMismatch, TooLarge: not a response, or not within the limits.
    """
    n_header = header_length(reply.headers.get(HEADER_LENGTH))
    try:
        header = await reply.content.readexactly(n_header)
        plan = decode_response(memoryview(header), limits)
        body = bytearray(await reply.content.readexactly(plan.n_body_bytes))
    except asyncio.IncompleteReadError as exc:
        raise BadMessage(f"the reply ends after {len(exc.partial)} bytes, {exc.expected} were declared") from exc
    return plan.fill(memoryview(body)), n_header + len(body)


def header_length(text: str | None) -> int:
    """The value of `Inference-Header-Content-Length`.

    Raises:
        BadMessage: absent or no count. TooLarge: more than 64 KiB.
    """
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadMessage(f"{HEADER_LENGTH} is {text!r}; it must say how many bytes of JSON come first")
    if int(text) > HEADER_BYTES:
        raise TooLarge(f"a message header of {text} bytes; the limit is {HEADER_BYTES}")
    return int(text)
