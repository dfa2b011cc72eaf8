"""`hybrid fleet assign`, `unassign`, `assignments` and `tag`: which boxes should run what."""

import time
from pathlib import Path
from typing import Annotated, cast, get_args
from urllib.parse import quote

import typer

from cloud_gateway.fleet.assignments import Assignment, Terms, parse_tags, shown
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.steering.messages import AssignmentList, AssignWish, BoxRow, TagsWish, UnassignWish
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.errors import BadMessage
from hybrid.fleet.messages import SampleRule, Trial
from hybrid.transport.fleet_paths import ADMIN_BOXES_PATH, ASSIGNMENTS_PATH

Model = Annotated[str, typer.Argument(metavar="MODEL[:VERSION]", help="Without VERSION the newest.")]
Tags = Annotated[
    str, typer.Option("--tags", help="KEY=VALUE, several with commas; `all` for every box.", metavar="TAGS")
]
Samples = Annotated[str, typer.Option("--samples", help="Inputs and outputs on its boxes: off, keep or upload.")]
Priority = Annotated[int, typer.Option("--priority", help="Against other models on a box: 0 to 9, higher first.")]
TrialRuns = Annotated[int, typer.Option("--trial-runs", help="Good runs after which a box keeps it.")]
TrialS = Annotated[float, typer.Option("--trial-s", help="Or so long without an error, in seconds.")]
ReportWithin = Annotated[
    float, typer.Option("--report-within-s", help="A box that does not tell `committed` within so long has failed.")
]
SignRollback = Annotated[
    Path | None,
    typer.Option(
        "--sign-rollback",
        metavar="KEY",
        help="A publisher's private key: signs that boxes may go back to this older version.",
    ),
]


def add_assignment_commands(app: typer.Typer) -> None:
    """Join them to `hybrid fleet`."""
    app.command("assign")(assign)
    app.command("unassign")(unassign)
    app.command("assignments")(assignments)
    app.command("tag")(tag)


def assign(
    model: Model,
    tags: Tags,
    samples: Samples = "keep",
    priority: Priority = 5,
    trial_runs: TrialRuns = 20,
    trial_s: TrialS = 600.0,
    report_within_s: ReportWithin = 3600.0,
    sign_rollback: SignRollback = None,
    anew: Annotated[bool, typer.Option("--anew", help="After all assignments were lost: begin with this one.")] = False,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Let boxes with these tags run a version, at once; `rollout start` goes by stages instead."""
    name, _, version = model.partition(":")
    asker = Asker(gateway, token)
    wish = AssignWish(
        model=name,
        version=version,
        selector=selector_of(tags),
        terms=terms_of(samples, priority, Trial(n_good=trial_runs, most_s=trial_s), report_within_s, rollback=None),
        anew=anew,
    )
    if sign_rollback is not None:
        wish = _with(wish, rollback_of(asker, name, version, sign_rollback))
    made = asker.post(ASSIGNMENTS_PATH, wish, Assignment)
    result(made, f"assigned {made.label} to {shown(made.selector)}", json=json)
    if not json:
        note(f"next: hybrid fleet status --tags {shown(made.selector)}")


def unassign(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name, without a version.")],
    tags: Tags,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """End the assignment of a model to exactly these tags; boxes for which no other one counts remove it."""
    wish = UnassignWish(model=model, selector=selector_of(tags))
    gone = Asker(gateway, token).post(f"{ASSIGNMENTS_PATH}/end", wish, Assignment)
    result(gone, f"{gone.label} is no longer assigned to {shown(gone.selector)}", json=json)


def assignments(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """List assignments, and for how many boxes each decides; the narrowest counts, of equal ones the latest."""
    found = Asker(gateway, token).get(ASSIGNMENTS_PATH, AssignmentList)
    rows = [
        (a.label, shown(a.selector), str(n), a.terms.samples, str(a.terms.priority), a.rollout or "-", when(a.made_s))
        for a, n in zip(found.assignments, found.n_boxes, strict=True)
    ]
    head = ("model", "tags", "boxes", "samples", "priority", "rollout", "made")
    text = "\n".join(table([head, *rows])) if rows else "nothing is assigned: boxes run no models of this gateway"
    result(found, text, json=json)
    if found.lost:
        note(found.lost)
    if not json and not rows:
        note("next: hybrid fleet assign MODEL:VERSION --tags all")


def tag(
    box: Annotated[str, typer.Argument(metavar="BOX", help="Its name, or the beginning of its id.")],
    tags: Annotated[list[str], typer.Argument(metavar="KEY=VALUE…", help="KEY= takes a tag away.")],
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Give a box tags, or take them away; it gets what they are assigned within seconds."""
    put, drop = {}, []
    for text in tags:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise typer.BadParameter(f"{text[:80]!r} is no tag: write KEY=VALUE, or KEY= to take it away")
        if value:
            put[key] = value
        else:
            drop.append(key)
    path = f"{ADMIN_BOXES_PATH}/{quote(box, safe='')}/tags"
    row = Asker(gateway, token).post(path, TagsWish(put=put, drop=tuple(drop)), BoxRow)
    result(row, f"{row.name} has the tags {shown(row.tags) if row.tags else '(none)'}", json=json)


def selector_of(text: str) -> dict[str, str]:
    """The selector that a flag means."""
    try:
        return parse_tags(text)
    except BadMessage as exc:
        raise typer.BadParameter(str(exc), param_hint="--tags") from exc


def terms_of(
    samples: str, priority: int, trial: Trial, report_within_s: float, *, rollback: tuple[bytes, str] | None
) -> Terms:
    """The terms that flags mean."""
    if samples not in get_args(SampleRule):
        raise typer.BadParameter(f"{samples[:20]!r} is none of off, keep, upload", param_hint="--samples")
    if not 0 <= priority <= 9:
        raise typer.BadParameter(f"{priority} is none of 0 to 9", param_hint="--priority")
    return Terms(
        samples=cast(SampleRule, samples),
        priority=priority,
        trial=trial,
        report_within_s=report_within_s,
        rollback=rollback,
    )


def rollback_of(asker: Asker, model: str, version: str, key_path: Path) -> tuple[bytes, str]:
    """A publisher's word that boxes may go back to a version, from whatever newer one there is now."""
    from hybrid.artifact.publishers import read_key
    from hybrid.fleet.rollback import Rollback, signed_rollback
    from hybrid.transport.registry_client import ModelInfo

    if not version:
        raise typer.BadParameter("name the version to go back to: MODEL:VERSION", param_hint="MODEL")
    known = asker.get(f"/v2/hybrid/models/{quote(model, safe='')}", ModelInfo).versions
    wanted = [info for info in known if info.version == version]
    if not wanted:
        raise BadMessage(f"no version {version!r} of {model!r} on this gateway; `hybrid models ls {model}` shows them")
    word = Rollback(name=model, artifact_digest=wanted[0].artifact_digest, below=max(info.sequence for info in known))
    return signed_rollback(word, read_key(key_path))


def _with(wish: AssignWish, rollback: tuple[bytes, str]) -> AssignWish:
    from msgspec.structs import replace

    return replace(wish, terms=replace(wish.terms, rollback=rollback))


def when(at_s: float) -> str:
    """A moment for people."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s)) if at_s else "-"
