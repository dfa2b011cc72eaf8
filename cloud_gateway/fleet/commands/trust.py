"""`hybrid fleet trust`: the bundle of keys, signed by the fleet's root, that boxes believe."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.errors import NotFound, StorageError
from hybrid.fleet.trust_bundle import DelegatedKey
from hybrid.transport.fleet_paths import ADMIN_TRUST_PATH

app = typer.Typer(
    no_args_is_help=True,
    help="""Whose signatures the boxes of a fleet believe. The gateway hands the bundle out and cannot change it.

    \b
    Examples:
      hybrid keys delegate --publisher KEY --out trust.json
      hybrid fleet trust set trust.json
      hybrid fleet trust show
    """,
)


class _Trust(msgspec.Struct):
    sequence: int | None
    root_sha256: str | None
    keys: tuple[DelegatedKey, ...] = ()


@app.command("set")
def set_trust(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `hybrid keys delegate` wrote it.")],
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Hand a newer trust bundle out to all boxes of the fleet."""
    try:
        envelope = file.read_bytes()
    except FileNotFoundError as exc:
        raise NotFound(f"{file}: no such file; make one with `hybrid keys delegate`") from exc
    except OSError as exc:
        raise StorageError(f"{file}: {exc.strerror or exc}", path=str(file)) from exc
    told = Asker(gateway, token).post(ADMIN_TRUST_PATH, envelope, _Trust)
    result(told, f"trust bundle {told.sequence} with {len(told.keys)} keys is handed out from now on", json=json)


@app.command("show")
def show(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Tell whose signatures the fleet's boxes believe."""
    told = Asker(gateway, token).get(ADMIN_TRUST_PATH, _Trust)
    if told.sequence is None:
        result(told, "this fleet has no trust bundle", json=json)
        if not json:
            note("next: hybrid keys root create, then hybrid keys delegate --publisher KEY --out trust.json")
        return
    rows = [(key.role, key.name or "-", key.public_key) for key in told.keys]
    head = f"sequence {told.sequence}, root {told.root_sha256}"
    lines = table([("role", "name", "public key"), *rows]) if rows else ["it names no keys: nothing new is installed"]
    result(told, "\n".join([head, *lines]), json=json)
