"""The gateway's rounds, whole: their parts built, their routes added, their work run."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from aiohttp import web
from prometheus_client.core import Metric

from cloud_gateway.rounds.admin_routes import add_admin_routes
from cloud_gateway.rounds.campaigns import Campaigns, Ground, wants_home
from cloud_gateway.rounds.cohort.cohorts import Cohorts
from cloud_gateway.rounds.course.closings import Around, Closings
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.masking import Masking
from cloud_gateway.rounds.course.papers import TaskNames
from cloud_gateway.rounds.course.taking import Taking
from cloud_gateway.rounds.desk import RoundsDesk
from cloud_gateway.rounds.evaluation import EvaluationSets
from cloud_gateway.rounds.home.exports import Exports
from cloud_gateway.rounds.home.promotion import Home, Promotions
from cloud_gateway.rounds.home.rounds_key import Signer
from cloud_gateway.rounds.kept.commits import Commits
from cloud_gateway.rounds.kept.disk_watch import DiskWatch
from cloud_gateway.rounds.kept.recovery import BEGUN_ANEW
from cloud_gateway.rounds.kept.spool import Spool
from cloud_gateway.rounds.kept.store import RoundStore
from cloud_gateway.rounds.messages import CampaignWish, PromoteWish
from cloud_gateway.rounds.metrics import rounds_families
from cloud_gateway.rounds.neighbours import Neighbours
from cloud_gateway.rounds.public import Public
from cloud_gateway.rounds.routes import BoxOf, add_rounds_routes
from hybrid.errors import HybridError, StorageError
from hybrid.serving.body_budget import BodyBudget

FOLDER: Final = "rounds"
TICK_S: Final = 0.5
MASKED_TICK_S: Final = 0.05
_AGAIN_S: Final = 5.0
_SETS: Final = "evaluation"
_LONGEST_TEXT: Final = 2000
_log = logging.getLogger("hybrid.gateway.rounds")


class Rounds:
    """Everything of campaigns that one gateway holds, in `DATA/rounds`.

    Attributes:
        desk: answers boxes.
        campaigns: what people ordered.
        public: what people are told.
        committed: called with a model's name after a version of it came.
    """

    def __init__(
        self,
        data: Path,
        around: Neighbours,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
    ) -> None:
        """Opens its files and takes up what ran; blocking.

        Args:
            data: the gateway's folder.
            around: what it leans on.
            clock_s: a clock that only runs forward: leases and deadlines.
            wall_s: seconds since 1970, for people.
            connect: makes connections to the database, in place of SQLite on this machine's disk.

        Raises:
            DiskFull, StorageError: they cannot be used.
        """
        folder = data / FOLDER
        self._clock_s = clock_s
        self._around = around
        self.committed: Callable[[str], object] = _nothing
        self._soon = asyncio.Event()
        self._soon.set()  # what the process before left undone
        self._gone: list[Course] = []
        self._store = RoundStore(folder, connect)
        try:
            lost = self._open(folder, wall_s)
        except BaseException:
            self._store.close()
            raise
        if self._store.was_begun_anew:
            self._alarm("rounds_lost", BEGUN_ANEW)
        elif lost:
            self._alarm("campaign_failed", "; ".join(lost)[:_LONGEST_TEXT])

    def _open(self, folder: Path, wall_s: Callable[[], float]) -> list[str]:
        """The parts, over an open database; what is to be said of campaigns that cannot go on."""
        around, clock_s = self._around, self._clock_s
        spool = Spool(self._store, Commits(self._store.database), folder)
        self._disk = DiskWatch(
            folder,
            spool.commits,
            raise_alarm=self._alarm,
            lift_alarm=lambda kind: around.lift_alarm(kind, ""),
            changed=self._all_changed,
        )
        names = TaskNames.opened(folder)
        self.desk = RoundsDesk(Taking(spool, around.blobs, names), names, around.boxes, clock_s=clock_s)
        self.desk.changed = self._changed
        self.sets = EvaluationSets(folder / _SETS)
        ground = Ground(
            folder=folder,
            library=around.library,
            cohorts=Cohorts(around.boxes, self.desk.asked, around.root_sha256),
            spool=spool,
            sets=self.sets,
            names=names,
            clock_s=clock_s,
            wall_s=wall_s,
        )
        self.campaigns = Campaigns(ground, self.desk.courses, self.desk.maskings)
        self.public = Public(self.campaigns, self._store, clock_s=clock_s, trouble=lambda: self._disk.trouble)
        self.exports = Exports(around.library, self._store, self.campaigns)
        lost = self.campaigns.load()
        self._closings = self._closer(spool, wall_s)
        signer = Signer(folder)
        self.key = signer.public
        self._promotions = self._promoter(folder, spool, signer, wall_s)
        return lost

    def _closer(self, spool: Spool, wall_s: Callable[[], float]) -> Closings:
        """What closes rounds."""
        return Closings(
            Around(
                spool=spool,
                accuracy=self.campaigns.accuracy,
                cohort=lambda course: list(self.campaigns.cohorts.of(course.order)),
                raise_alarm=self._alarm,
                refused=self._disk.refused,
                clock_s=self._clock_s,
                wall_s=wall_s,
                closed=self.desk.closed,
                ended=self._ended,
            )
        )

    def _promoter(self, folder: Path, spool: Spool, signer: Signer, wall_s: Callable[[], float]) -> Promotions:
        """What makes steps versions."""
        home = Home(
            folder=folder,
            library=self._around.library,
            files=self._around.files,
            signer=signer,
            steering=self._around.steering,
            is_delegated=self._around.is_delegated,
            store=self._store,
            commits=spool.commits,
            committed=lambda name: self.committed(name),  # noqa: PLW0108 (it is set later)
            clock_s=self._clock_s,
            wall_s=wall_s,
        )
        return Promotions(home, self.campaigns, self._changed)

    def add_routes(
        self, app: web.Application, *, box_of: BoxOf, bodies: BodyBudget, note: Callable[[str, str, str], None]
    ) -> None:
        """Serve the calls of boxes and of people.

        Args:
            app: the gateway's application.
            box_of: the id of the admitted box that asks, in the epoch that it says.
            bodies: memory of all requests.
            note: keeps who did what: takes a token's id, a word and details; blocks.
        """
        add_rounds_routes(app, self.desk, box_of=box_of, bodies=bodies)
        add_admin_routes(app, self, bodies=bodies, note=note)

    def families(self) -> Iterator[Metric]:
        """Its metrics, as they stand now."""
        return rounds_families(self.campaigns, self.desk)

    async def run(self) -> None:
        """Close rounds, end leases, until cancelled."""
        while True:
            try:
                await self._run()
            except Exception:  # noqa: BLE001 (a fault of ours must not end the rounds for good)
                _log.exception("rounds.part_failed")
                await asyncio.sleep(_AGAIN_S)

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            closing: set[str] = set()
            group.create_task(self._disk.run(), name="disk")
            await self._take_up()
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MASKED_TICK_S if self.desk.maskings else TICK_S):
                        await self._soon.wait()
                self._soon.clear()
                self._look(group, closing)
                await self._let_go()

    def _look(self, group: asyncio.TaskGroup, closing: set[str]) -> None:
        """What time or updates have made due."""
        now_s = self._clock_s()
        has_room = False
        for course in self.desk.courses.values():
            has_room |= course.expire(now_s)
            wants_closing = course.wants_closing(now_s, self.campaigns.cohorts.of(course.order))
            if course.id not in closing and (wants_closing or (course.is_running and course.is_half_closed)):
                closing.add(course.id)
                task = group.create_task(self._close(course), name=f"close-{course.id}")
                task.add_done_callback(partial(self._done, closing, course.id))
            masking = self.desk.maskings.get(course.id)
            if masking is not None and course.is_running and course.id not in closing:
                closing.add(course.id)
                task = group.create_task(self._mask(course, masking), name=f"mask-{course.id}")
                task.add_done_callback(partial(_discard, closing, course.id))
            if course.id not in closing and self._promotions.is_due(course):
                closing.add(course.id)
                task = group.create_task(self._promote(course), name=f"promote-{course.id}")
                task.add_done_callback(partial(self._done, closing, course.id))
        if has_room:
            self.desk.wake()

    async def _mask(self, course: Course, masking: Masking) -> None:
        """What is due in a masked round: a stage, the sum, or too few boxes in time."""
        had_room = masking.has_room
        try:
            is_over = course.is_over(self._clock_s()) and not masking.is_under_way
            if await masking.tick(self._clock_s()) or (is_over and not masking.is_under_way):
                await self._close(course, masking)
                self._soon.set()
        except StorageError as exc:
            _log.error("rounds.masked_not_kept campaign=%s error=%s", course.id, exc)
            await asyncio.sleep(TICK_S)
        if masking.has_room and not had_room:
            self.desk.wake()

    async def _take_up(self) -> None:
        """Promotions that were under way when the process ended."""
        for course in [*self.desk.courses.values()]:
            await self._promotions.go_on(course)
            if course.has_ended and course.promotion is None:
                self._ended(course)

    async def _promote(self, course: Course) -> None:
        try:
            await self._promotions.finish(course)
        except OSError as exc:
            _log.error("rounds.promotion_not_kept campaign=%s error=%s", course.id, exc)
            self._disk.refused(f"campaign {course.id}: its result did not come home: {exc}")
            course.trouble = f"its step did not come home: {exc}; it is tried again"
            self._changed(course.id)
            await asyncio.sleep(_AGAIN_S)
        if course.has_ended and course.promotion is None:
            self._ended(course)

    def _done(self, closing: set[str], campaign: str, task: asyncio.Task[None]) -> None:
        del task
        closing.discard(campaign)
        self._soon.set()

    async def _close(self, course: Course, masking: Masking | None = None) -> None:
        try:
            await self._closings.close(course, masking)
        except Exception:  # noqa: BLE001 (a fault of ours ends neither this nor other campaigns; it is tried again)
            _log.exception("rounds.close_fault campaign=%s", course.id)
            await asyncio.sleep(TICK_S)

    async def _let_go(self) -> None:
        """Campaigns that ended leave memory; one that the disk keeps from it is looked at again."""
        gone, self._gone = self._gone, []
        for course in gone:
            try:
                await self._let_one_go(course)
            except StorageError as exc:
                course.trouble = str(exc)
                self._gone.append(course)

    async def _let_one_go(self, course: Course) -> None:
        async with course.lock:
            if self.desk.courses.get(course.id) is not course or await self._stays(course):
                return  # it left before, and may be here anew, to become a version
            del self.desk.courses[course.id]
        self.campaigns.rows[course.id] = course.row
        self.public.changed(course.id)
        self.desk.wake()
        await asyncio.to_thread(self.campaigns.forget, course)

    async def _stays(self, course: Course) -> bool:
        """Whether a campaign that ended is to become a version first."""
        if course.promotion is not None or course.is_promoting:
            return True
        if not wants_home(course.row) or await asyncio.to_thread(self.campaigns.is_home, course.row):
            return False
        try:
            await self._promotions.begin_by_itself(course)
        except StorageError as exc:
            text = f"campaign {course.id}: step {course.row.step} was not promoted: {exc}; hybrid rounds promote it"
            await asyncio.to_thread(self._alarm, "campaign_not_promoted", text)
        self.desk.wake()
        self._soon.set()
        return course.promotion is not None

    async def create(self, wish: CampaignWish, who: str) -> Course:
        """Begin a campaign; raises as `Campaigns.create`."""
        course = await self.campaigns.create(wish, who)
        self._changed(course.id)
        self.desk.wake()
        return course

    async def promote(self, campaign: str, wish: PromoteWish) -> None:
        """Make a step a version.

        Raises:
            NotFound: no such campaign or step. Conflict: another step is under way, or the campaign was lost.
        """
        course = await self.campaigns.woken(campaign)
        async with course.lock:
            self.desk.courses[campaign] = course
            try:
                await self._promotions.begin(course, wish)
            finally:
                if course.has_ended and course.promotion is None:
                    self._ended(course)
        self.desk.wake()
        self._soon.set()

    async def order(self, what: str, campaign: str) -> None:
        """`pause`, `resume` or `stop` a campaign; raises as `Campaigns.order`."""
        course = self.campaigns.find(campaign)
        try:
            await self.campaigns.order(what, campaign)
            if course.has_ended:
                self._ended(course)
                await self._let_go()
        finally:
            self.desk.closed(course)

    def _ended(self, course: Course) -> None:
        self._gone.append(course)
        self._soon.set()

    def _changed(self, campaign: str) -> None:
        self.public.changed(campaign)
        self._soon.set()

    def _all_changed(self) -> None:
        for campaign in self.desk.courses:
            self._changed(campaign)

    def _alarm(self, kind: str, text: str) -> None:
        try:
            self._around.raise_alarm(kind, "", text)
        except HybridError as exc:
            _log.warning("rounds.alarm_not_kept kind=%s error=%s", kind, exc)

    async def release(self, within_s: float) -> None:
        """The gateway stops: let waiting calls go, spread over some time."""
        self.public.release()
        await self.desk.release(within_s)

    def close(self) -> None:
        """Close the files."""
        self._store.close()


def _discard(closing: set[str], campaign: str, task: asyncio.Task[None]) -> None:
    del task
    closing.discard(campaign)


def _nothing(name: str) -> None:
    """Nobody wants to know."""
