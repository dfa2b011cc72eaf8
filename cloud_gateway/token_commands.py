"""`hybrid gateway token`: make, list, import and revoke the tokens of a gateway, on its data folder.

Design: the commands write the gateway's token file directly, so that they work before its first start, after a lost
administrator's token, and while it runs (it looks at the file twice a second).
"""

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from hybrid.cli.output import note, result
from hybrid.errors import NotFound
from hybrid.hosting.auth import Tokens
from hybrid.hosting.identity import ROLES, Role
from hybrid.hosting.token_store import TokenRecord

app = typer.Typer(
    no_args_is_help=True,
    help="""Tokens of a gateway: who may use it, and for what.

    \b
    Examples:
      hybrid gateway token create --role device --name camera-7
      hybrid gateway token ls --json
      hybrid gateway token revoke rxoyhfn3
      hybrid gateway token import --role device --name fleet < token-file
    """,
)

Data = Annotated[Path, typer.Option("--data", envvar="HYBRID_GATEWAY_DATA", help="The gateway's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Name = Annotated[str, typer.Option("--name", help="What to call its holder in lists and logs.")]
RoleOption = Annotated[
    str,
    typer.Option(
        "--role", help="What it is for: device (infer), publisher (also models), admin (all).", metavar="ROLE"
    ),
]
DATA = Path("./hybrid-gateway")


@app.command("create")
def create(name: Name, role: RoleOption = "device", data: Data = DATA, json: Json = False) -> None:
    """Make a token and print it, once: the gateway keeps only its hash."""
    wanted = _role(role)
    with _tokens(data) as tokens:
        token_id, text = tokens.create(wanted, name)
    result({"id": token_id, "role": wanted, "name": name, "token": text}, text, json=json)
    if not json:
        note(f"next: give it to the {wanted} as HYBRID_TOKEN; it is not shown again")


@app.command("import")
def import_token(name: Name, role: RoleOption = "device", data: Data = DATA, json: Json = False) -> None:
    """Take over a token made by another gateway, read from standard input, so that it opens both."""
    wanted = _role(role)
    if sys.stdin.isatty():
        raise typer.BadParameter("the token is read from standard input: hybrid gateway token import … < FILE")
    text = sys.stdin.readline(200).strip()
    with _tokens(data) as tokens:
        token_id = tokens.adopt(text, wanted, name)
    result({"id": token_id, "role": wanted, "name": name}, f"imported {token_id}", json=json)


@app.command("ls")
def ls(data: Data = DATA, json: Json = False) -> None:
    """List every token ever made, without secrets."""
    with _tokens(data) as tokens:
        records = tokens.records()
    rows = [("ID", "ROLE", "NAME", "CREATED", "LAST USED", "REVOKED"), *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    result([_public(record) for record in records], "\n".join(lines), json=json)


@app.command("revoke")
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The part between hyb_ and the next _.")],
    data: Data = DATA,
    json: Json = False,
) -> None:
    """End a token for good; a running gateway refuses it within a second, on open connections too."""
    with _tokens(data) as tokens:
        tokens.revoke(token_id)
        left = any(record.role == "admin" and record.revoked_s is None for record in tokens.records())
    result({"id": token_id, "revoked": True}, f"revoked {token_id}", json=json)
    if not left and not json:
        note("no administrator's token is left; next: hybrid gateway token create --role admin --name NAME")


def _tokens(data: Path) -> Tokens:
    if not data.is_dir():
        raise NotFound(
            f"there is no gateway data at {data}; name the folder with --data, or make it with `hybrid gateway serve`",
            advice="Name the gateway's folder with --data: the one that `hybrid gateway serve` was given.",
            path=str(data),
        )
    return Tokens(data)


def _role(text: str) -> Role:
    for role in ROLES:
        if role == text:
            return role
    raise typer.BadParameter(f"{text!r} is no role; give one of {', '.join(ROLES)}", param_hint="--role")


def _row(record: TokenRecord) -> tuple[str, ...]:
    times = (record.created_s, record.last_used_s, record.revoked_s)
    return (record.id, record.role, _printable(record.name), *map(_when, times))


def _public(record: TokenRecord) -> dict[str, str | None]:
    return {
        "id": record.id,
        "role": record.role,
        "name": record.name,
        "created": _iso(record.created_s),
        "last_used": _iso(record.last_used_s),
        "revoked": _iso(record.revoked_s),
    }


def _printable(name: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in name)


def _when(at_s: float | None) -> str:
    return "-" if at_s is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


def _iso(at_s: float | None) -> str | None:
    return None if at_s is None else datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
