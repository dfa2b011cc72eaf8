"""`hybrid fleet boxes`: who is in the fleet, and who is let in and out."""

from typing import Annotated
from urllib.parse import quote

import msgspec
import typer

from cloud_gateway.fleet.admission.enrolment import tags_text
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.tokens import when
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.transport.fleet_paths import ADMIN_BOXES_PATH

app = typer.Typer(
    no_args_is_help=True,
    help="""Boxes of a fleet. A box is named by its name, its id, or the first 8 digits of that or more.

    \b
    Examples:
      hybrid fleet boxes ls
      hybrid fleet boxes show camera-7
      hybrid fleet boxes approve camera-7
      hybrid fleet boxes admit 3f9a12cd
      hybrid fleet boxes revoke camera-7 --reason stolen
      hybrid fleet boxes rename 3f9a12cd camera-8
    """,
)

BoxName = Annotated[str, typer.Argument(metavar="BOX", help="Its name, or the beginning of its id.")]


class _Box(msgspec.Struct):
    id: str
    name: str
    tags: dict[str, str]
    admission: str
    reason: str
    token_id: str
    enrolled_s: float
    epoch: str
    run: str
    seen_s: float
    software: str
    machine: str
    may_come_back: bool = False


class _Event(msgspec.Struct):
    at_s: float
    who: str
    what: str
    detail: str = ""


class _Boxes(msgspec.Struct):
    boxes: tuple[_Box, ...]


class _Shown(msgspec.Struct):
    box: _Box
    events: tuple[_Event, ...] = ()


@app.command("ls")
def ls(
    admission: Annotated[
        str, typer.Option("--admission", help="Only these: waiting, admitted, quarantined, revoked.")
    ] = "",
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """List the boxes of the fleet, oldest first."""
    if admission not in ("", "waiting", "admitted", "quarantined", "revoked"):
        raise typer.BadParameter(f"{admission[:40]!r} is none of waiting, admitted, quarantined, revoked")
    found = [
        box for box in Asker(gateway, token).get(ADMIN_BOXES_PATH, _Boxes).boxes if admission in ("", box.admission)
    ]
    rows = [
        (box.name, box.id[:8], box.admission, tags_text(box.tags) or "-", when(box.seen_s), box.software or "-")
        for box in found
    ]
    heads = ("name", "id", "admission", "tags", "last access", "software")
    nobody = f"no {admission} boxes" if admission else "no boxes"
    result({"boxes": found}, "\n".join(table([heads, *rows])) if rows else nobody, json=json)
    if not rows and not admission and not json:
        note("next: hybrid fleet token create")


@app.command("show")
def show(box: BoxName, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Tell all about one box, and what happened to it last."""
    told = Asker(gateway, token).get(_path(box), _Shown)
    one = told.box
    lines = [
        f"name       {one.name}",
        f"id         {one.id}",
        f"admission  {one.admission}" + (f": {one.reason}" if one.reason else ""),
        f"tags       {tags_text(one.tags) or '-'}",
        f"enrolled   {when(one.enrolled_s)} with token {one.token_id}",
        f"seen       {when(one.seen_s)}",
        f"software   {one.software or '-'}",
        f"machine    {one.machine or '-'}",
        f"epoch, run {one.epoch[:8] or '-'}, {one.run[:8] or '-'}",
        *(f"{when(event.at_s)}  {event.what} by {event.who}  {event.detail}".rstrip() for event in told.events),
    ]
    result(told, "\n".join(lines), json=json)


@app.command("approve")
def approve(box: BoxName, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Let a box in that waits for a person's approval."""
    _admit(box, gateway, token, json=json)


@app.command("admit")
def admit(box: BoxName, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Let a box in again that was quarantined or revoked; whichever machine calls next with its key is the box."""
    _admit(box, gateway, token, json=json)


def _admit(box: str, gateway: str, token: str | None, *, json: bool) -> None:
    told = Asker(gateway, token).post(f"{_path(box)}/admit", {}, _Shown).box
    result({"box": told}, f"{told.name} is admitted", json=json)
    if told.may_come_back and not json:
        note("end the other machine that holds its key first: whichever calls next is the box")


@app.command("revoke")
def revoke(
    box: BoxName,
    reason: Annotated[str, typer.Option("--reason", help="Why, for people.")] = "",
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Let a box out, within a second, on open connections too; its key gets nothing until it is admitted again."""
    told = Asker(gateway, token).post(f"{_path(box)}/revoke", {"reason": reason}, _Shown).box
    result({"box": told}, f"{told.name} is revoked", json=json)


@app.command("rename")
def rename(
    box: BoxName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it.")],
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Call a box otherwise."""
    told = Asker(gateway, token).post(f"{_path(box)}/rename", {"name": name}, _Shown).box
    result({"box": told}, f"{told.id[:8]} is {told.name}", json=json)


def _path(box: str) -> str:
    return f"{ADMIN_BOXES_PATH}/{quote(box, safe='')}"
