"""How the fleet's commands ask a gateway: over its URL, with an administrator's token."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
import typer

from hybrid.cli.gateway_choice import choose
from hybrid.errors import BadMessage, LinkError

if TYPE_CHECKING:
    from hybrid.transport.registry_client import RegistryClient

_T = TypeVar("_T")

AdminToken = Annotated[
    str | None,
    typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True, help="An administrator's token of the gateway."),
]


class Asker:
    """One gateway, asked one call after the other.

    Attributes:
        url: of the gateway.
    """

    def __init__(self, gateway: str, token: str | None) -> None:
        """Finds the gateway. Raises `GatewayUnreachable`."""
        self._choice = choose(gateway, token)
        self._token = token
        self.url = self._choice.url
        self._runner: asyncio.Runner | None = None
        self._client: RegistryClient | None = None

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Within it the connection stays: the gateway proves itself once, not at each call, which gateways bound."""
        with asyncio.Runner() as runner:
            self._runner = runner
            try:
                yield
            finally:
                runner.run(self._left())
                self._runner = None

    def get(self, path: str, kind: type[_T]) -> _T:
        """What a path tells. Raises `HybridError`."""
        return self._ask("GET", path, b"", kind)

    def post(self, path: str, body: object, kind: type[_T]) -> _T:
        """What a call answers; bytes go as they are. Raises `HybridError`."""
        return self._ask("POST", path, body if isinstance(body, bytes) else msgspec.json.encode(body), kind)

    def put(self, path: str, body: bytes, kind: type[_T]) -> _T:
        """What taking a file answers. Raises `HybridError`."""
        return self._ask("PUT", path, body, kind)

    def _ask(self, method: str, path: str, body: bytes, kind: type[_T]) -> _T:
        if self._runner is None:
            answer = asyncio.run(self._once(method, path, body))
        else:
            answer = self._runner.run(self._kept(method, path, body))
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadMessage(f"the gateway's answer does not parse ({exc}); is it one with a fleet?") from exc

    async def _once(self, method: str, path: str, body: bytes) -> bytes:
        async with self._made() as client:
            return await _said(client, method, path, body)

    async def _kept(self, method: str, path: str, body: bytes) -> bytes:
        """The same over the connection that stays; after a failure the next call makes another one."""
        if self._client is None:
            self._client = self._made()
        try:
            return await _said(self._client, method, path, body)
        except LinkError:
            await self._left()
            raise

    async def _left(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.__aexit__(None, None, None)

    def _made(self) -> "RegistryClient":
        from hybrid.transport.registry_client import RegistryClient

        return RegistryClient(self.url, self._token, trust=self._choice.trust)


async def _said(client: "RegistryClient", method: str, path: str, body: bytes) -> bytes:
    if method == "GET":
        return await client.get(path)
    return await (client.put(path, body) if method == "PUT" else client.post(path, body))
