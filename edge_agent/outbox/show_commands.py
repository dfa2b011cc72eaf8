"""`hybrid agent outbox`: what waits for the gateway on this box, and what became of the rest."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.local_call import ask_agent
from edge_agent.outbox.paths import OUTBOX_PATH
from edge_agent.outbox.policy import KINDS, PRIORITY
from edge_agent.whereabouts import read_address
from hybrid.cli.output import result
from hybrid.cli.table import table
from hybrid.errors import NotFound, StorageError

HELP = """Show what waits for the gateway on this box, and what became of the rest; also while the agent is stopped.

\b
Examples:
  hybrid agent outbox
  hybrid agent outbox --data /var/lib/hybrid-agent --json

What a kind may use, and what leaves first when room is short, stands in docs/outbox.md.
"""

HEADINGS = ("KIND", "PRIORITY", "WAIT", "BYTES", "SENT", "DROPPED", "REPLACED", "REFUSED", "LOST")


def outbox(
    data: Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")] = Path(
        "./hybrid-agent"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ask the running agent, or look at the files of one that is stopped."""
    if not data.is_dir():
        raise NotFound(
            f"there is no agent data at {data}; name the folder with --data, or make it with `hybrid agent serve`",
            advice="Name the agent's folder with --data: the one that `hybrid agent serve` was given.",
        )
    answer = ask_agent(data, OUTBOX_PATH) if read_address(data) is not None else _of_files(data / "outbox")
    result(answer, "\n".join(lines(answer)), json=json)


def lines(answer: Mapping[str, Any]) -> list[str]:
    """The outbox as people read it."""
    box = answer["outbox"]
    rows = [HEADINGS]
    for kind in KINDS:
        count = box["kinds"][kind]
        sent = str(count["n_sent"]) if box["sender"] else "-"
        rows.append((
            kind, str(PRIORITY[kind]), str(count["n_items"]), str(count["n_bytes"]), sent, str(count["n_dropped"]),
            str(count["n_replaced"]), str(count["n_refused"]), str(count["n_lost"]),
        ))  # fmt: skip
    found = table(rows)
    found.append("")
    if not box["n_items"]:
        found.append("nothing waits")
    found += _sending(box["sender"], box["n_items"])
    waiting, settled = answer["deferred"]["n_waiting"], answer["deferred"]["n_settled"]
    if waiting or settled:
        found.append(f"deferred requests: {waiting} wait for their outcome, {settled} outcomes wait to be fetched")
    return found


def _sending(sender: Mapping[str, Any], n_items: int) -> list[str]:
    if not sender:
        return ["the agent is stopped: nothing is sent"]
    found = []
    since_s = sender["since_answer_s"]
    if since_s is not None:
        found.append(f"the gateway answered {since_s:.0f} s ago")
    elif sender["n_failures"]:
        found.append("the gateway has not answered since the agent started")
    else:
        found.append("no gateway was called since the agent started")
    if sender["n_failures"] and n_items:
        found.append(f"{sender['n_failures']} calls in a row failed, the last with {sender['last_error']}")
    found += [f"the gateway does not take stream {stream} now: {code}" for stream, code in sender["held"].items()]
    return found


def _of_files(folder: Path) -> dict[str, Any]:
    """The same from the files of an agent that is stopped."""
    counts = {
        kind: dict.fromkeys(("n_items", "n_bytes", "n_sent", "n_dropped", "n_replaced", "n_refused", "n_lost"), 0)
        for kind in KINDS
    }
    waiting = settled = 0
    path = folder / "outbox.db"
    if path.is_file() and path.stat().st_size:
        try:
            waiting, settled = _read(path, counts)
        except sqlite3.Error as exc:
            raise StorageError(
                f"{path} cannot be read: {exc}", path=str(path),
                advice="Start the agent: it sets a damaged outbox aside and takes over what can be read.",
            ) from exc  # fmt: skip
    return {
        "outbox": {
            "n_items": sum(count["n_items"] for count in counts.values()),
            "n_bytes": sum(count["n_bytes"] for count in counts.values()),
            "kinds": counts,
            "sender": {},
        },
        "deferred": {"n_waiting": waiting, "n_settled": settled},
    }


def _read(path: Path, counts: dict[Any, dict[str, int]]) -> tuple[int, int]:
    connection = sqlite3.connect(path, timeout=2.0)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        query = "SELECT kind, count(*), sum(n_bytes) FROM items GROUP BY kind"
        for kind, n_items, n_bytes in connection.execute(query):
            counts[kind] |= {"n_items": n_items, "n_bytes": n_bytes}
        query = "SELECT kind, n_dropped, n_replaced, n_refused, n_lost FROM tallies"
        for kind, *told in connection.execute(query):
            counts[kind] |= dict(zip(("n_dropped", "n_replaced", "n_refused", "n_lost"), told, strict=True))
        n_all, settled = connection.execute("SELECT count(*), count(settled_s) FROM tickets").fetchone()
    finally:
        connection.close()
    return n_all - settled, settled
