"""`hybrid fleet status`: boxes by state, version and problem, once or as they change."""

import time
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlencode

import typer

from cloud_gateway.fleet.assignments import n_boxes, shown
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.assignments import selector_of
from cloud_gateway.fleet.steering.messages import BoxRow, FleetStatus
from hybrid.cli.output import decorated, event, note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.errors import LinkError
from hybrid.transport.fleet_paths import STATUS_PATH

if TYPE_CHECKING:
    from rich.console import Group

_LEAST_WATCH_S = 0.5
_WORDS = {
    "ready": "ready",
    "not_ready": "not ready",
    "offline": "offline",
    "never_seen": "never seen",
    "waiting": "wait for approval",
    "quarantined": "quarantined",
    "revoked": "revoked",
}


def status(
    tags: Annotated[str, typer.Option("--tags", help="Only boxes with these: KEY=VALUE,KEY2=VALUE2.")] = "all",
    all_boxes: Annotated[bool, typer.Option("--all", help="List every box, not only those with trouble.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="List at most so many boxes.")] = 50,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    every_s: Annotated[float, typer.Option("--every-s", help="How often with --watch.")] = 2.0,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Show how the fleet is: boxes by state, versions by phase, problems, rollouts, and boxes with trouble."""
    asker = Asker(gateway, token)
    query = {"tags": shown(selector_of(tags)), "boxes": "all" if all_boxes else "trouble", "limit": str(max(0, limit))}
    path = f"{STATUS_PATH}?{urlencode(query)}"
    if watch:
        _watch(asker, path, max(_LEAST_WATCH_S, every_s), json=json)
        return
    found = asker.get(path, FleetStatus)
    result(found, "\n".join(lines(found)), json=json)
    if not json and not found.n_boxes:
        note("next: hybrid fleet token create")


def _watch(asker: Asker, path: str, every_s: float, *, json: bool) -> None:
    """Until Ctrl-C: a live table on a terminal, else one line or JSON object at a time; a gateway may come back."""
    import sys

    if json or not decorated(sys.stdout):
        while True:
            found = asker.get(path, FleetStatus)
            event(found, "; ".join(part for part in lines(found)[:2] if part), json=json)
            time.sleep(every_s)
    from rich.live import Live
    from rich.text import Text

    with Live(Text("…"), refresh_per_second=4, screen=False) as live:
        try:
            while True:
                try:
                    live.update(_pictured(asker.get(path, FleetStatus)))
                except LinkError as exc:
                    live.update(Text(f"{exc}; trying again", style="red"))
                time.sleep(every_s)
        except KeyboardInterrupt:
            return


def lines(found: FleetStatus) -> list[str]:
    """A fleet for people."""
    if not found.n_boxes:
        return ["no boxes"]
    states = ", ".join(f"{found.states[state]} {word}" for state, word in _WORDS.items() if found.states.get(state))
    told = [f"{n_boxes(found.n_boxes)}: {states}"]
    if found.lost:
        told.append(f"LOST: {found.lost}")
    for view in found.rollouts:
        course = view.course
        told.append(
            f"rollout {view.plan.id} of {view.plan.label}: {course.state}, stage {course.stage + 1} of "
            f"{len(view.stages)}; {course.waiting or 'goes on'}"
        )
    if found.versions:
        told += ["", *table([_VERSION_HEAD, *map(tuple, _version_rows(found))])]
    if found.problems:
        told += ["", *table([("problem", "boxes"), *((code, str(n)) for code, n in found.problems.items())])]
    if found.boxes:
        told += ["", *table([_BOX_HEAD, *map(_box_row, found.boxes)])]
    if found.n_more:
        told.append(f"and {found.n_more} more; --limit shows them")
    return told


_VERSION_HEAD = ("model", "digest", "committed", "trial", "on the way", "put off", "failed")
_BOX_HEAD = ("box", "id", "state", "heard of", "tags", "models", "missing", "problems")


def _version_rows(found: FleetStatus) -> list[tuple[str, ...]]:
    rows = []
    for row in found.versions:
        phases = row.phases
        moving = sum(phases.get(phase, 0) for phase in ("downloading", "verified", "warming"))
        failed = phases.get("failed", 0) + phases.get("rolled_back", 0)
        figures = (phases.get("committed", 0), phases.get("trial", 0), moving, phases.get("deferred", 0), failed)
        rows.append((f"{row.model}:{row.version or '?'}", row.artifact_digest[:12], *map(str, figures)))
    return rows


def _box_row(row: BoxRow) -> tuple[str, ...]:
    models = ",".join(f"{one.name}:{one.version}" for one in row.models if one.artifact_digest)
    return (
        row.name,
        row.id[:8],
        _WORDS.get(row.state, row.state),
        _ago(row.seen_s),
        shown(row.tags) if row.tags else "-",
        models or "-",
        ",".join(row.missing) or "-",
        ",".join(row.problems) or "-",
    )


def _ago(seconds: float) -> str:
    if seconds < 0:
        return "never"
    for unit_s, name in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= unit_s:
            return f"{seconds / unit_s:.0f} {name} ago"
    return f"{seconds:.0f} s ago"


def _pictured(found: FleetStatus) -> "Group":
    """The same as a live picture."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    head = Text(lines(found)[0], style="bold")
    parts: list[Text | Table] = [head]
    parts += [Text(line) for line in lines(found)[1:] if line.startswith(("rollout ", "LOST"))]
    for columns, rows in (
        (_VERSION_HEAD, _version_rows(found)),
        (("problem", "boxes"), [(code, str(n)) for code, n in found.problems.items()]),
        (_BOX_HEAD, [_box_row(row) for row in found.boxes]),
    ):
        if rows:
            picture = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
            for column in columns:
                picture.add_column(column, overflow="fold")
            for row in rows:
                picture.add_row(*row)
            parts.append(picture)
    if found.n_more:
        parts.append(Text(f"and {found.n_more} more", style="dim"))
    return Group(*parts)
