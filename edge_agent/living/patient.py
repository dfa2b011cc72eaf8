"""The box that a doctor looks at: its folder, its settings, and what the running agent says of itself."""

import hashlib
import http.client
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from edge_agent.config import AgentConfig
from edge_agent.trust.identity import FOLDER, Enrolment, Installation
from edge_agent.whereabouts import STATUS_PATH, Address, read_address
from hybrid.hosting.settings import load

_WITHIN_S: Final = 2.0
_MOST_BYTES: Final = 4 << 20
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """One box. Nothing here writes: a doctor must not change what it looks at.

    Attributes:
        data: the agent's folder.
        config: its settings.
        trouble: why the settings could not be read; empty otherwise.
        address: of the running agent; None where none runs.
        status: what it says; None where it does not answer.
        silence: why it does not; empty otherwise.
    """

    data: Path
    config: AgentConfig
    trouble: str = ""
    address: Address | None = None
    status: dict[str, Any] | None = None
    silence: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def enrolment(self) -> Enrolment | None:
        """Where the box belongs, as it lies on the disk."""
        return self.record("enrolment.json", Enrolment)

    @property
    def installation(self) -> Installation | None:
        """Which installation this is."""
        return self.record("installation.json", Installation)

    def record(self, name: str, kind: type[_T]) -> _T | None:
        """A sound copy of a file of the identity; None where there is none."""
        content = self.content(name)
        try:
            return msgspec.json.decode(content, type=kind) if content is not None else None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None

    def content(self, name: str) -> bytes | None:
        """What a file of the identity holds, from whichever of its two copies is sound."""
        for copy in (name, f"{name}.spare"):
            with suppress(OSError):
                digest, _, content = (self.data / FOLDER / copy).read_bytes().partition(b"\n")
                if hashlib.sha256(content).hexdigest().encode() == digest:
                    return content
        return None

    def part(self, name: str) -> dict[str, Any]:
        """What a part of the running agent says; nothing where it does not run."""
        found = (self.status or {}).get("parts", {}).get(name)
        return found if isinstance(found, dict) else {}


def admitted(data: Path | None, config: Path | None, environment: dict[str, str]) -> Patient:
    """The box of this folder, with whatever can be had of it."""
    flags = {"data": data} if data is not None else {}
    try:
        settings, trouble = load(AgentConfig, flags, environment, config), ""
    except ValueError as exc:
        settings, trouble = AgentConfig(data=data) if data is not None else AgentConfig(), str(exc)
    address = read_address(settings.data)
    status, silence = None, ""
    if address is not None:
        try:
            status = _status(address, settings.data)
        except (OSError, http.client.HTTPException, ValueError, msgspec.MsgspecError) as exc:
            silence = str(exc) or type(exc).__name__
    return Patient(
        data=settings.data, config=settings, trouble=trouble, address=address, status=status, silence=silence
    )


def _status(address: Address, data: Path) -> dict[str, Any]:
    """What the agent on this machine says, asked with the token that lies in its folder."""
    place = urlsplit(address.url)
    host, port = place.hostname or "127.0.0.1", place.port or 80
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    headers = {}
    if not address.is_open:
        headers["Authorization"] = f"Bearer {(data / 'admin.token').read_text(encoding='ascii').strip()}"
    connection: http.client.HTTPConnection
    if place.scheme == "https":
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE  # the pin says who it is
        secured = http.client.HTTPSConnection(host, port, timeout=_WITHIN_S, context=trusting)
        secured.connect()
        seen = hashlib.sha256(secured.sock.getpeercert(binary_form=True) or b"").hexdigest()
        if seen != address.certificate_sha256:
            secured.close()
            raise ValueError("another program answers with another certificate")
        connection = secured
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_WITHIN_S)
    try:
        connection.request("GET", STATUS_PATH, headers=headers)
        response = connection.getresponse()
        body = response.read(_MOST_BYTES)
        if response.status != 200:
            raise ValueError(f"it answers with HTTP {response.status}")
        return msgspec.json.decode(body, type=dict[str, Any])
    finally:
        connection.close()
