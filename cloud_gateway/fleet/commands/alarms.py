"""`hybrid fleet alarms`: what a person should look at."""

from typing import Annotated

import msgspec
import typer

from cloud_gateway.fleet.admission.alarms import Alarm
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.tokens import when
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.transport.fleet_paths import ADMIN_ALARMS_PATH

app = typer.Typer(
    no_args_is_help=True,
    help="""Alarms of a fleet: keys seen on two machines, rollouts that halted, boxes that are silent.

    \b
    Examples:
      hybrid fleet alarms ls
      hybrid fleet alarms ack 12
    """,
)


class _Alarms(msgspec.Struct):
    alarms: tuple[Alarm, ...]


@app.command("ls")
def ls(
    everything: Annotated[bool, typer.Option("--all", help="Also those that were acknowledged.")] = False,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """List alarms that nobody has acknowledged yet, oldest first."""
    path = ADMIN_ALARMS_PATH + ("?acked=1" if everything else "")
    found = Asker(gateway, token).get(path, _Alarms).alarms
    rows = [
        (str(one.id), one.kind, str(one.n), when(one.last_s), "seen" if one.acked_s is not None else "open", one.text)
        for one in found
    ]
    heads = ("alarm", "kind", "times", "last", "state", "what")
    result({"alarms": found}, "\n".join(table([heads, *rows])) if rows else "no alarms", json=json)
    if any(one.acked_s is None for one in found) and not json:
        note("next: hybrid fleet alarms ack ID    # once it was looked at")


@app.command("ack")
def ack(
    alarm: Annotated[int, typer.Argument(metavar="ID", help="As `hybrid fleet alarms ls` shows it.", min=1)],
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Say that an alarm was looked at; the same thing happening again is a new one."""
    told = Asker(gateway, token).post(f"{ADMIN_ALARMS_PATH}/{alarm}/ack", {}, dict[str, object])
    result(told, f"acknowledged {alarm}", json=json)
