"""How commands ask a gateway's registry: its flags, a client for the time of the work, a bar for what travels."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from hybrid.artifact.names import check_word
from hybrid.cli.gateway_choice import choose
from hybrid.cli.output import progress
from hybrid.errors import BadMessage

if TYPE_CHECKING:
    from hybrid.transport.registry_client import RegistryClient

_T = TypeVar("_T")

Gateway = Annotated[
    str,
    typer.Option(
        "--gateway", envvar="HYBRID_GATEWAY", help="Its URL; `auto`: this machine's, else one found that proves itself."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]


def ask_registry(gateway: str, token: str | None, work: "Callable[[RegistryClient], Awaitable[_T]]") -> _T:
    """Do work with a client of the gateway."""
    from hybrid.transport.registry_client import RegistryClient

    choice = choose(gateway, token)

    async def inside() -> _T:
        async with RegistryClient(choice.url, token, trust=choice.trust) as client:
            return await work(client)

    return asyncio.run(inside())


@contextmanager
def showing(label: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
    """What a transfer tells its size, and then each step; shown on stderr until the block ends."""
    with ExitStack() as shown:

        def begin(total_bytes: int) -> Callable[[int], None]:
            return shown.enter_context(progress(label, total_bytes, "bytes")).advance

        yield begin


def check_label(name: str, version: str | None) -> None:
    """Refuse a name or version that no model can have, as a wrong command line."""
    try:
        check_word(name)
        if version is not None:
            check_word(version, "version")
    except BadMessage as exc:
        raise typer.BadParameter(str(exc)) from exc
