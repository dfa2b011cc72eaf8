"""`hybrid agent doctor`: everything that can be wrong with a box, looked at at once, each with what to do."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

HELP: Final = """What is wrong with this box, and what to do about it; at most 5 seconds, and nothing is changed.

Every line is PASS, WARN (something will not work, or not well) or FAIL (a promise is broken until it is mended). The
exit code is 1 where something FAILs. It works with the agent running or not, online or not. Safe to paste: no token, no
key and no input is shown. `hybrid doctor` looks at the machine and at what a program on it needs.

\b
Examples:
  hybrid agent doctor
  hybrid agent doctor --data /var/lib/hybrid-agent --json
  sudo hybrid-agent doctor
"""
WITHIN_S: Final = 4.5


def doctor(
    data: Annotated[
        Path | None, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", envvar="HYBRID_AGENT_CONFIG", help="Its TOML file of settings.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Look at this box, its folder, its fleet and its running agent."""
    from edge_agent.living import belonging, looks
    from edge_agent.living.patient import admitted
    from hybrid.cli.doctor import check
    from hybrid.cli.doctor.command import text_of
    from hybrid.cli.output import note, progress, result

    box = admitted(data, config, dict(os.environ))
    found = {
        "service": looks.service, "folder": looks.folder, "disk": looks.disk, "memory": looks.memory,
        "clock": belonging.clock, "identity": belonging.identity, "enrolment": belonging.enrolment,
        "gateway": belonging.gateway, "trust": belonging.trust, "models": looks.models, "outbox": looks.outbox,
        "sealing": belonging.sealing, "heat": looks.heat, "link": looks.link, "accelerator": looks.accelerator,
    }  # fmt: skip
    with progress("looking", len(found), "checks") as bar:
        every = [(name, partial(look, box)) for name, look in found.items()]
        checks = check.run(every, within_s=WITHIN_S, done=lambda: bar.advance(1))
    counts = {status: sum(one.status == status for one in checks) for status in ("PASS", "WARN", "FAIL")}
    result({"checks": checks, "counts": counts, "data": str(box.data)}, text_of(checks), json=json)
    if not json and counts["FAIL"] + counts["WARN"]:
        note("next: " + ("mend what FAILs" if counts["FAIL"] else "look at what WARNs; nothing is broken"))
    raise typer.Exit(1 if counts["FAIL"] else 0)
