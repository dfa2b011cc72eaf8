"""`hybrid rounds report`: all that happened in a campaign, round by round and box by box."""

from typing import Annotated

import typer

from cloud_gateway.fleet.commands.asking import AdminToken, Asker
from cloud_gateway.rounds.commands.campaigns import CampaignId, campaign_path
from cloud_gateway.rounds.commands.telling import all_outcomes, duration, lines, outcomes, size, text_of
from cloud_gateway.rounds.messages import BoxTotal, Report, RoundView
from hybrid.cli.output import result
from hybrid.cli.registry_asking import Gateway, Json
from hybrid.cli.table import table

_BOX_HEAD = ("box", "id", "counted", "rejected", "up", "down", "trained")
_SHARE_HEAD = ("box", "what became of it", "samples", "norm", "late by", "up", "down", "trained")


def report(
    campaign: CampaignId,
    boxes: Annotated[bool, typer.Option("--boxes", help="Also each box's sums.")] = False,
    number: Annotated[int | None, typer.Option("--round", help="Also each box's part of this round.")] = None,
    gateway: Gateway = "auto",
    token: AdminToken = None,
    json: Json = False,
) -> None:
    """Report a campaign: every round with its accuracy, bytes and time, and what became of all updates."""
    found = Asker(gateway, token).get(f"{campaign_path(campaign)}/report", Report)
    shown = None
    if number is not None:
        shown = next((each for each in found.campaign.rounds if each.number == number), None)
        if shown is None:
            raise typer.BadParameter(f"there is no round {number} yet", param_hint="--round")
    result(found, text_of(_told(found, shown, with_boxes=boxes)), json=json)


def _told(found: Report, shown: RoundView | None, *, with_boxes: bool) -> list[str]:
    view = found.campaign
    told = lines(view, all_rounds=True)
    rounds = view.rounds
    closed = [each for each in rounds if each.state == "closed"]
    told += ["", f"{size(found.n_bytes_up)} up and {size(found.n_bytes_down)} down, of {len(found.boxes)} boxes"]
    if closed:
        told.append(
            f"a round on average: {size(sum(each.n_bytes_up for each in closed) / len(closed))} up, "
            f"{size(sum(each.n_bytes_down for each in closed) / len(closed))} down, "
            f"{duration(sum(each.seconds for each in closed) / len(closed))}"
        )
    told.append(f"did not count: {outcomes(all_outcomes(rounds))}")
    if with_boxes and found.boxes:
        told += ["", *table([_BOX_HEAD, *map(_box_row, found.boxes)])]
    if shown is not None:
        names = {box.box_id: box.name for box in found.boxes}
        rows = [
            (
                names.get(share.box_id, share.box_id[:12]),
                share.outcome + (f" ({share.gate})" if share.gate else ""),
                str(share.n_samples),
                f"{share.norm:.3g}" if share.norm else "-",
                str(share.staleness),
                size(share.n_bytes_up),
                size(share.n_bytes_down),
                duration(share.train_s),
            )
            for share in shown.shares
        ]
        told += ["", f"round {shown.number}:", *(table([_SHARE_HEAD, *rows]) if rows else ["nothing came"])]
    return told


def _box_row(box: BoxTotal) -> tuple[str, ...]:
    return (
        box.name,
        box.box_id[:8],
        str(box.n_counted),
        outcomes(box.outcomes),
        size(box.n_bytes_up),
        size(box.n_bytes_down),
        duration(box.train_s),
    )
