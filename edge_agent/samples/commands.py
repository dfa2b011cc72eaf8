"""`hybrid agent samples`: which inputs and outputs this box keeps, and their removal."""

import time
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.local_call import ask_agent
from edge_agent.samples.paths import SAMPLES_PATH
from hybrid.cli.output import note, result
from hybrid.cli.table import table

app = typer.Typer(
    no_args_is_help=True,
    help="""Inputs and outputs that this box keeps for learning, sealed. Asks the running agent.

    \b
    Examples:
      hybrid agent samples ls
      hybrid agent samples label 00000000002a 7
      hybrid agent samples rm 00000000002a
    """,
)

Data = Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
_DATA = Path("./hybrid-agent")


@app.command("ls")
def ls(
    model: Annotated[str, typer.Option("--model", help="Of this model alone.")] = "",
    limit: Annotated[int, typer.Option("--limit", help="At most so many.", min=1, max=1000)] = 100,
    data: Data = _DATA,
    json: Json = False,
) -> None:
    """List the newest samples, newest first; contents are not shown."""
    from urllib.parse import quote

    answer = ask_agent(data, f"{SAMPLES_PATH}?limit={limit}&model={quote(model, safe='')}")
    rows = [
        (one["id"], one["model"], "yes" if one["labelled"] else "no", str(one["n_bytes"]),
         time.strftime("%Y-%m-%d %H:%M", time.gmtime(one["made_s"])) + "Z", "waits" if one["waits_for_upload"] else "")
        for one in answer["samples"]
    ]  # fmt: skip
    heads = ("SAMPLE", "MODEL", "LABELLED", "BYTES", "MADE", "UPLOAD")
    lines = table([heads, *rows]) if rows else ["no samples"]
    result(answer, "\n".join(lines), json=json)
    if not json:
        note(f"{answer['n_items']} samples with {answer['n_bytes']} bytes on this box")


@app.command("label")
def label(
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="As `hybrid agent samples ls` shows it.")],
    right: Annotated[str, typer.Argument(metavar="CLASS", help="What was right: a class by name or number, or JSON.")],
    data: Data = _DATA,
    json: Json = False,
) -> None:
    """Say what was right for a sample that is on this box; what was said before is replaced."""
    import msgspec

    try:
        said = msgspec.json.decode(right)
    except msgspec.MsgspecError:
        said = right
    body = msgspec.json.encode(said)
    told = ask_agent(data, f"{SAMPLES_PATH}/{sample}/label", method="PUT", body=body)
    result(told, f"labelled {sample}", json=json)


@app.command("rm")
def rm(
    sample: Annotated[str, typer.Argument(metavar="SAMPLE", help="As `hybrid agent samples ls` shows it.")],
    data: Data = _DATA,
    json: Json = False,
) -> None:
    """Remove one from this box; what was uploaded stays at the gateway (`hybrid fleet samples rm`)."""
    told = ask_agent(data, f"{SAMPLES_PATH}/{sample}", method="DELETE")
    result(told, f"removed {sample}", json=json)
