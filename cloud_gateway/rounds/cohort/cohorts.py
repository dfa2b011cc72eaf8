"""Which boxes a campaign means, and what keeps the others out by what they told last."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from cloud_gateway.fleet.assignments import matches, n_boxes, shown
from cloud_gateway.fleet.steering.desired import BoxDirectory, BoxView
from cloud_gateway.rounds.cohort.left_out import words
from cloud_gateway.rounds.cohort.offers import Asked, keeps_out
from cloud_gateway.rounds.cohort.rosters import check_roster, is_listed
from cloud_gateway.rounds.course.course import Course
from hybrid.errors import CampaignImpossible
from hybrid.federated.campaign import Campaign

_APART: Final = ("admission", "tags", "roster")
"""What keeps a box out of the cohort; all else may change while the campaign runs."""


class Standing(NamedTuple):
    """How many boxes have the tags, how many of them could begin a task now, and what keeps the others out."""

    n_boxes: int
    n_able: int
    left_out: dict[str, int]


class Cohorts:
    """The boxes of campaigns. Belongs to the event loop."""

    def __init__(
        self,
        boxes: BoxDirectory,
        asked: Mapping[str, Asked],
        root_sha256: Callable[[], bytes | None] = lambda: None,
    ) -> None:
        """Nothing is touched.

        Args:
            boxes: the registry of boxes.
            asked: what each told with its last call for a task.
            root_sha256: fingerprint of the fleet's root; None for a fleet without.
        """
        self._boxes = boxes
        self._asked = asked
        self._root_sha256 = root_sha256

    def of(self, order: Campaign) -> Iterator[str]:
        """Ids of the admitted boxes with a campaign's tags, of those on its device list where it has one."""
        for box in self._boxes.all():
            if box.admission == "admitted" and matches(order.cohort.tags, box.tags) and is_listed(order, box.id):
                yield box.id

    def that_may_try(self, course: Course) -> Iterator[str]:
        """Of a campaign's boxes all but those that told what they hold, and nothing of it with which they could."""
        for box_id in self.of(course.order):
            asked = self._asked.get(box_id)
            if asked is None or asked.holds(course) is not None:
                yield box_id

    def name_of(self, box_id: str) -> str:
        """What people call a box."""
        box = self._boxes.find(box_id)
        return box.name if box is not None else box_id[:8]

    def held(self, order: Campaign) -> Counter[str]:
        """How many of its boxes hold which version of the model, by artifact digest."""
        told = (self._asked[box_id].offers.get(order.model) for box_id in self.of(order) if box_id in self._asked)
        return Counter(offer.artifact_digest for offer in told if offer is not None)

    def check(self, order: Campaign, before: Iterable[Campaign] = ()) -> None:
        """Refuse a goal that the cohort cannot reach, and a device list that it would not take.

        Args:
            order: what is ordered.
            before: orders of earlier campaigns.

        Raises:
            CampaignImpossible: says who is left out and why.
            BadMessage, CorruptContent: its roster is no device list.
        """
        check_roster(order, self._root_sha256(), before)
        found = self._counted(order, lambda asked: order.model in asked.offers, {})
        n = sum(found[why] for why in found if why not in _APART)
        if n >= order.goal:
            return
        told = f"{n} admitted boxes have the tags of the cohort ({shown(order.cohort.tags)})"
        apart = words({why: found[why] for why in _APART if found[why]})
        others = (
            f"; of the other {n_boxes(found.total() - n)} here: {apart}" if apart else "; this gateway has no other"
        )
        within = words({why: n for why, n in found.items() if why not in _APART and why})
        raise CampaignImpossible(
            f"{told}, the goal is {order.goal} updates a round{others}"
            + (f"; of those {n}: {within}" if within else ""),
            advice=(f"Take --goal {n} or less, or mean" if n else "Mean")
            + " more boxes: fewer --tags; hybrid fleet tag BOX KEY=VALUE; hybrid fleet boxes admit BOX.",
        )

    def standing(self, course: Course) -> Standing:
        """Of a campaign that runs."""
        found = self._counted(course.order, lambda asked: asked.holds(course) is not None, course.spent)
        within = {why: n for why, n in found.items() if why not in _APART}
        return Standing(sum(within.values()), within.pop("", 0), within)

    def _counted(self, order: Campaign, holds: Callable[[Asked], bool], spent: Mapping[str, float]) -> Counter[str]:
        """Boxes by what keeps them out; by "" those that nothing does."""
        return Counter(self._why(order, box, holds, spent) for box in self._boxes.all())

    def _why(self, order: Campaign, box: BoxView, holds: Callable[[Asked], bool], spent: Mapping[str, float]) -> str:
        if box.admission != "admitted":
            return "admission"
        if not matches(order.cohort.tags, box.tags):
            return "tags"
        if not is_listed(order, box.id):
            return "roster"
        asked = self._asked.get(box.id)
        if asked is None:
            return "silent"
        if order.model not in asked.offers:
            return "offer"
        return keeps_out(order, asked, spent.get(box.id, 0.0)) if holds(asked) else "model"
