"""What is said of a step wherever it goes: rounds, boxes, epsilon; never who."""

from collections.abc import Sequence

from cloud_gateway.rounds.kept.store import DAMAGED, CampaignRow, RoundStore
from hybrid.artifact.manifest import LineageStep
from hybrid.federated.privacy.accountant import cost_of
from hybrid.federated.privacy.statement import Statement, spent_before


def statement_of(store: RoundStore, row: CampaignRow, step: int, lineage: Sequence[LineageStep]) -> Statement:
    """Of a campaign's step; blocks.

    Args:
        store: of rows.
        row: the campaign's, as it is now.
        step: which.
        lineage: of the base.

    Raises:
        BadMessage: the base's lineage holds a statement that is none.
    """
    privacy = row.order.privacy
    before = spent_before(each.detail for each in lineage)
    return Statement(
        rounds=step,
        boxes=store.boxes_counted(row.id),
        secure=privacy.secure,
        delta=privacy.delta,
        cost=_cost(store, row, before) if privacy.noise > 0 else float("inf"),
    )


def _cost(store: RoundStore, row: CampaignRow, before: float) -> float:
    """Mu squared of the box that spent most: in all campaigns of the model here, or in the base's lineage and this.

    A base that was learned here stands in both, and counts once. What the disk has damaged of an account may all be of
    this campaign, up to its rounds.
    """
    accounts = store.accounts(row.order.model).values()
    most = cost_of(row.order.privacy.noise, row.step + 1)
    own = max((min(most, each.cost_in(row.id) + each.closed.get(DAMAGED, 0.0)) for each in accounts), default=0.0)
    return max(row.cost, before + own)
