"""What a box offers, and what keeps it out of a campaign."""

from typing import TYPE_CHECKING

import msgspec

from hybrid.federated.campaign import Campaign
from hybrid.federated.messages import Condition, Offer, TaskCall
from hybrid.federated.privacy.account import has_left

if TYPE_CHECKING:
    from cloud_gateway.rounds.course.course import Course


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a box told with its last whole call, and the views that it holds."""

    offers: dict[str, Offer]
    condition: Condition
    held: dict[str, int]

    @classmethod
    def of(cls, call: TaskCall) -> "Asked":
        """What a call tells."""
        return cls(
            offers={offer.model: offer for offer in call.offers},
            condition=call.condition,
            held={each.campaign: each.step for each in call.held},
        )

    def holds(self, course: "Course") -> int | None:
        """The view that the box holds of a campaign, -1 for none; None where it has not the model.

        A box with exactly the base holds view 0; one with a version that was learned from it holds none.
        """
        offer = self.offers.get(course.order.model)
        if offer is None or offer.variant != course.order.variant:
            return None
        if offer.artifact_digest == course.row.base_digest:
            return self.held.get(course.id, 0)
        return self.held.get(course.id, -1) if offer.artifact_digest in course.learned else None


def keeps_out(order: Campaign, asked: Asked, spent: float) -> str:
    """Why a box that holds the model may not train for a campaign now; empty where it may.

    Args:
        order: of the campaign.
        asked: what the box told last.
        spent: mu squared, of its privacy on the model.
    """
    cohort, condition = order.cohort, asked.condition
    offer = asked.offers.get(order.model)
    if offer is None or offer.n_samples < max(1, cohort.least_samples):
        return "samples"
    if not condition.is_well:
        return "health"
    if cohort.power == "mains" and not condition.is_on_mains:
        return "power"
    if condition.is_metered and not cohort.is_metered_allowed:
        return "metered"
    return "" if has_left(order.privacy, spent) else "privacy"
