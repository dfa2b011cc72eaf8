"""`hybrid gateway token` and `hybrid agent token`: make, list, import and revoke tokens, on a service's data folder.

Design: the commands write the service's token file directly, so that they work before its first start, after a lost
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

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Name = Annotated[str, typer.Option("--name", help="What to call its holder in lists and logs.")]
RoleOption = Annotated[
    str,
    typer.Option(
        "--role", help="What it is for: device (infer), publisher (also models), admin (all).", metavar="ROLE"
    ),
]


def token_app(service: str, folder: Path) -> typer.Typer:
    """The commands for the tokens of one service.

    Args:
        service: `gateway` or `agent`: the word after `hybrid`.
        folder: its data folder by default.
    """
    Data = Annotated[  # noqa: N806 (a type)
        Path, typer.Option("--data", envvar=f"HYBRID_{service.upper()}_DATA", help=f"The {service}'s data folder.")
    ]
    app = typer.Typer(
        no_args_is_help=True,
        help=f"""Tokens of {_a(service)}: who may use it, and for what.

    \b
    Examples:
      hybrid {service} token create --role device --name camera-7
      hybrid {service} token ls --json
      hybrid {service} token revoke rxoyhfn3
      hybrid {service} token import --role device --name fleet < token-file
    """,
    )

    @app.command("create")
    def create(name: Name, role: RoleOption = "device", data: Data = folder, json: Json = False) -> None:
        _create(_tokens(service, data), _role(role), name, json=json)

    create.__doc__ = f"Make a token and print it, once: the {service} keeps only its hash."

    @app.command("import")
    def import_token(name: Name, role: RoleOption = "device", data: Data = folder, json: Json = False) -> None:
        _import(service, data, _role(role), name, json=json)

    import_token.__doc__ = f"Take over a token made by another {service}, read from standard input: it opens both."

    @app.command("ls")
    def ls(data: Data = folder, json: Json = False) -> None:
        """List every token ever made, without secrets."""
        _list(_tokens(service, data), json=json)

    @app.command("revoke")
    def revoke(
        token_id: Annotated[str, typer.Argument(metavar="ID", help="The part between hyb_ and the next _.")],
        data: Data = folder,
        json: Json = False,
    ) -> None:
        _revoke(_tokens(service, data), token_id, service=service, json=json)

    revoke.__doc__ = f"End a token for good; a running {service} refuses it within a second, on open connections too."
    return app


def _create(store: Tokens, role: Role, name: str, *, json: bool) -> None:
    with store as tokens:
        token_id, text = tokens.create(role, name)
    result({"id": token_id, "role": role, "name": name, "token": text}, text, json=json)
    if not json:
        note(f"next: give it to the {role} as HYBRID_TOKEN; it is not shown again")


def _import(service: str, data: Path, role: Role, name: str, *, json: bool) -> None:
    if sys.stdin.isatty():
        raise typer.BadParameter(f"the token is read from standard input: hybrid {service} token import … < FILE")
    text = sys.stdin.readline(200).strip()
    with _tokens(service, data) as tokens:
        token_id = tokens.adopt(text, role, name)
    result({"id": token_id, "role": role, "name": name}, f"imported {token_id}", json=json)


def _list(store: Tokens, *, json: bool) -> None:
    with store as tokens:
        records = tokens.records()
    rows = [("ID", "ROLE", "NAME", "CREATED", "LAST USED", "REVOKED"), *map(_row, records)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    result([_public(record) for record in records], "\n".join(lines), json=json)


def _revoke(store: Tokens, token_id: str, *, service: str, json: bool) -> None:
    with store as tokens:
        tokens.revoke(token_id)
        left = any(record.role == "admin" and record.revoked_s is None for record in tokens.records())
    result({"id": token_id, "revoked": True}, f"revoked {token_id}", json=json)
    if not left and not json:
        note(f"no administrator's token is left; next: hybrid {service} token create --role admin --name NAME")


def _tokens(service: str, data: Path) -> Tokens:
    if not data.is_dir():
        raise NotFound(
            f"there is no {service} data at {data}; name the folder with --data, or make it with "
            f"`hybrid {service} serve`",
            advice=f"Name the {service}'s folder with --data: the one that `hybrid {service} serve` was given.",
            path=str(data),
        )
    return Tokens(data)


def _a(service: str) -> str:
    return f"an {service}" if service[0] in "aeiou" else f"a {service}"


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
