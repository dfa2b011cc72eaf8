"""`hybrid agent enroll`: bring this box into a fleet."""

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from hybrid.cli.output import note, result
from hybrid.errors import NotFound, StorageError

if TYPE_CHECKING:
    from edge_agent.trust.identity import BoxIdentity
    from hybrid.fleet.enrolment_token import EnrolmentToken
    from hybrid.fleet.messages import EnrollAnswer

HELP: Final = """Bring this box into a fleet, with a token that was made on the gateway.

\b
Examples:
  hybrid agent enroll hybe_afcujgfx...
  hybrid agent enroll - < token-file
  hybrid agent enroll --file /boot/hybrid-token --later
  hybrid agent enroll --anew hybe_afcujgfx...

Asking again is fine: the same box gets the same answer, whatever became of the first try. A running agent notices.
"""
_MAX_FILE_BYTES: Final = 8192


class Wish(NamedTuple):
    """How a box wants to be enrolled."""

    name: str
    gateway: str
    anew: bool


def enroll(
    token: Annotated[
        str, typer.Argument(metavar="[TOKEN]", help="As `hybrid fleet token create` printed it; - reads it from stdin.")
    ] = "",
    file: Annotated[Path | None, typer.Option("--file", help="Read the token from this file.")] = None,
    name: Annotated[str, typer.Option("--name", help="What to call the box; by default the host's name.")] = "",
    gateway: Annotated[str, typer.Option("--gateway", help="The gateway's URL, in place of the token's.")] = "",
    later: Annotated[
        bool, typer.Option("--later", help="Only lay the token down: the agent enrols with it when it can.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Become another box, with another key; what it was is given up then.")
    ] = False,
    data: Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")] = Path(
        "./hybrid-agent"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Bring this box into a fleet, with a token that was made on the gateway."""
    from edge_agent.disk import RealDisk, write_durably
    from edge_agent.trust.identity import FOLDER, TOKEN_FILE, BoxIdentity
    from edge_agent.trust.machine import this_machine
    from hybrid.fleet.enrolment_token import EnrolmentToken
    from hybrid.transport.fleet_link import not_admitted

    if later and anew:
        raise typer.BadParameter("--later lays a token down for a box that belongs nowhere; leave --anew away")
    parsed = EnrolmentToken.parse(_text(token, file))
    disk = RealDisk()
    identity = BoxIdentity(data, disk, this_machine())
    if later:
        write_durably(disk, data / FOLDER / TOKEN_FILE, parsed.text.encode())
        _hand_over(data)
        result({"later": True, "token_id": parsed.id}, "the agent enrols with this token when it runs", json=json)
        return
    try:
        answer = _asked(identity, parsed, Wish(name, gateway, anew))
    finally:
        _hand_over(data)
    enrolment = identity.enrolment
    told = {
        "box_id": answer.box_id,
        "name": answer.name,
        "admission": answer.admission,
        "tags": answer.tags,
        "gateway": enrolment.url if enrolment is not None else "",
        "has_root": parsed.root_sha256 is not None,
    }
    if answer.admission in {"quarantined", "revoked"}:
        raise not_admitted(answer.admission)
    result(told, f"{answer.name} ({answer.box_id[:8]}) is {_said(answer.admission)}", json=json)
    if json:
        return
    if answer.admission == "waiting":
        note(f"next, on the gateway: hybrid fleet boxes approve {answer.box_id[:8]}")
    elif parsed.root_sha256 is None:
        note("this fleet has no root: the box installs whatever the gateway says")
    note("next: hybrid agent serve    # an agent that runs already notices by itself")


def _asked(identity: "BoxIdentity", token: "EnrolmentToken", wish: Wish) -> "EnrollAnswer":
    from edge_agent.trust.enrolling import enroll as enroll_box
    from edge_agent.trust.trusted_time import TrustedTime
    from hybrid import __version__

    time, software = TrustedTime(identity.files), f"hybrid {__version__}"
    settings = wish._asdict()
    return asyncio.run(enroll_box(identity, token, time=time, software=software, **settings))


def _hand_over(data: Path) -> None:
    """What root wrote into a service's folder is the service's: else its agent could not read who it is."""
    from edge_agent.trust.identity import FOLDER

    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    owner, folder = data.stat(), data / FOLDER
    for path in (folder, *folder.iterdir()):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _said(admission: str) -> str:
    return {"admitted": "in the fleet", "waiting": "in the fleet once a person approves it"}.get(admission, admission)


def _text(token: str, file: Path | None) -> str:
    if bool(token) == (file is not None):
        raise typer.BadParameter("give the token, or - to read it from standard input, or --file FILE")
    if file is not None:
        try:
            with file.open("rb") as opened:
                return opened.read(_MAX_FILE_BYTES).decode("utf-8", "replace")
        except FileNotFoundError as exc:
            raise NotFound(f"{file}: no such file; a token's text is wanted in it") from exc
        except OSError as exc:
            raise StorageError(f"{file}: {exc.strerror or exc}", path=str(file)) from exc
    if token != "-":  # noqa: S105 (the sign for standard input)
        return token
    if sys.stdin.isatty():
        note("paste the token, then press Enter")
        return sys.stdin.readline(_MAX_FILE_BYTES)
    return sys.stdin.read(_MAX_FILE_BYTES)
