"""Where the running agent of a data folder is reached: a small file for commands on the same machine."""

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

FILE_NAME: Final = "agent.json"
STATUS_PATH: Final = "/v2/hybrid/agent/status"
ROUNDS_PATH: Final = "/v2/hybrid/agent/rounds"
_log = logging.getLogger("hybrid.agent")


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """A running agent.

    Attributes:
        url: of its own protocol, reachable on this machine.
        pid: its process.
        certificate_sha256: to pin; empty without TLS.
        is_open: whether programs on this machine need no token.
    """

    url: str
    pid: int
    certificate_sha256: str = ""
    is_open: bool = True


def note_address(data: Path, address: Address) -> None:
    """Write it down, whole or not at all; it is worth nothing after a power cut, so it is not synced.

    A disk without room does not keep the agent from serving: only commands on this machine do not find it then.
    """
    draft = data / f".{FILE_NAME}.draft"
    try:
        draft.write_bytes(msgspec.json.encode(address))
        draft.replace(data / FILE_NAME)
    except OSError as exc:
        _log.warning("agent.address_not_noted path=%s reason=%s", data / FILE_NAME, exc)


def forget_address(data: Path) -> None:
    """The agent has stopped."""
    (data / FILE_NAME).unlink(missing_ok=True)


def read_address(data: Path) -> Address | None:
    """Where the agent of this folder runs; None where none does, however it ended."""
    try:
        address = msgspec.json.decode((data / FILE_NAME).read_bytes(), type=Address)
    except (OSError, msgspec.MsgspecError):
        return None
    return address if _is_alive(address.pid) else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_left_over(pid)


def _is_left_over(pid: int) -> bool:
    """Whether it has ended, and only its number is kept until its parent looks."""
    try:
        words = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return words[:1] in ([b"Z"], [b"X"])
