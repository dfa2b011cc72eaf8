"""The command itself: runs every look at once, prints what they saw."""

from typing import Annotated

import typer

from hybrid.cli.doctor import check, emulation, here, network
from hybrid.cli.doctor.check import Check
from hybrid.cli.output import note, progress, result
from hybrid.cli.table import columns, hanging

WITHIN_S = 4.5
_WIDTH = 118
"""Of a line where there is no terminal."""

app = typer.Typer()

HELP = """What this machine is, what works here, and how to mend what does not; at most 5 seconds.

Every line is PASS, WARN (something will not work, or not well) or FAIL (nothing works until it is mended), the last two
with their fix. The exit code is 1 where something FAILs. Safe to paste: no token, no key and no input is shown.

\b
Examples:
  hybrid doctor
  hybrid doctor --gateway http://192.168.1.20:8700
  hybrid doctor --json
"""


@app.command(help=HELP)
def doctor(
    gateway: Annotated[
        str,
        typer.Option(
            "--gateway", envvar="HYBRID_GATEWAY", help="Its URL; `auto`: this machine's, else one found on the network."
        ),
    ] = "auto",
    token: Annotated[
        str | None,
        typer.Option("--token", envvar="HYBRID_TOKEN", show_envvar=True, help="What the gateway asks for."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look at this machine, its engines, its network and its gateway."""
    looks: list[tuple[str, check.Look]] = [
        ("python", here.python),
        ("packages", here.packages),
        ("engines", here.engines),
        ("clock", here.clock),
        ("disk", here.disk),
        ("machine", here.machine),
        ("speed", here.speed),
        ("slow machines", emulation.slow_machines),
        ("slow links", emulation.slow_links),
        ("tcp", emulation.congestion_control),
        ("ports", here.ports),
        ("token", lambda: here.token(token)),
        ("keys", here.keys),
        ("discovery", network.discovery),
        ("gateway", lambda: network.gateway(gateway, token)),
    ]
    with progress("looking", len(looks), "checks") as bar:
        checks = check.run(looks, within_s=WITHIN_S, done=lambda: bar.advance(1))
    counts = {status: sum(one.status == status for one in checks) for status in ("PASS", "WARN", "FAIL")}
    result({"checks": checks, "counts": counts}, text_of(checks), json=json)
    if not json:
        note("next: " + ("mend what FAILs" if counts["FAIL"] else "hybrid demo"))
    raise typer.Exit(1 if counts["FAIL"] else 0)


def text_of(checks: list[Check]) -> str:
    """One paragraph a check: its status, its name, what was seen, and the fix."""
    width = max(len(one.name) for one in checks)
    room, margin = columns() or _WIDTH, len("PASS  ") + width + 2
    lines = []
    for one in checks:
        lines += hanging(f"{one.status}  {one.name:<{width}}  ", one.seen, room, margin)
        lines += hanging(" " * margin, f"fix: {one.fix}", room, margin) if one.fix else []
    return "\n".join(lines)
