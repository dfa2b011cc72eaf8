"""Asks the agent that runs on this machine, for commands: plain on loopback, else pinned to its own certificate."""

import http.client
import ssl
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from edge_agent.whereabouts import Address, read_address
from hybrid.errors import Forbidden, GatewayUnreachable, GatewayUntrusted, HybridError, NotFound, from_code
from hybrid.hosting.auth import ADMIN_TOKEN_FILE

TIMEOUT_S: Final = 10.0
_EVERY: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]", "::": "::1"}


def ask_agent(data: Path, path: str, *, method: str = "GET", body: bytes | None = None) -> Any:
    """The JSON that the running agent of a data folder answers.

    Raises:
        NotFound: there is no such folder, or no agent runs on it.
        GatewayUnreachable: it does not answer.
        HybridError: what it answered.
    """
    address = _running(data)
    headers = {} if address.is_open else {"Authorization": f"Bearer {_token(data)}"}
    try:
        connection = _connection(address)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            answer = msgspec.json.decode(response.read())
        finally:
            connection.close()
    except msgspec.MsgspecError as exc:
        raise GatewayUnreachable(f"what answers at {address.url} is no agent: {exc}") from exc
    except (OSError, http.client.HTTPException) as exc:
        if isinstance(exc, HybridError):
            raise
        raise GatewayUnreachable(
            f"the agent at {address.url} does not answer: {exc}",
            advice="See its log; if it hangs, restart it: systemctl restart hybrid-agent.",
        ) from exc
    if response.status >= 400:
        raise from_code(str(answer.get("code", "error")), str(answer.get("error", response.status)))
    return answer


def _running(data: Path) -> Address:
    if not data.is_dir():
        raise NotFound(
            f"there is no agent data at {data}; name the folder with --data, or make it with `hybrid agent serve`",
            advice="Name the agent's folder with --data: the one that `hybrid agent serve` was given.",
        )
    address = read_address(data)
    if address is None:
        raise NotFound(
            f"no agent runs on {data}; start it: hybrid agent serve --data {data}",
            advice=f"Start it: hybrid agent serve --data {data}, or systemctl start hybrid-agent.",
        )
    return address


def _token(data: Path) -> str:
    try:
        return (data / ADMIN_TOKEN_FILE).read_text("ascii").strip()
    except PermissionError as exc:
        raise Forbidden(f"{data / ADMIN_TOKEN_FILE} is not yours to read; ask as the agent's user") from exc
    except OSError as exc:
        raise NotFound(f"{data / ADMIN_TOKEN_FILE} is not there, and this agent asks for a token") from exc


def _connection(address: Address) -> http.client.HTTPConnection:
    parts = urlsplit(address.url)
    host = _EVERY.get(parts.hostname or "", parts.hostname or "127.0.0.1")
    if parts.scheme != "https":
        return http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # compared with the pin below
    connection = http.client.HTTPSConnection(host, parts.port, timeout=TIMEOUT_S, context=context)
    connection.connect()
    seen = connection.sock.getpeercert(binary_form=True) or b""
    if sha256(seen).hexdigest() != address.certificate_sha256:
        connection.close()
        raise GatewayUntrusted(f"what answers at {address.url} does not show this agent's certificate")
    return connection
