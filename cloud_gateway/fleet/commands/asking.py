"""How the fleet's commands ask a gateway: over its URL, with an administrator's token."""

import asyncio
from typing import Annotated, TypeVar

import msgspec
import typer

from hybrid.cli.gateway_choice import choose
from hybrid.errors import BadMessage

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
        from hybrid.transport.registry_client import RegistryClient

        async def inside() -> bytes:
            async with RegistryClient(self.url, self._token, trust=self._choice.trust) as client:
                if method == "GET":
                    return await client.get(path)
                return await (client.put(path, body) if method == "PUT" else client.post(path, body))

        answer = asyncio.run(inside())
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadMessage(f"the gateway's answer does not parse ({exc}); is it one with a fleet?") from exc
