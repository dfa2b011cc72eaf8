"""`hybrid agent import`: a version comes to this box as a file, without a network."""

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from hybrid.cli.output import note, result
from hybrid.errors import from_code

HELP: Final = """Install a version from a file: the same checks, the same slots, the same trial as from the gateway.

\b
Examples:
  hybrid agent import /media/usb/detector-3.hybrid
  hybrid agent import detector-3.hybrid --data /var/lib/hybrid-agent --wait 0 --json

A running agent takes it up within seconds and this command waits for the end; without one it is installed at the next
start. Exit code 1 when the version failed here (what answered before still does).
"""

_LOOK_S: Final = 0.5
_ENDS: Final = frozenset({"trial", "committed", "failed", "rolled_back"})


def import_version(
    file: Annotated[Path, typer.Argument(help="As `hybrid models export` wrote it.", metavar="FILE")],
    data: Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")] = Path(
        "./hybrid-agent"
    ),
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for a running agent; 0: none.", min=0)] = 120.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check the file, lay it down for the agent, and wait until the version answers."""
    from edge_agent.disk import RealDisk
    from edge_agent.follow.bringing import bring
    from edge_agent.trust.identity import BoxIdentity
    from edge_agent.trust.machine import this_machine
    from edge_agent.whereabouts import read_address
    from hybrid.artifact.bundle import trust_in

    disk = RealDisk()
    trust_in(file)  # what is no bundle leaves no trace
    is_known = (data / "agent.lock").exists()
    brought = bring(file, data, disk, BoxIdentity(data, disk, this_machine()), time.time)
    assigned = brought.assigned
    label = f"{assigned.name}:{assigned.version}"
    is_running = read_address(data) is not None
    phase, code, detail = ("waiting", "", "")
    if is_running and wait:
        phase, code, detail = _wait(data, assigned.name, assigned.artifact_digest, wait)
    told: dict[str, Any] = {
        "name": assigned.name,
        "version": assigned.version,
        "artifact_digest": assigned.artifact_digest,
        "signed_by": brought.signed_by,
        "has_root": brought.has_root,
        "has_new_trust": brought.has_new_trust,
        "agent_runs": is_running,
        "folder": data.absolute(),
        "phase": phase,
        "code": code,
        "detail": detail,
    }
    if phase in ("failed", "rolled_back"):
        raise from_code(code, f"{label} {phase.replace('_', ' ')}: {detail}", **told)
    result(told, _said(label, phase, is_running=is_running), json=json)
    if not json and not brought.has_root:
        note("this box believes no root: the signature was not asked for")
    if not json and not is_known:
        note(f"no agent ever ran in {data.absolute()}: is that its folder? else give --data")
    if not json:
        note("next: hybrid agent status" if is_running else "next: hybrid agent serve")


def _said(label: str, phase: str, *, is_running: bool) -> str:
    if phase == "committed":
        return f"{label} answers, and is committed"
    if phase == "trial":
        return f"{label} answers, on trial"
    return f"{label} is checked and laid down; " + (
        "the agent installs it" if is_running else "it is installed when the agent starts"
    )


def _wait(data: Path, name: str, artifact_digest: str, wait_s: float) -> tuple[str, str, str]:
    """How the installation stands when it has come to something, or the time is over."""
    from edge_agent.disk import RealDisk
    from edge_agent.follow.bringing import state_of

    until_s = time.monotonic() + wait_s
    shown = ""
    while True:
        slots = state_of(data, RealDisk(), name, time.time)
        wanted, failure = slots.wanted, slots.failure
        phase = slots.phase if wanted is not None and wanted.artifact_digest == artifact_digest else "waiting"
        if phase != shown and phase not in _ENDS:
            note(phase)
            shown = phase
        if phase in _ENDS or time.monotonic() > until_s:
            return phase, failure.code if failure else "", failure.detail if failure else ""
        time.sleep(_LOOK_S)
