"""What people are told of campaigns: as they stand, and all of it."""

from collections import Counter, defaultdict
from collections.abc import Callable

import msgspec

from cloud_gateway.rounds.cohort.cohorts import Standing
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.kept.store import CampaignRow, ReceivedRow, RoundStore
from cloud_gateway.rounds.messages import (
    BoxTotal,
    CampaignView,
    PromotionView,
    Report,
    RoundView,
    Share,
)
from hybrid.federated.privacy.accountant import epsilon_for


def campaign_view(
    row: CampaignRow,
    *,
    course: Course | None,
    rounds: tuple[RoundView, ...],
    promotions: tuple[PromotionView, ...],
    standing: Standing,
    now_s: float,
    serial: int,
) -> CampaignView:
    """A campaign as it stands.

    Args:
        row: what is kept of it.
        course: where it has not ended.
        rounds: those that closed, and of one that has ended the last one as it stood.
        promotions: what became of steps that were to become versions.
        standing: of the boxes of the cohort.
        now_s: by the loop's clock.
        serial: of its newest change.
    """
    shown = (*rounds, course.shown(now_s)) if course is not None and not course.has_ended else rounds
    noise = row.order.privacy.noise
    return CampaignView(
        id=row.id,
        serial=serial,
        state=row.state,
        order=row.order,
        reason=course.trouble if course is not None and course.trouble else row.reason,
        step=row.step,
        n_boxes=standing.n_boxes,
        n_able=standing.n_able,
        left_out=standing.left_out,
        n_parameters=row.layout.n_elements if row.layout is not None else 0,
        base_accuracy=row.base_accuracy,
        epsilon=epsilon_for(row.cost, row.order.privacy.delta) if noise > 0 and row.cost > 0 else 0.0,
        made_s=row.made_s,
        made_by=row.made_by,
        evaluation=row.evaluation,
        by_torch=row.by_torch,
        rounds=shown,
        promotions=tuple(
            sorted((_so_far(each, course) for each in promotions), key=lambda each: (each.begun_s, each.step))
        ),
    )


def _so_far(view: PromotionView, course: Course | None) -> PromotionView:
    """With how many boxes have tried a candidate, while they do."""
    if view.state != "evaluating" or course is None:
        return view
    return msgspec.structs.replace(view, n_boxes=len(course.evaluated))


def report(view: CampaignView, store: RoundStore, name_of: Callable[[str], str]) -> Report:
    """All of a campaign; blocks."""
    rows = store.received(view.id)
    by_round: dict[int, list[Share]] = defaultdict(list)
    totals: dict[str, list[Share]] = defaultdict(list)
    for row in rows:
        share = _share(row)
        by_round[row.round].append(share)
        totals[row.box_id].append(share)
    rounds = tuple(msgspec.structs.replace(each, shares=tuple(by_round.get(each.number, ()))) for each in view.rounds)
    boxes = tuple(_total(box_id, name_of(box_id), shares) for box_id, shares in sorted(totals.items()))
    return Report(
        campaign=msgspec.structs.replace(view, rounds=rounds),
        boxes=boxes,
        n_bytes_up=sum(each.n_bytes_up for each in boxes),
        n_bytes_down=sum(each.n_bytes_down for each in view.rounds),
    )


def _share(row: ReceivedRow) -> Share:
    body = row.body
    return Share(
        box_id=row.box_id,
        outcome=row.outcome,
        gate=body.gate,
        n_samples=body.n_samples,
        norm=body.norm,
        staleness=body.staleness,
        n_bytes_up=body.n_bytes,
        n_bytes_down=body.n_bytes_down,
        train_s=body.train_s,
    )


def _total(box_id: str, name: str, shares: list[Share]) -> BoxTotal:
    return BoxTotal(
        box_id=box_id,
        name=name,
        n_counted=sum(share.outcome == "counted" for share in shares),
        outcomes=dict(Counter(share.outcome for share in shares)),
        n_bytes_up=sum(share.n_bytes_up for share in shares),
        n_bytes_down=sum(share.n_bytes_down for share in shares),
        train_s=sum(share.train_s for share in shares),
    )
