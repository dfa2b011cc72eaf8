"""`hybrid fleet results|samples|telemetry`: what boxes brought, listed, exported to files, removed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import msgspec
import typer

from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.tokens import when
from cloud_gateway.fleet.intake.admin_routes import ITEMS_PATH, ItemList, RemoveWish
from cloud_gateway.fleet.intake.export import is_there, write_other, write_sample
from cloud_gateway.fleet.intake.listing import MOST_LISTED, StoredThing
from hybrid.cli.gateway_choice import choose
from hybrid.cli.output import note, progress, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.errors import CorruptContent
from hybrid.transport.registry_client import RegistryClient

Box = Annotated[str, typer.Option("--box", help="Of this box alone: its name, its id, or how its id begins.")]
After = Annotated[int, typer.Option("--after", help="Those that came after this one.", metavar="ID", min=0)]
Limit = Annotated[int, typer.Option("--limit", help="At most so many.", min=1, max=MOST_LISTED)]

_ABOUT: Final = {
    "result": ("results", "Results that programs on boxes brought"),
    "sample": ("samples", "Inputs and outputs of models that boxes uploaded"),
    "telemetry": ("telemetry", "Telemetry of boxes"),
}


def add_item_commands(app: typer.Typer) -> None:
    """Join them to `hybrid fleet`."""
    for kind, (name, what) in _ABOUT.items():
        app.add_typer(_commands(kind, name, what), name=name)


def _commands(kind: str, name: str, what: str) -> typer.Typer:
    app = typer.Typer(
        no_args_is_help=True,
        help=f"""{what}: kept until they are removed, or within each box's bounds.

        \b
        Examples:
          hybrid fleet {name} ls --box mill-3
          hybrid fleet {name} export ./{name}
          hybrid fleet {name} rm --up-to 1200
        """,
    )

    _add_ls(app, kind, name)
    _add_export(app, kind, name)
    _add_rm(app, kind)
    return app


def _add_ls(app: typer.Typer, kind: str, name: str) -> None:
    @app.command("ls")
    def ls(
        box: Box = "",
        after: After = 0,
        limit: Limit = 50,
        gateway: Gateway = "auto",
        token: AdminToken = None,
        json: Json = False,
    ) -> None:
        """List them in the order in which they came."""
        found = Asker(gateway, token).get(_path(kind, box, after, limit), ItemList)
        kept = [amount for amount in found.amounts if amount.kind == kind]
        lines = table([_HEADS, *map(_row, found.items)]) if found.items else [f"no {name}"]
        result({"items": found.items, "amounts": kept}, "\n".join(lines), json=json)
        if len(found.items) == limit and not json:
            note(f"next: hybrid fleet {name} ls --after {found.items[-1].id}")


def _add_export(app: typer.Typer, kind: str, name: str) -> None:
    @app.command("export")
    def export(
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Gets a file each, and index.jsonl.")],
        box: Box = "",
        after: After = 0,
        gateway: Gateway = "auto",
        token: AdminToken = None,
        json: Json = False,
    ) -> None:
        """Write them to files; those that are there already are left as they are."""
        told = asyncio.run(_export(_Wish(kind, box, after, gateway, token), folder))
        text = f"{told.n_written} written, {told.n_there} were there already, in {folder}"
        result(
            {"n_written": told.n_written, "n_there": told.n_there, "last": told.last, "folder": str(folder)},
            text if told.last else f"no {name}",
            json=json,
        )
        if told.last and not json:
            note(f"next: hybrid fleet {name} rm --up-to {told.last}    # once they are safe")


def _add_rm(app: typer.Typer, kind: str) -> None:
    @app.command("rm")
    def rm(
        up_to: Annotated[int, typer.Option("--up-to", help="This one and all that came before.", metavar="ID", min=1)],
        box: Box = "",
        gateway: Gateway = "auto",
        token: AdminToken = None,
        json: Json = False,
    ) -> None:
        """Remove them from the gateway for good."""
        wish = RemoveWish(kind=kind, up_to=up_to, box=box)
        told = Asker(gateway, token).post(f"{ITEMS_PATH}/remove", wish, dict[str, int])
        result(told, f"removed {told['n_removed']}", json=json)


_HEADS: Final = ("ID", "BOX", "STREAM", "NUMBER", "BYTES", "CAME", "MADE")


def _row(one: StoredThing) -> tuple[str, ...]:
    made = "unknown" if one.made_s is None else when(one.made_s)
    return (str(one.id), one.box[:12], one.stream, str(one.seq), str(one.n_bytes), when(one.received_s), made)


def _path(kind: str, box: str, after: int, limit: int) -> str:
    return f"{ITEMS_PATH}?kind={kind}&box={quote(box, safe='')}&after={after}&limit={limit}"


@dataclass(frozen=True, slots=True)
class _Wish:
    kind: str
    box: str
    after: int
    gateway: str
    token: str | None


@dataclass(slots=True)
class _Told:
    n_written: int = 0
    n_there: int = 0
    last: int = 0


async def _export(wish: _Wish, folder: Path) -> _Told:
    choice = await asyncio.to_thread(choose, wish.gateway, wish.token)
    told = _Told()
    write = write_sample if wish.kind == "sample" else write_other
    async with RegistryClient(choice.url, wish.token, trust=choice.trust) as client:
        after = wish.after
        while True:
            answer = await client.get(_path(wish.kind, wish.box, after, MOST_LISTED))
            found = msgspec.json.decode(answer, type=ItemList).items
            if not found:
                return told
            with progress(f"writing to {folder}", sum(one.n_bytes for one in found), "bytes") as bar:
                for one in found:
                    await _export_one(client, one, folder, write, told)
                    bar.advance(one.n_bytes)
            after = told.last = found[-1].id


async def _export_one(client: RegistryClient, one: StoredThing, folder: Path, write: "_Write", told: _Told) -> None:
    if await asyncio.to_thread(is_there, folder, one):
        told.n_there += 1
        return
    content = bytearray()
    while len(content) < one.n_bytes:
        piece = await client.get(f"{ITEMS_PATH}/{one.id}?offset={len(content)}")
        if not piece:
            raise CorruptContent(f"item {one.id} has {len(content)} bytes of {one.n_bytes}; export it again")
        content += piece
    await asyncio.to_thread(write, folder, one, bytes(content))
    told.n_written += 1


_Write = Callable[[Path, StoredThing, bytes], None]
