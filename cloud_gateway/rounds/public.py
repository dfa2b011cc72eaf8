"""Campaigns as people see them, and whoever waits for one to change."""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import msgspec

from cloud_gateway.rounds.campaigns import Campaigns
from cloud_gateway.rounds.cohort.cohorts import Standing
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.kept.store import CampaignRow, RoundStore
from cloud_gateway.rounds.messages import CampaignList, CampaignView, Report, RoundView
from cloud_gateway.rounds.views import campaign_view, report

_HELD: Final = 64
_LISTED: Final = 2
MOST_WATCHERS: Final = 256


class Public:
    """What is told of campaigns. Belongs to the event loop."""

    def __init__(
        self,
        campaigns: Campaigns,
        store: RoundStore,
        *,
        clock_s: Callable[[], float],
        trouble: Callable[[], str] = lambda: "",
    ) -> None:
        """Nothing is touched.

        Args:
            campaigns: all of them.
            store: of rows.
            clock_s: a clock that only runs forward.
            trouble: what keeps all campaigns from going on; empty for nothing.
        """
        self._campaigns = campaigns
        self._store = store
        self._clock_s = clock_s
        self._trouble = trouble
        self._serials: Counter[str] = Counter()
        self._watchers: dict[str, asyncio.Event] = {}
        self._n_watchers = 0
        self._ended: OrderedDict[str, tuple[RoundView, ...]] = OrderedDict()
        self._is_released = False

    def changed(self, campaign: str) -> None:
        """Something of a campaign changed: whoever watches it is told."""
        self._serials[campaign] += 1
        event = self._watchers.pop(campaign, None)
        if event is not None:
            event.set()

    def release(self) -> None:
        """Nobody waits any more: the gateway stops."""
        self._is_released = True
        for campaign in list(self._watchers):
            self.changed(campaign)

    async def shown(self, campaign: str, *, since: int = -1, wait_s: float = 0.0) -> CampaignView:
        """A campaign, once it is another than at serial `since`, or the time is over.

        Raises:
            NotFound: there is none.
        """
        self._campaigns.row(campaign)
        if self._serial(campaign) == since and wait_s > 0 and not self._is_released:
            await self._wait(campaign, wait_s)
        return await self._view(campaign)

    async def _wait(self, campaign: str, wait_s: float) -> None:
        if self._n_watchers >= MOST_WATCHERS:
            return
        self._n_watchers += 1
        event = self._watchers.setdefault(campaign, asyncio.Event())
        try:
            async with asyncio.timeout(wait_s):
                await event.wait()
        except TimeoutError:
            pass  # nothing new: the same is told again
        finally:
            self._n_watchers -= 1

    def _serial(self, campaign: str) -> int:
        return self._serials[campaign] + 1

    async def listed(self) -> CampaignList:
        """All campaigns, each with its two newest rounds alone: an open one tells no accuracy."""
        views = []
        for row in [*self._campaigns.rows.values()]:
            view = await self._view(row.id)
            views.append(msgspec.structs.replace(view, rounds=view.rounds[-_LISTED:]))
        lost = [view.id for view in views if view.state == "lost"]
        text = f"{len(lost)} campaigns were lost with a damaged database" if lost else ""
        return CampaignList(campaigns=tuple(views), lost=text)

    async def report(self, campaign: str) -> Report:
        """All of a campaign."""
        view = await self._view(campaign)
        return await asyncio.to_thread(report, view, self._store, self._campaigns.cohorts.name_of)

    async def _view(self, campaign: str) -> CampaignView:
        serial = self._serial(campaign)  # of before the waits: what changes meanwhile is told as a change
        self._campaigns.row(campaign)
        promotions = await asyncio.to_thread(self._store.promotions, campaign)
        course = self._campaigns.courses.get(campaign)
        rounds = tuple(course.rounds) if course is not None else await self._rounds_of(campaign)
        row = self._campaigns.row(campaign) if course is None else course.row  # of the same moment as its rounds
        found = campaign_view(
            row,
            course=course,
            rounds=rounds,
            promotions=tuple(promotions),
            standing=self._standing(row, course),
            now_s=self._clock_s(),
            serial=serial,
        )
        if found.state == "running" and not found.reason:
            found = msgspec.structs.replace(found, reason=self._trouble())
        return found

    def _standing(self, row: CampaignRow, course: Course | None) -> Standing:
        """Of its boxes: who could begin now is told while it runs."""
        if course is None or course.has_ended:
            return Standing(sum(1 for _ in self._campaigns.cohorts.of(row.order)), 0, {})
        return self._campaigns.cohorts.standing(course)

    async def _rounds_of(self, campaign: str) -> tuple[RoundView, ...]:
        """Rounds of a campaign that ended."""
        found = self._ended.get(campaign)
        if found is None:
            rows = await asyncio.to_thread(self._store.rounds, campaign)
            found = self._ended[campaign] = tuple(row.view for row in rows)
            while len(self._ended) > _HELD:
                self._ended.popitem(last=False)
        return found
