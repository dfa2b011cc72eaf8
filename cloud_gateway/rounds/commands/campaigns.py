"""`hybrid rounds create`, `ls`, `show`, `pause`, `resume`, `stop`, `promote` and `key`."""

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cloud_gateway.fleet.assignments import n_boxes
from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.fleet.commands.assignments import when
from cloud_gateway.rounds.commands.evaluation_file import input_name, packed_set
from cloud_gateway.rounds.commands.order_flags import with_order
from cloud_gateway.rounds.commands.telling import (
    headline,
    label,
    lines,
    newest_accuracy,
    promotion_line,
    text_of,
    thin_line,
    torch_lines,
)
from cloud_gateway.rounds.messages import (
    CampaignList,
    CampaignView,
    CampaignWish,
    EvaluationSet,
    PromoteWish,
    RoundsKey,
)
from hybrid.cli.output import note, result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table
from hybrid.federated.campaign import Campaign, PromotionPolicy
from hybrid.transport.rounds_paths import CAMPAIGNS_PATH, KEY_PATH, SETS_PATH

CampaignId = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Its id; `hybrid rounds ls` lists them.")]


def add_campaign_commands(app: typer.Typer) -> None:
    """Join them to `hybrid rounds`."""
    app.command("create")(with_order(create))
    app.command("ls")(ls)
    app.command("show")(show)
    app.command("pause")(pause)
    app.command("resume")(resume)
    app.command("stop")(stop)
    app.command("promote")(promote)
    app.command("key")(key)


def create(
    model: Annotated[str, typer.Argument(metavar="MODEL[:VERSION]", help="What learns; else what most boxes hold.")],  # noqa: ARG001 (in the order)
    order: Campaign,
    evaluate: Annotated[
        Path | None, typer.Option("--evaluate", help="Inputs on which each step is measured: .npz, or .npy for one.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", help="Their classes, where `labels` is not in the .npz.")
    ] = None,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Begin a campaign: boxes of the cohort learn, round after round, until it is done."""
    if evaluate is None and (labels is not None or order.target > 0):
        raise typer.BadParameter("--labels and --target want --evaluate", param_hint="--evaluate")
    asker = Asker(gateway, token)
    evaluation = ""
    if evaluate is not None:
        content = packed_set(evaluate, labels, lambda: input_name(gateway, token, order))
        evaluation = asker.put(SETS_PATH, content, EvaluationSet).sha256
    view = asker.post(CAMPAIGNS_PATH, CampaignWish(order=order, evaluation=evaluation), CampaignView)
    n_rounds = f"{order.rounds} round{'s' * (order.rounds != 1)}"
    text = f"campaign {view.id} of {label(view)}: {n_rounds}, {order.goal} of {n_boxes(view.n_boxes)} each"
    result(view, text, json=json)
    for line in thin_line(view):
        note(line)
    if not json:
        for line in torch_lines(view):
            note(line)
        note(f"next: hybrid rounds watch {view.id}")


def ls(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """List campaigns, oldest first."""
    found = Asker(gateway, token).get(CAMPAIGNS_PATH, CampaignList)
    rows = []
    for view in found.campaigns:
        accuracy = newest_accuracy(view)
        rows.append(
            (
                view.id,
                label(view),
                view.state,
                f"{view.step} of {view.order.rounds}",
                "-" if accuracy is None else f"{accuracy:.1%}",
                f"{view.epsilon:.2f}" if view.epsilon > 0 else "-",
                when(view.made_s),
            )
        )
    head = ("id", "model", "state", "step", "accuracy", "epsilon", "begun")
    result(found, "\n".join(table([head, *rows])) if rows else "no campaigns", json=json)
    if found.lost:
        note(found.lost)
    if not json and not rows:
        note("next: hybrid rounds create MODEL:VERSION --goal N")


def show(campaign: CampaignId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Show how a campaign stands: its newest rounds, what was rejected, what became of its result."""
    view = Asker(gateway, token).get(campaign_path(campaign), CampaignView)
    result(view, text_of(lines(view)), json=json)


def pause(campaign: CampaignId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Give out no more tasks; what comes of those that are out still counts."""
    _order("pause", campaign, Asker(gateway, token), json=json)


def resume(campaign: CampaignId, gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Let a campaign go on that was paused or is stalled."""
    _order("resume", campaign, Asker(gateway, token), json=json)


def stop(
    campaign: CampaignId,
    promoted: Annotated[PromotionPolicy, typer.Option("--promote", help="What becomes of the newest step.")] = "none",
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """End a campaign; what was learned so far stays, and is promoted only where that is asked for."""
    asker = Asker(gateway, token)
    if promoted == "none":
        _order("stop", campaign, asker, json=json)
        return
    view = asker.post(campaign_path(campaign, "stop"), {}, CampaignView)
    if not view.step:
        result(view, headline(view), json=json)
        note("nothing is promoted: no round has closed, so there is no step")
        return
    view = asker.post(campaign_path(campaign, "promote"), PromoteWish(policy=promoted), CampaignView)
    result(view, text_of([headline(view), *map(promotion_line, view.promotions[-1:])]), json=json)


def promote(
    campaign: CampaignId,
    step: Annotated[int | None, typer.Option("--step", help="Which; without it the newest.")] = None,
    policy: Annotated[
        PromotionPolicy, typer.Option("--as", help="candidate: a version; rollout: and a staged rollout of it.")
    ] = "candidate",
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Make a step a version, if it is no worse than its base."""
    if policy == "none":
        raise typer.BadParameter("candidate or rollout is wanted", param_hint="--as")
    view = Asker(gateway, token).post(
        campaign_path(campaign, "promote"), PromoteWish(step=step, policy=policy), CampaignView
    )
    found = [each for each in view.promotions if step is None or each.step == step]
    result(view, promotion_line(found[-1]) if found else headline(view), json=json)
    if not json:
        note(f"next: hybrid rounds watch {view.id}")


def key(gateway: Gateway = "auto", token: AdminToken = None, json: Json = False) -> None:
    """Show the public key that signs what was learned, for `hybrid keys delegate --rounds`."""
    found = Asker(gateway, token).get(KEY_PATH, RoundsKey)
    result(found, found.public_key, json=json)
    if not json:
        note(f"key id {found.key_id}; next, where the root key is: hybrid keys delegate --rounds KEY")


def _order(what: str, campaign: str, asker: Asker, *, json: bool) -> None:
    view = asker.post(campaign_path(campaign, what), {}, CampaignView)
    result(view, headline(view), json=json)


def campaign_path(campaign: str, what: str = "") -> str:
    """Where a campaign is asked about, or told to do something."""
    return f"{CAMPAIGNS_PATH}/{quote(campaign, safe='')}" + (f"/{what}" if what else "")
