"""The HTTP listener of a service: aiohttp's server with limits and with JSON errors for what is not even HTTP.

Design: aiohttp answers malformed requests in plain text and waits for ever for the first request of a connection;
its protocol class gets both corrected here, everything else is aiohttp's own.
"""

import asyncio
import errno
import logging
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from hybrid.errors import Conflict, HybridError
from hybrid.hosting.http_replies import json_reply

_log = logging.getLogger("hybrid.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """Limits of connections.

    Attributes:
        header_timeout_s: a connection must send its first request's headers within this.
        keepalive_s: an idle connection is closed after this.
        max_connections: further ones are closed at once.
        backlog: connections that wait to be accepted.
    """

    header_timeout_s: float = 20.0
    keepalive_s: float = 75.0
    max_connections: int = 4096
    backlog: int = 512


class _Protocol(web.RequestHandler):
    """aiohttp's connection with JSON errors and a limit on the wait for the first request."""

    __slots__ = ("_first_request", "_owner")

    def __init__(self, owner: "Listener", manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._owner = owner
        self._first_request: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        settings = self._owner.settings
        if not self._owner.admit(self):
            self.force_close()
            return
        self._first_request = self._loop.call_later(settings.header_timeout_s, self._expire)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._first_request is not None:
            self._first_request.cancel()
        self._owner.forget(self)
        super().connection_lost(exc)

    def _expire(self) -> None:
        if self._request_count == 0:
            self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send a response, counted until the client has taken it."""
        self._owner.n_answering += 1
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self._owner.n_answering -= 1

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP request, or a fault of ours, as JSON; then the connection ends."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response had begun when an error came")
        if status >= 500:
            _log.error("http.fault path=%s", request.path, exc_info=exc)
            body = {"error": "the service failed on this request; its log says more", "code": "error"}
        else:
            text = (message or str(exc) or "not a valid HTTP request").strip().splitlines()[0][:300]
            body = {"error": f"not a valid HTTP request: {text}", "code": "protocol"}
        response = json_reply(body, status=status)
        response.force_close()
        return response


class Listener:
    """Serves an application on one address; `close` stops accepting, `finish` ends what is left.

    Attributes:
        port: the real one, also where 0 was asked for.
        n_answering: responses that are being sent.
    """

    def __init__(self, app: web.Application, settings: ListenerSettings) -> None:
        self.settings = settings
        self.port = 0
        self.n_answering = 0
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
        self._server: asyncio.Server | None = None
        self._open: set[_Protocol] = set()

    @property
    def n_connections(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        """Bind and serve.

        Raises:
            Conflict: the port is in use.
            HybridError: the address cannot be bound.
        """
        await self._runner.setup()
        manager = self._runner.server
        if manager is None:
            raise HybridError("the HTTP server did not start; this is a fault of ours")
        loop = asyncio.get_running_loop()
        options = {
            "loop": loop,
            "access_log": None,
            "auto_decompress": False,  # bodies are unpacked within limits, by the handlers that take packed ones
            "keepalive_timeout": self.settings.keepalive_s,
        }
        try:
            self._server = await loop.create_server(
                lambda: _Protocol(self, manager, **options), host, port, ssl=tls, backlog=self.settings.backlog
            )
        except OSError as exc:
            await self._runner.cleanup()
            raise _bind_error(exc, host, port) from exc
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Accept no further connections; those that are open go on."""
        if self._server is not None:
            self._server.close()

    async def finish(self) -> None:
        """End all connections and run the application's shutdown and cleanup."""
        self.close()
        await self._runner.cleanup()

    def admit(self, protocol: _Protocol) -> bool:
        """Count a new connection; False when there are too many."""
        if len(self._open) >= self.settings.max_connections:
            return False
        self._open.add(protocol)
        return True

    def forget(self, protocol: _Protocol) -> None:
        """A connection has ended."""
        self._open.discard(protocol)


def _bind_error(exc: OSError, host: str, port: int) -> HybridError:
    if exc.errno == errno.EADDRINUSE:
        return Conflict(
            f"port {port} on {host} is in use; end the other service or choose another port with --port",
            advice="End the other service, or choose another --port; `hybrid doctor` says whether that is a gateway.",
        )
    if isinstance(exc, socket.gaierror):
        what = f"{host!r} is no address of this machine ({exc.strerror}); give one with --host"
        return HybridError(what, advice="Give an address of this machine with --host; 0.0.0.0 is all of them.")
    return HybridError(
        f"cannot listen on {host}:{port}: {exc.strerror or exc}; choose another --host or --port",
        advice="Choose another --host or --port; below 1024 a port needs rights.",
    )
