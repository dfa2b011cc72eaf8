"""`hybrid fleet rollout`: a version goes to boxes in stages, watched beside a control group."""

from typing import Annotated

import typer

from cloud_gateway.fleet.assignments import n_boxes, shown
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.assignments import (
    Model,
    Priority,
    ReportWithin,
    Samples,
    SignRollback,
    Tags,
    TrialRuns,
    TrialS,
    rollback_of,
    selector_of,
    terms_of,
    when,
)
from cloud_gateway.fleet.rollouts.rollout import Tolerance, check_stages
from cloud_gateway.fleet.steering.messages import RolloutList, RolloutView, RolloutWish
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.fleet.messages import Trial
from hybrid.transport.fleet_paths import ROLLOUTS_PATH

app = typer.Typer(
    no_args_is_help=True,
    help="""Rollouts: a version goes to a few boxes first, and on by itself while nothing is worse than without it.

    \b
    Examples:
      hybrid fleet rollout start detector:4 --tags site=oslo
      hybrid fleet rollout start detector:4 --tags all --stages 1,10,50,100 --soak-s 7200
      hybrid fleet rollout ls
      hybrid fleet rollout show k3p9w2xa --boxes
      hybrid fleet rollout pause k3p9w2xa
      hybrid fleet rollout resume k3p9w2xa
      hybrid fleet rollout complete k3p9w2xa
      hybrid fleet rollout abort k3p9w2xa
    """,
)
RolloutId = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its id; `hybrid fleet rollout ls` lists them.")]


@app.command("start")
def start(
    model: Model,
    tags: Tags,
    stages: Annotated[str, typer.Option("--stages", help="Per cent of the boxes, rising.")] = "5,30,100",
    soak_s: Annotated[float, typer.Option("--soak-s", help="How long a stage is watched at least.")] = 3600.0,
    max_failed: Annotated[float, typer.Option("--max-failed", help="Per cent of failed boxes that halt it.")] = 2.0,
    enough: Annotated[float, typer.Option("--enough", help="Per cent of reachable boxes that must have it.")] = 90.0,
    offline: Annotated[float, typer.Option("--offline", help="Per cent of a stage that may be out of reach.")] = 50.0,
    more_errors: Annotated[float, typer.Option("--more-errors", help="Per cent of runs: tolerated beside.")] = 0.2,
    more_crashes: Annotated[float, typer.Option("--more-crashes", help="Per cent of boxes: tolerated beside.")] = 1.0,
    slower: Annotated[float, typer.Option("--slower", help="Per cent of latency: tolerated beside.")] = 10.0,
    min_runs: Annotated[int, typer.Option("--min-runs", help="Fewer runs on a side are not compared.")] = 100,
    samples: Samples = "keep",
    priority: Priority = 5,
    trial_runs: TrialRuns = 20,
    trial_s: TrialS = 600.0,
    report_within_s: ReportWithin = 3600.0,
    sign_rollback: SignRollback = None,
    queue: Annotated[bool, typer.Option("--queue", help="Wait for another rollout of this model to end.")] = False,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Begin a rollout: it goes on, or halts and takes its boxes back, by itself."""
    name, _, version = model.partition(":")
    asker = Asker(gateway, token)
    rollback = rollback_of(asker, name, version, sign_rollback) if sign_rollback is not None else None
    wish = RolloutWish(
        model=name,
        version=version,
        selector=selector_of(tags),
        stages=_stages(stages),
        soak_s=soak_s,
        enough_ratio=enough / 100.0,
        offline_ratio=offline / 100.0,
        max_failed_ratio=max_failed / 100.0,
        tolerance=Tolerance(
            errors_ratio=more_errors / 100.0, crashes_ratio=more_crashes / 100.0, latency_ratio=slower / 100.0
        ),
        min_runs=min_runs,
        terms=terms_of(samples, priority, Trial(n_good=trial_runs, most_s=trial_s), report_within_s, rollback=rollback),
        queue=queue,
    )
    view = asker.post(ROLLOUTS_PATH, wish, RolloutView)
    told = view.course.waiting or f"{n_boxes(view.stages[0].n_boxes)} in the first stage"
    result(view, f"rollout {view.plan.id} of {view.plan.label}: {told}", json=json)
    if not json:
        note(f"next: hybrid fleet rollout show {view.plan.id}")


@app.command("ls")
def ls(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """List rollouts, oldest first."""
    found = Asker(gateway, token).get(ROLLOUTS_PATH, RolloutList)
    rows = [
        (
            view.plan.id,
            view.plan.label,
            shown(view.plan.selector),
            view.course.state,
            f"{view.course.stage + 1} of {len(view.stages)}",
            str(sum(stage.n_done for stage in view.stages)),
            str(sum(stage.n_failed for stage in view.stages)),
            when(view.plan.made_s),
        )
        for view in found.rollouts
    ]
    head = ("id", "model", "tags", "state", "stage", "done", "failed", "begun")
    result(found, "\n".join(table([head, *rows])) if rows else "no rollouts", json=json)
    if not json and not rows:
        note("next: hybrid fleet rollout start MODEL:VERSION --tags TAGS")


@app.command("show")
def show(
    rollout: RolloutId,
    boxes: Annotated[bool, typer.Option("--boxes", help="Also each of its boxes.")] = False,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Show how a rollout stands, why it waits or ended, and all that happened in it."""
    view = Asker(gateway, token).get(f"{ROLLOUTS_PATH}/{rollout}", RolloutView)
    result(view, "\n".join(_told(view, with_boxes=boxes)), json=json)


@app.command("pause")
def pause(rollout: RolloutId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Tell nobody else to take the version; boxes that have it keep it, and its clock stands still."""
    _order("pause", rollout, Asker(gateway, token), json=json)


@app.command("resume")
def resume(rollout: RolloutId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Let a paused rollout go on."""
    _order("resume", rollout, Asker(gateway, token), json=json)


@app.command("abort")
def abort(rollout: RolloutId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """End a rollout: its boxes go back to what is assigned."""
    _order("abort", rollout, Asker(gateway, token), json=json)


@app.command("complete")
def complete(rollout: RolloutId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Let all of its boxes have the version now, without waiting for further stages."""
    _order("complete", rollout, Asker(gateway, token), json=json)


def _order(what: str, rollout: str, asker: Asker, *, json: bool) -> None:
    view = asker.post(f"{ROLLOUTS_PATH}/{rollout}/{what}", {}, RolloutView)
    result(view, f"rollout {view.plan.id} of {view.plan.label} is {view.course.state}", json=json)


def _told(view: RolloutView, *, with_boxes: bool) -> list[str]:
    """All of a rollout in lines."""
    plan, course = view.plan, view.course
    lines = [
        f"{plan.id}  {plan.label} to {shown(plan.selector)}, from {plan.previous or 'nothing of these tags'}",
        f"{course.state}" + (f": {course.reason or course.waiting}" if course.reason or course.waiting else ""),
        "",
    ]
    rows = [
        (
            f"{'>' if at == course.stage and course.state in ('running', 'paused') else ''}",
            str(at + 1),
            f"{stage.share:.0%}",
            str(stage.n_boxes),
            str(stage.n_taken),
            str(stage.n_done),
            str(stage.n_failed),
        )
        for at, stage in enumerate(view.stages)
    ]
    lines += table([("", "stage", "up to", "boxes", "took it", "have it", "failed"), *rows])
    lines.append(f"control group: {n_boxes(view.n_control)}, held back until the last stage")
    if with_boxes:
        members = [
            (m.name, m.box_id[:12], str(m.stage), "control" if m.is_control else "", m.standing, m.code or "-")
            for m in view.members
        ]
        lines += ["", *table([("box", "id", "stage", "group", "standing", "code"), *members])]
    lines.append("")
    lines += [f"{when(entry.at_s)}  {entry.kind}: {entry.text} ({entry.who})" for entry in view.history]
    return lines


def _stages(text: str) -> tuple[float, ...]:
    try:
        return check_stages([float(part) / 100.0 for part in text.split(",")])
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text[:80]!r}: {exc}; write per cent, such as 5,30,100", param_hint="--stages"
        ) from exc
