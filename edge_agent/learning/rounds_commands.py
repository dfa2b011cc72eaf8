"""`hybrid agent rounds`: what this box learns, what of it has left the box, and what privacy that cost."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.local_call import ask_agent
from edge_agent.whereabouts import ROUNDS_PATH, STATUS_PATH
from hybrid.cli.output import result
from hybrid.cli.table import table

HELP = """Show the rounds that this box takes part in: updates that counted, their bytes, epsilon spent. Asks the agent.

\b
Examples:
  hybrid agent rounds
  hybrid agent rounds --json
  hybrid agent rounds forget k3p9w2xa
"""
_HEADINGS = ("CAMPAIGN", "MODEL", "STEP", "COUNTED", "NOT", "TRIED", "BYTES UP", "LOSS", "EPSILON", "LAST")


app = typer.Typer(invoke_without_command=True, help=HELP)

Data = Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
_DATA = Path("./hybrid-agent")


@app.callback(invoke_without_command=True, help=HELP)
def rounds(context: typer.Context, data: Data = _DATA, json: Json = False) -> None:
    """Ask the running agent, and show what it says of its learning."""
    if context.invoked_subcommand is None:
        told = ask_agent(data, STATUS_PATH).get("parts", {}).get("learning", {})
        result(told, "\n".join(lines(told)), json=json)


@app.command("forget")
def forget(
    what: Annotated[str, typer.Argument(metavar="CAMPAIGN|MODEL", help="Whose personal layers.")],
    data: Data = _DATA,
    json: Json = False,
) -> None:
    """Remove personal layers from this box for good; the model answers as it was shipped."""
    from urllib.parse import quote

    told = ask_agent(data, f"{ROUNDS_PATH}/{quote(what, safe='')}/personal", method="DELETE")
    result(told, f"forgot the personal layers of {', '.join(told['forgotten'])}", json=json)


def summary(told: Mapping[str, Any]) -> str:
    """One line for the status; one more for what a model lacks to learn here."""
    if not told:
        return "learning not in this start: crashes in a row (see problems)"
    if told.get("mode") == "off":
        return "learning off (setting `learn`)"
    now = f"not now: {told['why_not']}" if told.get("why_not") else told.get("doing") or "waits for tasks"
    return f"learning {now}" + (f"\n         {told['lacking']}" if told.get("lacking") else "")


def lines(told: Mapping[str, Any]) -> list[str]:
    """All of it."""
    found = summary(told).split("\n")
    if told.get("waiting_bytes"):
        found.append(f"         an update of {told['waiting_bytes']} bytes waits for the gateway")
    if told.get("n_unfit"):
        samples = f"{told['n_unfit']} sample{'s' * (told['n_unfit'] != 1)}"
        found.append(f"         {samples} cannot be learned from, such as: {told['why_unfit']}")
    if told.get("n_left_out"):
        room = f"{told['feature_bytes'] / 1e6:.3g} MB hold the newest; more with --learn-memory-bytes"
        found.append(f"         {told['n_left_out']} labelled samples are left out: {room}")
    if told.get("n_stood"):
        times = "once" if told["n_stood"] == 1 else f"{told['n_stood']} times"
        stood = f"{times}, at most {told['stood_s'] * 1e3:.0f} ms after one came"
        found.append(f"         stood still for requests {stood}")
    found += personal(told)
    rows = [_row(one) for one in reversed(told.get("campaigns", ()))]
    return [*found, "", *(table([_HEADINGS, *rows]) if rows else ["no rounds yet"])]


def personal(told: Mapping[str, Any]) -> list[str]:
    """One line for each model whose personal layers were judged on this box."""
    return [f"personal {_of(one)}" for one in told.get("personal", ())]


def _of(one: Mapping[str, Any]) -> str:
    whose = f"{one['campaign']}" + (f" (step {one['step']})" if one["step"] >= 0 else "")
    found = f"{one['n_right']} of {one['n']} right, {one['n_plain_right']} without" if one["n"] else "not judged"
    since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(one["since_s"])) + "Z"
    if one["answers"]:
        return f"{one['model']} answers with layers of {whose} since {since}: {found}"
    return f"{one['model']} answers without layers of {whose}, {one['why_not'] or 'for now'}: {found}"


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    step = "over" if one["is_over"] else str(one["step"]) if one["step"] >= 0 else "-"
    loss = f"{one['loss_before']:.3f} -> {one['loss_after']:.3f}" if one["loss_before"] else "-"
    counts = (str(one["n_accepted"]), str(one["n_lost"]), str(one["n_evaluated"]), str(one["n_bytes"]))
    epsilon = f"{one['epsilon']:.2f}" if one["epsilon"] else "-"
    return (one["id"], one["model"], step, *counts, loss, epsilon, one["last"])
