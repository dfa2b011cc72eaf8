"""How a round closes: what counts is on the disk first, then the step it makes, then the row that makes it current.

A kill between any two of these goes on from there with the same bits: what counts and the noise's seed are drawn once,
and the step is computed anew of them.
"""

import asyncio
import itertools
import logging
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.masking import Masking
from cloud_gateway.rounds.course.next_step import Chosen, check_finite, next_step
from cloud_gateway.rounds.course.taking import ROW_BYTES
from cloud_gateway.rounds.kept.spool import Spool
from cloud_gateway.rounds.kept.steps import StepFile, as_vector
from cloud_gateway.rounds.kept.store import (
    DAMAGED,
    CampaignRow,
    Received,
    ReceivedRow,
    choose,
    put_account,
    put_campaign,
    put_outcomes,
    put_received,
    put_round,
)
from cloud_gateway.rounds.messages import CampaignState, RoundView
from hybrid.errors import CorruptContent, HybridError, PrivacySpent, StorageError
from hybrid.federated.aggregation.gates import Limits
from hybrid.federated.privacy.account import Account, check_round
from hybrid.federated.privacy.accountant import cost_of, epsilon_for
from hybrid.federated.secure.quantized import Sum

AGAIN_S: Final = 5.0
_PRUNE_EVERY: Final = 16
_ONE_INPUT: Final = (
    ". A box masks one input a step: those that did in vain sit the step out. Resume once other boxes are there, or "
    "promote the newest step and begin a campaign from it"
)
_log = logging.getLogger("hybrid.gateway.rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What closing leans on.

    Attributes:
        spool: updates, rows and the writer of rows.
        accuracy: of a vector on a campaign's evaluation set, None without one; blocks.
        cohort: ids of the boxes of a campaign's cohort.
        raise_alarm: takes a kind and a text; blocks.
        refused: told what the disk did not take; it is tried again.
        clock_s: a clock that only runs forward.
        wall_s: seconds since 1970, for people.
        closed: called with a course whose round is no longer closing.
        ended: called with a course that ended.
    """

    spool: Spool
    accuracy: Callable[[Course, np.ndarray], float | None]
    cohort: Callable[[Course], list[str]]
    raise_alarm: Callable[[str, str], None]
    refused: Callable[[str], None]
    clock_s: Callable[[], float]
    wall_s: Callable[[], float]
    closed: Callable[[Course], None]
    ended: Callable[[Course], None]


class Closings:
    """Closes rounds. Belongs to the event loop."""

    def __init__(self, around: Around) -> None:
        self._around = around
        self._charging = asyncio.Lock()  # campaigns of one model close side by side, and a box has one account of it

    async def close(self, course: Course, masking: Masking | None = None) -> None:
        """Close the open round of a campaign, or begin it anew; tried again while the disk refuses.

        Args:
            course: of the campaign.
            masking: of a campaign whose updates nobody sees.
        """
        try:
            for pause_s in itertools.chain((0.0,), itertools.repeat(AGAIN_S)):
                await asyncio.sleep(pause_s)
                async with course.lock:  # free while it waits for the disk: people may pause or stop the campaign
                    if course.writing and not course.closing:
                        break  # it came while the lock was waited for: the round closes with it, in a moment
                    course.closing = True
                    if not _goes_on(course) or await self._closed(course, masking):
                        break
        finally:
            course.closing = False
            self._around.closed(course)
        if course.has_ended:
            self._around.ended(course)

    async def _closed(self, course: Course, masking: Masking | None) -> bool:
        try:
            await (self._close(course) if masking is None else self._close_masked(course, masking))
        except CorruptContent as exc:  # no later try finds more than this one
            await self._failed(course, exc)
        except StorageError as exc:
            self._around.refused(f"campaign {course.id}: round {course.round.number} cannot be closed: {exc}")
            course.trouble = str(exc)
            _log.error("rounds.not_closed campaign=%s error=%s", course.id, exc)
            return False
        except PrivacySpent as exc:
            await self._end(course, "spent", str(exc))
        except HybridError as exc:
            await self._failed(course, exc)
        course.trouble = ""
        return True

    async def _failed(self, course: Course, error: HybridError) -> None:
        _log.error("rounds.failed campaign=%s error=%s", course.id, error)
        await self._end(course, "failed", str(error))
        text = f"campaign {course.id} failed: {error}"
        await asyncio.to_thread(self._around.raise_alarm, "campaign_failed", text)

    async def _close(self, course: Course) -> None:
        now_s = self._around.clock_s()
        rows = sorted(course.counted.values(), key=lambda row: row.id)
        if course.round.state != "closing":
            async with self._charging:
                rows = [row for row in rows if course.can_pay(row.box_id)]
                if len(rows) < course.n_least:
                    self._check_budget(course)
                    await self._begin_anew(course, now_s)
                    return
                chosen, left_out = _outliers(course, rows)
                noise = secrets.token_bytes(32) if course.order.privacy.noise > 0 else b""
                await self._choose(course, chosen, left_out, noise, now_s)
        else:
            noise = await self._drawn(course)
            chosen = [row for row in rows if row.outcome != "outlier"]
            left_out = [row for row in rows if row.outcome == "outlier"]
        made, accuracy = await asyncio.to_thread(self._made, course, chosen, noise)
        await self._make_current(course, made, chosen, left_out, accuracy)

    async def _close_masked(self, course: Course, masking: Masking) -> None:
        """The same where there is a sum alone; the round begins anew where there is none."""
        now_s = self._around.clock_s()
        if masking.sum is None:
            came = masking.came
            await masking.begin_anew()
            await self._begin_anew(course, now_s, masking.trouble, came)
            return
        live = [_masked_row(course, box_id) for box_id in masking.live_box_ids]
        is_begun = course.round.state == "closing"
        async with self._charging:
            if not is_begun and not all(course.can_pay(row.box_id) for row in live):
                await masking.begin_anew("a box in the sum has no privacy left to pay for it")
                await self._begin_anew(course, now_s, masking.trouble)
                return
            noise = await self._drawn(course) if is_begun else b""
            if course.order.privacy.noise > 0 and not noise:
                noise = secrets.token_bytes(32)
            # also once more after a kill: where the disk then lost an input, the sum is that of other boxes
            await self._choose(course, live, [], noise, now_s)
        made, accuracy = await asyncio.to_thread(self._made, course, live, noise, masking.sum)
        await self._make_current(course, made, live, [], accuracy)

    async def _drawn(self, course: Course) -> bytes:
        """The seed of the noise of a round that was being closed."""
        rounds = await asyncio.to_thread(self._around.spool.store.rounds, course.id, 1)
        return rounds[-1].noise

    async def _choose(
        self, course: Course, chosen: list[ReceivedRow], left_out: list[ReceivedRow], noise: bytes, now_s: float
    ) -> None:
        """First transaction: which updates count, the seed of the noise, and what each box spends."""
        view = msgspec.structs.replace(course.shown(now_s), state="closing", n_counted=len(chosen), n_leases=0)
        row = msgspec.structs.replace(course.row)
        accounts, spent = await asyncio.to_thread(self._charged, course, chosen) if noise else ({}, {})
        row.cost = max([row.cost, *spent.values()])

        def write(db: sqlite3.Connection) -> None:
            choose(db, [each.id for each in chosen], [each.id for each in left_out])
            put_round(db, course.id, view, noise)
            for box_id, body in accounts.items():
                put_account(db, course.order.model, box_id, body)
            put_campaign(db, row)

        await self._around.spool.commits.write(write)
        course.row, course.round = row, view
        course.spent.update(spent)
        course.opened_s, course.n_down = now_s, 0
        for each in left_out:
            course.counted[each.box_id] = _left_out(each)

    def _charged(self, course: Course, chosen: list[ReceivedRow]) -> tuple[dict[str, bytes], dict[str, float]]:
        """The accounts of the boxes that count, and what each has spent then; blocks.

        An account grows by charges alone, so with each the campaigns that have ended become one figure each.
        """
        store, cost = self._around.spool.store, cost_of(course.order.privacy.noise)
        kept = store.accounts(course.order.model)
        accounts = {row.box_id: kept.get(row.box_id, Account()) for row in chosen}
        ended = store.ended({campaign for account in accounts.values() for campaign in account.open} - {course.id})
        found, spent = {}, {}
        for row in chosen:
            account, before = accounts[row.box_id], course.spent.get(row.box_id, 0.0)
            if DAMAGED in account.closed and before > account.cost:  # damaged since: what was read before it is more
                account.closed[DAMAGED] += before - account.cost
            for campaign in ended & account.open.keys():
                account.close(campaign)
            account.charge(course.id, course.round.number, cost)
            spent[row.box_id] = account.cost
            found[row.box_id] = account.encoded()
        return found, spent

    def _made(
        self, course: Course, chosen: list[ReceivedRow], noise: bytes, masked: Sum | None = None
    ) -> tuple[StepFile, float | None]:
        """The step's file, written, and its accuracy; blocks."""
        spool = self._around.spool
        made = next_step(
            course.steps,
            course.steps.newest,
            Chosen(
                order=course.order,
                layout=course.layout,
                update_layout=course.update_layout,
                up=course.up,
                clip=course.row.clip,
                noise=noise,
                rows=chosen,
                contents=lambda: spool.contents(course.id, chosen),
                n_boxes=spool.store.boxes_counted(course.id),
                masked=masked,
            ),
        )
        check_finite(made)
        accuracy = self._around.accuracy(course, as_vector(made.weights))
        return course.steps.write(made), accuracy

    async def _make_current(
        self,
        course: Course,
        made: StepFile,
        chosen: list[ReceivedRow],
        left_out: list[ReceivedRow],
        accuracy: float | None,
    ) -> None:
        """Second transaction: the step is the newest, its round closed, the next one open; the spool goes."""
        now_s, order = self._around.clock_s(), course.order
        shown = msgspec.structs.replace(course.round, seconds=course.round.seconds + (now_s - course.opened_s))
        epsilon = epsilon_for(course.row.cost, order.privacy.delta) if order.privacy.noise > 0 else 0.0
        view = msgspec.structs.replace(shown, state="closed", accuracy=accuracy, epsilon=epsilon)
        row = msgspec.structs.replace(course.row, step=made.step, n_abandoned=0, clip=made.clip)
        if made.step >= order.rounds or (order.target > 0 and accuracy is not None and accuracy >= order.target):
            row.state = "completed"
        following = RoundView(number=made.step + 1, state="open", opened_s=self._around.wall_s(), clip=made.clip)

        def write(db: sqlite3.Connection) -> None:
            for each in chosen:
                if not each.id:  # of a masked sum: what boxes sent is in no row
                    put_received(db, course.id, each, None)
            put_outcomes(db, [(each.id, "counted") for each in chosen])
            put_outcomes(db, [(each.id, "left out") for each in left_out])
            put_round(db, course.id, view)
            if row.state != "completed":
                put_round(db, course.id, following)
            put_campaign(db, row)

        await self._around.spool.commits.write(write)
        course.row, course.rounds = row, [*course.rounds, view]
        course.steps.adopt(made)
        course.open(following, now_s)
        _log.info("rounds.closed campaign=%s round=%d n=%d accuracy=%s", course.id, view.number, len(chosen), accuracy)
        large = [each for each in (*chosen, *left_out) if each.body.n_bytes > ROW_BYTES]
        if large or made.step % _PRUNE_EVERY == 0:
            candidate = frozenset() if course.candidate_step is None else frozenset({course.candidate_step})
            await asyncio.to_thread(self._tidy, course, large, candidate)
        if course.is_running:
            self._check_budget(course)

    def _tidy(self, course: Course, large: list[ReceivedRow], candidate: frozenset[int]) -> None:
        """Files that nothing needs leave, but for those of the best step and of one that is evaluated; blocks."""
        self._around.spool.forget(course.id, large)
        best = max(course.rounds, key=lambda view: view.accuracy or 0.0).number
        course.steps.prune(candidate | {best})

    def _check_budget(self, course: Course) -> None:
        """Raises `PrivacySpent` where too few boxes could take part in another round."""
        if course.order.privacy.max_epsilon > 0:
            spent = {box_id: course.spent.get(box_id, 0.0) for box_id in self._around.cohort(course)}
            check_round(course.order.privacy, spent, course.n_least)

    async def _begin_anew(self, course: Course, now_s: float, why: str = "", came: str = "") -> None:
        """Too few came in time, or no sum of them, and why: what came stays, the time begins anew."""
        came = came or f"{len(course.paying)} updates came and {course.n_least} are needed"
        row = msgspec.structs.replace(course.row, n_abandoned=course.row.n_abandoned + 1)
        if row.n_abandoned >= course.order.most_abandoned:
            row.state = "stalled"
            begun = f"round {course.round.number} was begun {row.n_abandoned} times"
            row.reason = f"{begun}, {came}: are there boxes that may take part?"
            if why:
                row.reason = f"{begun} and came to no sum: {why}{_ONE_INPUT}"
        shown = course.shown(now_s)
        view = msgspec.structs.replace(shown, state="open", n_abandoned=shown.n_abandoned + 1)

        def write(db: sqlite3.Connection) -> None:
            put_round(db, course.id, view)
            put_campaign(db, row)

        await self._around.spool.commits.write(write)
        course.row = row
        course.open(view, now_s)
        if row.state == "stalled":
            text = f"campaign {course.id} stalled: {row.reason}"
            await asyncio.to_thread(self._around.raise_alarm, "campaign_stalled", text)

    async def _end(self, course: Course, state: CampaignState, reason: str) -> None:
        row: CampaignRow = msgspec.structs.replace(course.row, state=state, reason=reason)
        view = msgspec.structs.replace(course.shown(self._around.clock_s()), state="abandoned", n_leases=0)

        def write(db: sqlite3.Connection) -> None:
            put_campaign(db, row)
            put_round(db, course.id, view)

        try:
            await self._around.spool.commits.write(write)
        except StorageError as exc:
            _log.error("rounds.end_not_written campaign=%s error=%s", course.id, exc)
        course.row = row


def _goes_on(course: Course) -> bool:
    """Whether a round is to be closed now: a person may have stopped or paused the campaign meanwhile."""
    return course.is_running or (course.round.state == "closing" and not course.has_ended)


def _outliers(course: Course, rows: list[ReceivedRow]) -> tuple[list[ReceivedRow], list[ReceivedRow]]:
    """What counts, and what is too large beside the others in the first rounds, when nothing was known of norms."""
    if course.order.privacy.noise > 0 or sum(view.n_counted for view in course.rounds) >= Limits().n_known_norms:
        return rows, []
    out = set(course.gates.outliers([row.body.norms for row in rows]))
    for index in out:
        course.gates.refuse("norm", f"norm {rows[index].body.norm:.3g} beside the others of the first rounds")
    return [row for at, row in enumerate(rows) if at not in out], [row for at, row in enumerate(rows) if at in out]


def _masked_row(course: Course, box_id: str) -> ReceivedRow:
    """What is kept of a box whose update is in a masked sum."""
    body = Received(sha256="", n_bytes=course.n_up[box_id])
    return ReceivedRow(
        id=0, step=course.row.step, box_id=box_id, round=course.round.number, outcome="counted", body=body
    )


def _left_out(row: ReceivedRow) -> ReceivedRow:
    """The same row, left out."""
    return ReceivedRow(id=row.id, step=row.step, box_id=row.box_id, round=row.round, outcome="outlier", body=row.body)
