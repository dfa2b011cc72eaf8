"""`hybrid agent status`: how the agent of this machine is, for people and as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_agent.learning.rounds_commands import personal, summary
from edge_agent.local_call import ask_agent
from edge_agent.whereabouts import STATUS_PATH
from hybrid.cli.output import result
from hybrid.cli.table import table

HEADINGS = ("MODEL", "VERSION", "PHASE", "PRIORITY", "LOCAL", "OFFLOAD", "SPLIT", "ERRORS", "P50", "P95")

HELP = """Show how the agent on this machine is: models, where requests ran, outbox, gateway, and what is wrong.

\b
Examples:
  hybrid agent status
  hybrid agent status --data /var/lib/hybrid-agent --json
"""


def status(
    data: Annotated[Path, typer.Option("--data", envvar="HYBRID_AGENT_DATA", help="The agent's data folder.")] = Path(
        "./hybrid-agent"
    ),
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Ask the running agent, and show what it says."""
    answer = ask_agent(data, STATUS_PATH)
    result(answer, "\n".join(lines(answer)), json=json)


def lines(answer: Mapping[str, Any]) -> list[str]:
    """The status as people read it."""
    parts = answer.get("parts", {})
    engine, state = answer["engine"], "ready" if answer["ready"] else "NOT READY"
    memory = f"models hold {_mb(engine['session_bytes'])} of {_mb(engine['budget_bytes'])}"
    found = [
        f"agent    {state} at {answer['url']}, up {_span(answer['uptime_s'])}, version {answer['version']}",
        *_gateway(answer, parts.get("access", {}), parts.get("follow", {})),
        *_outbox(parts.get("outbox", {}), parts.get("deferred", {})),
        summary(parts.get("learning", {})),
        *personal(parts.get("learning", {})),
        f"engine   {engine['provider']}, {engine['n_running']} running, {engine['n_waiting']} waiting, {memory}",
        "",
    ]
    devices = answer.get("onward", {})
    if any(devices.values()):
        counts = (
            f"{devices['n_here']} answered here, {devices['n_passed_on']} passed on, {devices['n_came_back']} in vain"
        )
        found.insert(-1, f"devices  {counts}")
    installing = {model["name"]: model for model in parts.get("install", {}).get("models", [])}
    waiting = _waiting(installing)
    rows = _models(answer["models"], installing)
    nobody = ["no models: none is assigned, and none is named with --model"]
    found += table([HEADINGS, *rows]) if rows else nobody
    found += waiting
    found += ["", *_problems(answer["problems"])]
    return found


def _models(models: Sequence[Mapping[str, Any]], installing: dict[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    rows = []
    for model in models:
        place = model["by_place"]
        about = installing.pop(model["name"], {})
        rows.append((
            model["name"],
            model["version"],
            _phase(about) if about else "local file" if not model["artifact_digest"] else "committed",
            str(model["priority"]),
            *(str(place.get(name, 0)) for name in ("local", "offload", "split")),
            str(model["n_errors"]),
            _ms(model["p50_s"]),
            _ms(model["p95_s"]),
        ))  # fmt: skip
    for name, about in installing.items():
        rows.append((name, about.get("version", ""), _phase(about), "", "", "", "", "", "", ""))
    return rows


def _waiting(installing: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why versions are put off where nothing is wrong."""
    return [
        f"{name}: {about['detail']}"
        for name, about in sorted(installing.items())
        if about.get("phase") == "deferred" and about.get("detail") and not about.get("code")
    ]


def _phase(about: Mapping[str, Any]) -> str:
    phase = str(about.get("phase", ""))
    total = about.get("total_bytes") or 0
    if phase == "downloading" and total:
        return f"downloading {100 * about.get('done_bytes', 0) // total} %"
    return f"{phase} ({about['code']})" if about.get("code") else phase


def _gateway(answer: Mapping[str, Any], access: Mapping[str, Any], follow: Mapping[str, Any]) -> list[str]:
    url = answer.get("gateway") or "none"
    if not access.get("enrolled"):
        return [f"gateway  {url}; this box is in no fleet"]
    state = "connected" if access.get("connected") else "not connected"
    heard_s = follow.get("heard_s_ago")
    heard = "" if heard_s is None else f", heard {_span(heard_s)} ago"
    name = access.get("name") or access.get("box_id", "")[:12]
    tags = ", ".join(f"{name}={value}" for name, value in sorted(access.get("tags", {}).items()))
    return [
        f"gateway  {url}, {state}{heard}",
        f"box      {name}, {access.get('admission') or 'admission unknown'}{', tags ' + tags if tags else ''}",
        f"trust    {_trust(access)}",
    ]


def _trust(access: Mapping[str, Any]) -> str:
    if not access.get("has_root"):
        return "a fleet without a root: whatever the gateway assigns is installed"
    sequence = access.get("trust_sequence", -1)
    return (
        "its root's bundle did not come yet: nothing is installed" if sequence < 0 else f"bundle {sequence} of its root"
    )


def _outbox(outbox: Mapping[str, Any], deferred: Mapping[str, Any]) -> list[str]:
    kinds = outbox.get("kinds", {})
    dropped = sum(kind.get("n_dropped", 0) for kind in kinds.values())
    sent = sum(kind.get("n_sent", 0) for kind in kinds.values())
    text = f"outbox   {outbox.get('n_items', 0)} items ({_mb(outbox.get('n_bytes', 0))}) wait, {sent} sent"
    if dropped:
        text += f", {dropped} DROPPED"
    if deferred.get("n_waiting"):
        text += f"; {deferred['n_waiting']} deferred requests wait"
    return [text]


def _problems(problems: Sequence[Mapping[str, Any]]) -> list[str]:
    if not problems:
        return ["no problems"]
    found = []
    for problem in problems:
        mark = "NOT READY: " if problem["blocks"] else ""
        found += [f"problem  {mark}{problem['code']}: {problem['what']}", f"         do: {problem['do']}"]
    return found


def _span(seconds: float) -> str:
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size_s:
            return f"{seconds / size_s:.1f} {unit}"
    return f"{seconds:.0f} s"


def _mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds else "-"
