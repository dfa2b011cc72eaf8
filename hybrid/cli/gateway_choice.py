"""Which gateway a command talks to: the one that was named, else this machine's, else one that proves itself."""

import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import typer

from hybrid.cli.output import note
from hybrid.errors import GatewayUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hybrid.transport.client import GatewayClient
    from hybrid.transport.trust import Trust

_PORT: Final = 8700
LOOPBACK: Final = f"http://127.0.0.1:{_PORT}"
LOOPBACK_TLS: Final = f"https://127.0.0.1:{_PORT}"
_KNOCK_S: Final = 0.5
_SEARCH_S: Final = 3.0
_SETTLE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A gateway's URL, and how it is verified."""

    url: str
    trust: "Trust"


def choose(gateway: str, token: str | None) -> Choice:
    """The gateway that a flag or `HYBRID_GATEWAY` means.

    Args:
        gateway: a URL; several with commas between them, of which the first is meant; `auto` for the gateway of this
            machine on its usual port, else the nearest one on the network that proves to hold the token.
        token: what a discovered gateway must prove to hold.

    Raises:
        GatewayUnreachable: `auto` found none; says why.
        BadParameter: `none` was given.
    """
    from hybrid.transport.trust import Trust

    named = next((url.strip() for url in gateway.split(",") if url.strip()), "auto")
    if named == "none":
        raise typer.BadParameter("the gateway is set to `none`; name one with --gateway URL")
    if named != "auto":
        return Choice(url=named, trust=Trust())
    if _answers():
        return Choice(url=LOOPBACK_TLS if _speaks_tls() else LOOPBACK, trust=Trust())
    found = _discover(token)
    note(f"using {found.url}")
    return found


@contextmanager
def connected(gateway: str, token: str | None) -> "Iterator[GatewayClient]":
    """A client of the gateway that a flag or `HYBRID_GATEWAY` means, once it answers.

    Raises:
        GatewayUnreachable: it does not; says why.
        BadParameter: `none` was given.
    """
    from hybrid.transport.client import acquire, release

    choice = choose(gateway, token)
    client = acquire(choice.url, token, trust=choice.trust)
    try:
        if client.wait_settled(_SETTLE_S) != "ready":
            raise GatewayUnreachable(f"{choice.url} is not reachable: {client.down_reason}", url=choice.url)
        yield client
    finally:
        release(client)


def _answers() -> bool:
    try:
        socket.create_connection(("127.0.0.1", _PORT), _KNOCK_S).close()
    except OSError:
        return False
    return True


def _speaks_tls() -> bool:
    """Whether what listens there ends a plain call without an answer, as a gateway with TLS does."""
    try:
        with socket.create_connection(("127.0.0.1", _PORT), _KNOCK_S) as link:
            link.sendall(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            return link.recv(5) != b"HTTP/"
    except ConnectionResetError:
        return True
    except OSError:
        return False


def _discover(token: str | None) -> Choice:
    from queue import Empty, SimpleQueue

    from hybrid.discovery.find import find_gateways
    from hybrid.transport.trust import Trust

    proved: SimpleQueue[tuple[str, str]] = SimpleQueue()
    finding = find_gateways(token, on_found=lambda url, pin: proved.put((url, pin)), on_lost=lambda url: None)  # noqa: ARG005
    try:
        url, pin = proved.get(timeout=_SEARCH_S if token else 0.0)
    except Empty:
        why = f"no gateway at {LOOPBACK}, and none found on the network ({finding.why_none})"
        raise GatewayUnreachable(
            f"{why}; name one with --gateway URL",
            advice="Name one with --gateway URL or HYBRID_GATEWAY, or start one: hybrid gateway serve.",
        ) from None
    finally:
        finding.close()
    return Choice(url=url, trust=Trust(pin_sha256=pin, is_explicit=False))
