"""Campaigns as people order them: begun, paused, gone on with, stopped; and taken up again after any end."""

import asyncio
import logging
import random
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from cloud_gateway.rounds.cohort.cohorts import Cohorts
from cloud_gateway.rounds.course.course import Course, gates_of
from cloud_gateway.rounds.course.masking import Masking
from cloud_gateway.rounds.course.papers import TaskNames
from cloud_gateway.rounds.evaluation import EvaluationSets, Judge, Judges, judge_of
from cloud_gateway.rounds.kept.masked_rows import forget_others
from cloud_gateway.rounds.kept.recovery import ID_LENGTH, LETTERS, STEPS, lost_rows, sweep
from cloud_gateway.rounds.kept.spool import Spool
from cloud_gateway.rounds.kept.steps import StepFile, Steps, as_bytes, as_vector
from cloud_gateway.rounds.kept.store import ORDER_FILE, CampaignRow, put_campaign, put_round
from cloud_gateway.rounds.messages import ENDED, CampaignState, CampaignWish, RoundView
from cloud_gateway.rounds.origin import Library, laid_out, meant, only_variant, shared
from hybrid.artifact.durable import write_atomically
from hybrid.artifact.manifest import parse
from hybrid.errors import Conflict, CorruptContent, HybridError, NotFound
from hybrid.federated.aggregation.rules import norm
from hybrid.federated.campaign import Campaign
from hybrid.federated.learning.head import open_head
from hybrid.federated.lineage import learned_from
from hybrid.federated.privacy.account import check_campaign, check_round

_GATES_BACK: Final = 8
"""So many steps back the gates look for norms when a campaign is taken up again."""
_log = logging.getLogger("hybrid.gateway.rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What campaigns lean on.

    Attributes:
        folder: of all of them.
        library: the registry of models.
        cohorts: the boxes of campaigns.
        spool: updates, rows and the writer of rows.
        sets: for evaluation.
        names: of tasks.
        clock_s: a clock that only runs forward.
        wall_s: seconds since 1970, for people.
    """

    folder: Path
    library: Library
    cohorts: Cohorts
    spool: Spool
    sets: EvaluationSets
    names: TaskNames
    clock_s: Callable[[], float]
    wall_s: Callable[[], float]


class Campaigns:
    """All campaigns, those that run and those that ended. Methods that are not async block.

    Attributes:
        rows: all, by id, oldest first.
        courses: those that have not ended; the desk's.
        maskings: the masked rounds of those whose updates nobody sees; the desk's.
        judges: hold heads against evaluation sets.
        cohorts: whom they mean.
    """

    def __init__(self, around: Ground, courses: dict[str, Course], maskings: dict[str, Masking]) -> None:
        self._around = around
        self.courses = courses
        self.maskings = maskings
        self.rows: dict[str, CampaignRow] = {}
        self.judges = Judges()
        self.cohorts = around.cohorts
        self._spent: dict[str, dict[str, float]] = {}
        self._learned: dict[str, set[str]] = {}
        self._rng = random.Random()  # noqa: S311 (nothing secret is drawn)

    def folder(self, campaign: str) -> Path:
        """Of one campaign."""
        return self._around.folder / campaign

    # Taken up again.

    def load(self) -> list[str]:
        """Read what is kept and go on with it; what is to be said of campaigns that cannot go on."""
        store, folder = self._around.spool.store, self._around.folder
        ended = []
        for row in store.campaigns():
            self.rows[row.id] = row
            if row.state in ENDED and not self._goes_home(row):
                continue
            try:
                course = self._course(row)
                self._mask(course)
                self.courses[row.id] = course
            except HybridError as exc:
                _log.error("rounds.not_taken_up campaign=%s error=%s", row.id, exc)
                if row.state in ENDED:
                    continue  # what it came to stays true
                ended.append(msgspec.structs.replace(row, state="failed", reason=str(exc)))
        ended += lost_rows(folder, self.rows, None if store.was_begun_anew else store.campaign_ids())
        for row in ended:
            with store.database.writing() as db:
                put_campaign(db, row)
            self.rows[row.id] = row
        sweep(folder, self.rows)
        forget_others(self._around.spool, self.maskings)
        self._around.sets.sweep({row.evaluation for row in self.rows.values()})
        return [f"campaign {row.id} is {row.state}: {row.reason}" for row in ended]

    def _goes_home(self, row: CampaignRow) -> bool:
        """Whether a step of it is on its way to become a version, or is to be: the process ended before that began."""
        if any(view.state == "evaluating" for view in self._around.spool.store.promotions(row.id)):
            return True
        return wants_home(row) and not self.is_home(row)

    def is_home(self, row: CampaignRow) -> bool:
        """Whether something became of its newest step, for good or not; blocks."""
        return any(view.step == row.step for view in self._around.spool.store.promotions(row.id))

    def _course(self, row: CampaignRow) -> Course:
        """A campaign in memory, from what is kept of it."""
        store = self._around.spool.store
        assert row.layout is not None
        steps = Steps(self.folder(row.id) / STEPS, row.layout, row.order.coding)
        try:
            steps.load(row.step)
        except (CorruptContent, NotFound):
            if row.state not in ENDED:
                raise
            steps.load(0)  # nothing goes on from its newest step; those before may still become versions
        rounds = [each.view for each in store.rounds(row.id)]
        if not rounds or rounds[-1].number < (row.step if row.state in ENDED else row.step + 1):
            raise CorruptContent(f"the row of round {row.step + 1} is gone or damaged")
        course = Course(
            row=row,
            steps=steps,
            gates=gates_of(row.order, store.received(row.id, step=max(0, row.step - _GATES_BACK))),
            round=rounds[-1],
            rounds=[each for each in rounds if each.state == "closed"],
            opened_s=self._around.clock_s(),
            base_norm=norm(as_vector(steps.newest.weights)),
            learned=self.learned(row),
        )
        for received in store.received(row.id, step=min(course.known_steps)):
            course.received[received.step, received.box_id] = received
            if received.round == course.round.number and received.outcome in ("accepted", "chosen", "outlier"):
                course.counted[received.box_id] = received
        course.spent = self._spent_on(row.order)
        return course

    def _mask(self, course: Course) -> None:
        """Begin the masked rounds of a campaign that wants them, or take them up again; blocks."""
        if course.order.privacy.secure and not course.has_ended:
            around = self._around
            self.maskings[course.id] = Masking(course, around.spool, around.names, clock_s=around.clock_s)

    def _spent_on(self, order: Campaign) -> dict[str, float]:
        """What each box has spent on a model, the same mapping for all of its campaigns; blocks."""
        if not order.privacy.noise:
            return {}
        found = self._spent.get(order.model)
        if found is None:
            kept = self._around.spool.store.accounts(order.model)
            read = {box_id: account.cost for box_id, account in kept.items()}
            found = self._spent.setdefault(order.model, read)  # two that begin at once read side by side
        return found

    def learned(self, row: CampaignRow) -> set[str]:
        """Artifact digests of versions that were learned from a campaign's base; the same set for all that have it."""
        found = self._learned.setdefault(row.base_digest, set())
        for version in self._around.library.list_versions(row.order.model):
            try:
                manifest = parse(self._around.library.manifest_bytes(version.artifact_digest))
            except (HybridError, OSError):
                continue
            if row.base_digest in learned_from(manifest):
                found.add(version.artifact_digest)
        return found

    def note_version(self, digest: str) -> None:
        """A version was learned: boxes that hold it go on in campaigns with any base before it; blocks."""
        for base in learned_from(parse(self._around.library.manifest_bytes(digest))):
            if base in self._learned:
                self._learned[base].add(digest)

    # Ordered.

    async def create(self, wish: CampaignWish, who: str) -> Course:
        """Begin a campaign; it is on the disk when this returns.

        Raises:
            CampaignImpossible: two of its wishes exclude each other, or there are too few boxes.
            PrivacySpent: its budget, or what its boxes have left, does not pay for one round.
            NotFound: no such version, variant or evaluation set. ModelUntrainable: nothing of it may learn.
            DiskFull, StorageError: it was not begun.
        """
        order = wish.order
        order.check()
        check_campaign(order.privacy, order.rounds)
        self.cohorts.check(order, [row.order for row in self.rows.values()])
        row, course, judge = await asyncio.to_thread(self._prepare, wish, who, self.cohorts.held(order))

        def write(db: sqlite3.Connection) -> None:
            put_campaign(db, row)
            put_round(db, row.id, course.round)

        try:
            if order.privacy.max_epsilon > 0:
                spent = {box_id: course.spent.get(box_id, 0.0) for box_id in self.cohorts.of(order)}
                check_round(order.privacy, spent, order.n_least)
            await asyncio.to_thread(self._mask, course)
            await self._around.spool.commits.write(write)
        except BaseException:
            self.maskings.pop(row.id, None)
            shutil.rmtree(self.folder(row.id), ignore_errors=True)
            raise
        self.rows[row.id], self.courses[row.id] = row, course
        if judge is not None:
            self.judges.keep(row.id, judge)
        course.opened_s = self._around.clock_s()
        return course

    def _prepare(
        self, wish: CampaignWish, who: str, held: Mapping[str, int]
    ) -> tuple[CampaignRow, Course, Judge | None]:
        """All of a campaign but its rows."""
        order, library = wish.order, self._around.library
        version = library.resolve(order.model, order.version) if order.version else meant(library, order.model, held)
        campaign = self._fresh_id()
        folder = self.folder(campaign)
        try:
            with laid_out(library, version.artifact_digest, self._around.folder) as artifact:
                order = msgspec.structs.replace(
                    order, version=version.version, variant=order.variant or only_variant(artifact.manifest)
                )
                head = open_head(artifact.folder, artifact.manifest, order.variant)
                layout, vector = shared(head, order.training.personal)
                judge = judge_of(head, self._around.sets.read(wish.evaluation)) if wish.evaluation else None
            row = CampaignRow(
                id=campaign,
                order=order,
                base_digest=version.artifact_digest,
                layout=layout,
                clip=order.privacy.clip,
                base_accuracy=judge.accuracy({}) if judge is not None else None,
                evaluation=wish.evaluation,
                made_s=self._around.wall_s(),
                made_by=who,
                by_torch=head.program.by_torch,
            )
            steps = Steps(folder / STEPS, layout, order.coding)
            steps.adopt(steps.write(StepFile(step=0, weights=as_bytes(vector), clip=order.privacy.clip)))
            write_atomically(folder / ORDER_FILE, msgspec.json.encode(row))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        opened = RoundView(number=1, state="open", opened_s=row.made_s, clip=row.clip)
        course = Course(
            row=row,
            steps=steps,
            gates=gates_of(row.order),
            round=opened,
            base_norm=norm(vector),
            learned=self.learned(row),
        )
        course.spent = self._spent_on(order)
        return row, course, judge

    async def woken(self, campaign: str) -> Course:
        """A campaign in memory, also one that has ended.

        Raises:
            NotFound: there is none, or its steps are gone. Conflict: it was lost.
        """
        course = self.courses.get(campaign)
        if course is not None:
            return course
        row = self.row(campaign)
        if row.layout is None or row.state == "lost":
            raise Conflict(f"campaign {row.id} is {row.state}; nothing can come of it")
        course = await asyncio.to_thread(self._course, row)
        return self.courses.setdefault(campaign, course)

    async def order(self, what: str, campaign: str) -> Course:
        """`pause`, `resume` or `stop` a campaign.

        Raises:
            NotFound: no such campaign, or no such order.
            Conflict: not in the state that it is in.
        """
        rules: dict[str, tuple[tuple[CampaignState, ...], CampaignState]] = {
            "pause": (("running",), "paused"),
            "resume": (("paused", "stalled"), "running"),
            "stop": (("running", "paused", "stalled"), "stopped"),
        }
        if what not in rules:
            raise NotFound(f"{what[:40]!r} is no order; give {', '.join(rules)}")
        course = self.find(campaign)
        async with course.lock:
            was_closing, course.closing = course.closing, True
            try:
                await self._change(course, what, *rules[what])
            finally:
                course.closing = was_closing
        return course

    async def _change(
        self, course: Course, what: str, allowed: tuple[CampaignState, ...], following: CampaignState
    ) -> None:
        if course.row.state not in allowed:
            raise Conflict(
                f"campaign {course.id} is {course.row.state}; {what} is for one that is {' or '.join(allowed)}",
                advice=f"hybrid rounds show {course.id} tells how it stands.",
            )
        row = msgspec.structs.replace(course.row, state=following, reason="", n_abandoned=0)
        view = course.shown(self._around.clock_s())

        def write(db: sqlite3.Connection) -> None:
            put_campaign(db, row)
            if following in ENDED:  # what came to the open round is told, though it makes no step
                put_round(db, course.id, msgspec.structs.replace(view, state="abandoned", n_leases=0))

        await self._around.spool.commits.write(write)
        course.row = self.rows[course.id] = row
        course.opened_s = self._around.clock_s()
        course.serial += 1

    def find(self, campaign: str) -> Course:
        """A campaign that has not ended.

        Raises:
            NotFound: there is none. Conflict: it has ended.
        """
        course = self.courses.get(campaign)
        if course is None:
            row = self.row(campaign)
            raise Conflict(
                f"campaign {row.id} is {row.state} and goes on no more",
                advice=f"Begin another: hybrid rounds create; what came of this one: hybrid rounds report {row.id}.",
            )
        return course

    def row(self, campaign: str) -> CampaignRow:
        """Any campaign. Raises `NotFound`."""
        course = self.courses.get(campaign)
        if course is not None:
            return course.row
        row = self.rows.get(campaign)
        if row is None:
            raise NotFound(f"there is no campaign {campaign[:40]!r} here", advice="hybrid rounds ls lists them.")
        return row

    def forget(self, course: Course) -> None:
        """A campaign has ended: it leaves memory, and what waited for its rounds the disk; blocks."""
        self.maskings.pop(course.id, None)
        self.rows[course.id] = course.row
        self._around.spool.forget_all(course.id)
        if course.order.privacy.secure:
            forget_others(self._around.spool, {*self.maskings})

    def accuracy(self, course: Course, vector: np.ndarray) -> float | None:
        """Of a vector on the campaign's evaluation set; None without one."""
        judge = self.judge(course.row)
        return judge.accuracy(course.layout.arrays(vector)) if judge is not None else None

    def judge(self, row: CampaignRow) -> Judge | None:
        """The judge of a campaign; made again where none is in memory."""
        if not row.evaluation:
            return None
        found = self.judges.find(row.id)
        if found is None:
            with laid_out(self._around.library, row.base_digest, self._around.folder) as artifact:
                head = open_head(artifact.folder, artifact.manifest, row.order.variant)
                found = judge_of(head, self._around.sets.read(row.evaluation))
            self.judges.keep(row.id, found)
        return found

    def _fresh_id(self) -> str:
        while True:
            found = "".join(self._rng.choice(LETTERS) for _ in range(ID_LENGTH))
            if found not in self.rows and not self.folder(found).exists():
                return found


def wants_home(row: CampaignRow) -> bool:
    """Whether a campaign that ended is to become a version by itself."""
    return row.order.promotion.policy != "none" and row.state in ("completed", "spent") and row.step > 0
