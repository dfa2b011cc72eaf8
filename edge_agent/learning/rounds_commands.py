"""`hybrid agent rounds`: what this box learns, what of it has left the box, and what privacy that cost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.local_call import ask_agent
from edge_agent.whereabouts import STATUS_PATH
from hybrid.cli.output import result
from hybrid.cli.table import table

HELP = """Show the rounds that this box takes part in: updates that counted, their bytes, epsilon spent. Asks the agent.

\b
Examples:
  hybrid agent rounds
  hybrid agent rounds --json
"""
_HEADINGS = ("CAMPAIGN", "MODEL", "STEP", "COUNTED", "NOT", "TRIED", "BYTES UP", "LOSS", "EPSILON", "LAST")


def rounds(
    data: Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")] = Path(
        "./hybrid-agent"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ask the running agent, and show what it says of its learning."""
    told = ask_agent(data, STATUS_PATH).get("parts", {}).get("learning", {})
    result(told, "\n".join(lines(told)), json=json)


def summary(told: Mapping[str, Any]) -> str:
    """One line for the status."""
    if not told:
        return "learning not in this start: crashes in a row (see problems)"
    if told.get("mode") == "off":
        return "learning off (setting `learn`)"
    if told.get("why_not"):
        return f"learning not now: {told['why_not']}"
    return f"learning {told.get('doing') or 'waits for tasks'}"


def lines(told: Mapping[str, Any]) -> list[str]:
    """All of it."""
    found = [summary(told)]
    if told.get("waiting_bytes"):
        found.append(f"         an update of {told['waiting_bytes']} bytes waits for the gateway")
    if told.get("n_unfit"):
        found.append(f"         {told['n_unfit']} samples cannot be learned from, such as: {told['why_unfit']}")
    if told.get("n_stood"):
        stood = f"{told['n_stood']} times, at most {told['stood_s'] * 1e3:.0f} ms after one came"
        found.append(f"         stood still for requests {stood}")
    rows = [_row(one) for one in reversed(told.get("campaigns", ()))]
    return [*found, "", *(table([_HEADINGS, *rows]) if rows else ["no rounds yet"])]


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    step = "over" if one["is_over"] else str(one["step"]) if one["step"] >= 0 else "-"
    loss = f"{one['loss_before']:.3f} -> {one['loss_after']:.3f}" if one["loss_before"] else "-"
    counts = (str(one["n_accepted"]), str(one["n_lost"]), str(one["n_evaluated"]), str(one["n_bytes"]))
    epsilon = f"{one['epsilon']:.2f}" if one["epsilon"] else "-"
    return (one["id"], one["model"], step, *counts, loss, epsilon, one["last"])
