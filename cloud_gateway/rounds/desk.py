"""The desk of all campaigns: what boxes ask, each call a message in and a message out, without any transport.

Design: everything is decided in memory on the event loop. What an answer promises is on the disk before it leaves; a
lease promises nothing and is kept nowhere (`papers.py`). A box that waits is woken when a step, a place or a candidate
is there for it.
"""

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from cloud_gateway.fleet.assignments import matches
from cloud_gateway.fleet.steering.desired import BoxDirectory, BoxView
from cloud_gateway.fleet.steering.herd import WAIT_MOST_S, HerdLimits
from cloud_gateway.fleet.steering.polls import WaitingPolls
from cloud_gateway.rounds.cohort.offers import Asked, keeps_out
from cloud_gateway.rounds.cohort.rosters import is_listed
from cloud_gateway.rounds.course.course import Course
from cloud_gateway.rounds.course.masking import Masking
from cloud_gateway.rounds.course.papers import TaskNames, task_seed
from cloud_gateway.rounds.course.taking import Taking
from cloud_gateway.rounds.kept.steps import payload
from cloud_gateway.rounds.kept.store import put_counts
from hybrid.errors import BadMessage, Forbidden, NotFound, Overloaded, VersionUnsupported
from hybrid.federated.messages import (
    EXACT,
    PROTOCOL,
    EvaluationAnswer,
    EvaluationCall,
    SecureAnswer,
    SecureCall,
    Task,
    TaskAnswer,
    TaskCall,
    TaskKind,
    UpdateAnswer,
    UpdateCall,
    Weights,
)
from hybrid.hosting.proof_route import RateLimit

IDLE_CALLS_PER_S: Final = 1.0
IDLE_CALLS_AT_ONCE: Final = 60.0
"""Of one box, that come to nothing: updates without a lease or for the second time, calls for a task that neither
got one nor waited. What a lease leads to is bounded by the leases themselves."""
MASKED_CALLS_PER_S: Final = 20.0
MASKED_CALLS_AT_ONCE: Final = 200.0
"""Of one box; a round takes five, and more where calls are lost."""
_WAITED_S: Final = 1.0
_REMEMBERED: Final = 20_000
_TRAINING: Final[tuple[TaskKind, ...]] = ("train", "secure")
_CLOSING_S: Final = 30.0
"""Longest that an update waits for a round that closes at this moment."""


class RoundsDesk:
    """What boxes ask of campaigns. All methods belong to the event loop.

    Attributes:
        courses: campaigns that have not ended, by id; `maskings`: the masked rounds of those that have such.
        asked: what each box told with its last call for a task.
        polls: calls that wait.
        changed: called with a campaign's id when something of it changed.
        n_tasks, n_updates, n_refused: calls since the start, and those refused for their number.
    """

    def __init__(
        self,
        taking: Taking,
        names: TaskNames,
        boxes: BoxDirectory,
        *,
        clock_s: Callable[[], float],
        limits: HerdLimits | None = None,
    ) -> None:
        """Nothing is touched.

        Args:
            taking: takes updates in.
            names: of tasks.
            boxes: the registry of boxes.
            clock_s: a clock that only runs forward.
            limits: of the herd.
        """
        self._taking = taking
        self._names = names
        self._boxes = boxes
        self._clock_s = clock_s
        self._limits = limits or HerdLimits(least_poll_after_s=1.0)
        self._rates = RateLimit(per_s=IDLE_CALLS_PER_S, burst=IDLE_CALLS_AT_ONCE)
        self._masked_rates = RateLimit(per_s=MASKED_CALLS_PER_S, burst=MASKED_CALLS_AT_ONCE)
        self.asked: OrderedDict[str, Asked] = OrderedDict()
        self._calls: OrderedDict[str, int] = OrderedDict()
        self._closed: dict[str, asyncio.Event] = {}
        self.courses: dict[str, Course] = {}
        self.maskings: dict[str, Masking] = {}
        self.polls = WaitingPolls(self._limits)
        self.changed: Callable[[str], None] = _nothing
        self.n_tasks = self.n_updates = self.n_refused = 0

    # What boxes ask.

    async def task(self, box_id: str, call: TaskCall) -> TaskAnswer:
        """A lease, or none; waits for one as long as the box asks.

        Raises:
            VersionUnsupported: the box is too old or too new.
            Overloaded: too many calls wait, or too many of this box came to nothing.
        """
        began_s = self._clock_s()
        self._count(box_id)
        answer = await self._task(box_id, call)
        if answer.task is not None or answer.ended or self._clock_s() - began_s >= _WAITED_S:
            self._rates.give_back(box_id)
        return answer

    async def _task(self, box_id: str, call: TaskCall) -> TaskAnswer:
        check_protocol(call.protocol)
        self.n_tasks += 1
        box = self._known(box_id)
        asked = self._remember(box_id, call)
        if asked is None:
            return TaskAnswer(is_forgotten=True)
        self._take_back(box_id, call.refused)
        number = self._calls[box_id] = self._calls.pop(box_id, 0) + 1
        while len(self._calls) > _REMEMBERED:
            self._calls.popitem(last=False)
        until_s = self._clock_s() + (min(max(call.wait_s, 0.0), WAIT_MOST_S) if math.isfinite(call.wait_s) else 0.0)
        while True:
            task, ended = self._task_for(box, asked), self._ended(asked)
            left_s = until_s - self._clock_s()
            if task is not None or ended or left_s <= 0 or self.polls.is_released:
                break
            n_boxes = len(self._boxes.all())
            await self.polls.wait(box_id, "", left_s, n_boxes)
            if self._calls.get(box_id) != number:  # a newer call of this box waits in its place
                break
            box = self._known(box_id)
        n_boxes = len(self._boxes.all())
        return TaskAnswer(task=task, ended=ended, poll_after_s=0.0 if task else self._limits.poll_after_s(n_boxes))

    async def update(self, box_id: str, call: UpdateCall) -> UpdateAnswer:
        """Take in what a box learned, once; and give it its next task, where it asks.

        Raises:
            Conflict: another content came under that task before.
            NotFound: its content was to be brought before.
            Overloaded: too many calls of this box came to nothing.
            DiskFull, StorageError: it is not kept; the same again later.
        """
        check_protocol(call.protocol)
        self.n_updates += 1
        self._known(box_id)
        course = self.courses.get(call.campaign)
        is_of_use = course is not None and self._taking.is_first(course, box_id, call)
        self._count(box_id)
        answer = await self._take(box_id, call)
        if is_of_use:
            self._rates.give_back(box_id)
        if call.next is None:
            return answer
        following = msgspec.structs.replace(call.next, epoch=call.epoch)
        return msgspec.structs.replace(answer, next=await self._task(box_id, following))

    async def _take(self, box_id: str, call: UpdateCall) -> UpdateAnswer:
        course = self.courses.get(call.campaign)
        known = await self._taking.known(course, box_id, call)  # no closing changes what was said
        while known is None and course is not None and not course.has_ended:
            if not (course.closing or course.is_half_closed):
                break
            await self._until_closed(course)
            known = await self._taking.known(course, box_id, call)
        if known is not None:
            return known
        if course is None or course.has_ended:
            return UpdateAnswer(state="closed", reason="this campaign has ended, or is not this gateway's")
        answer = await self._taking.take(course, box_id, call)
        self.changed(course.id)
        if answer.state != "accepted":
            self.wake()  # its place is free
        return answer

    async def weights(self, box_id: str, campaign: str, step: int, have: int) -> Weights:
        """A step's weights from the view that a box holds.

        Raises:
            NotFound: no such campaign or step. CorruptContent: the step is damaged.
        """
        self._known(box_id)
        course = self.courses.get(campaign)
        if course is None:
            raise NotFound(f"no campaign {campaign[:20]!r} runs here")
        found = await asyncio.to_thread(course.steps.fetched, step, have)
        if have != EXACT:
            course.n_down += payload(found)
        return found

    async def evaluation(self, box_id: str, call: EvaluationCall) -> EvaluationAnswer:
        """Take in how a candidate answered on a box's own samples.

        Raises:
            BadMessage: counts that cannot be.
            DiskFull, StorageError: they are not kept.
        """
        check_protocol(call.protocol)
        self._known(box_id)
        course = self.courses.get(call.campaign)
        is_ours = self._names.is_right(call.task, call.campaign, call.step, box_id, "evaluate")
        if course is None or not is_ours or course.candidate_step != call.step:
            return EvaluationAnswer(state="closed")
        right = (call.n_right, call.n_base_right, call.n_lost, call.n_won)
        if not 0 <= call.n < 1 << 40 or any(not 0 <= count <= call.n for count in right):
            raise BadMessage(f"{right} of {call.n} samples cannot be")
        if call.n_right - call.n_base_right != call.n_won - call.n_lost:
            raise BadMessage("won and lost do not make the difference of what was right")
        body = {"n": call.n, "n_right": call.n_right, "n_base_right": call.n_base_right}
        body |= {"n_lost": call.n_lost, "n_won": call.n_won}
        if box_id not in course.evaluated:
            await self._taking.commits.write(lambda db: put_counts(db, course.id, call.step, box_id, body))
            course.evaluated[box_id] = body
            self.changed(course.id)
        return EvaluationAnswer(state="accepted")

    async def secure(self, box_id: str, call: SecureCall) -> SecureAnswer:
        """One stage of secure aggregation. Raises `Overloaded` beside what `Masking.answer` does."""
        check_protocol(call.protocol)
        self._known(box_id)
        if not self._masked_rates.allows(box_id, self._clock_s()):
            self.n_refused += 1
            raise Overloaded(f"more than {MASKED_CALLS_PER_S:g} masked calls a second of this box", retry_after_s=2.0)
        masking = self.maskings.get(call.campaign)
        if masking is None:
            return SecureAnswer(state="excluded", reason="no secure campaign of that name runs here")
        course = self.courses.get(call.campaign)
        if course is not None:
            course.n_up[box_id] += len(call.content)
        try:
            return await masking.answer(box_id, call)
        finally:
            self.changed(call.campaign)

    # What the rest of the gateway tells it.

    def wake(self) -> None:
        """Something is there for boxes that wait: each looks whether it is for it."""
        for box_id in self.polls.box_ids():
            self.polls.wake(box_id)

    def closed(self, course: Course) -> None:
        """A round is no longer closing."""
        self.changed(course.id)
        event = self._closed.pop(course.id, None)
        if event is not None:
            event.set()
        self.wake()

    async def release(self, within_s: float) -> None:
        """Let waiting calls go, spread over the time."""
        await self.polls.release(within_s, random.Random())  # noqa: S311 (nothing secret is drawn)

    # Inside.

    def _count(self, box_id: str) -> None:
        """One call more of a box, which is given back where it comes to something."""
        if not self._rates.allows(box_id, self._clock_s()):
            self.n_refused += 1
            raise Overloaded(
                f"more than {IDLE_CALLS_AT_ONCE:g} calls of this box came to nothing, updates that were known or had "
                f"no lease, calls for a task that did not wait: {IDLE_CALLS_PER_S:g} a second is taken from now on",
                retry_after_s=5.0,
            )

    def _known(self, box_id: str) -> BoxView:
        box = self._boxes.find(box_id)
        if box is None:
            raise Forbidden("this gateway knows no such box; enrol it again")
        return box

    async def _until_closed(self, course: Course) -> None:
        event = self._closed.setdefault(course.id, asyncio.Event())
        try:
            async with asyncio.timeout(_CLOSING_S):
                await event.wait()
        except TimeoutError as exc:
            raise Overloaded("the round is being closed; bring the update again", retry_after_s=10.0) from exc

    def _remember(self, box_id: str, call: TaskCall) -> Asked | None:
        """What a box offers; None where it says `as before` and nobody remembers."""
        if call.is_as_before:
            before = self.asked.get(box_id)
            if before is None:
                return None
            asked = msgspec.structs.replace(before, held={each.campaign: each.step for each in call.held})
        else:
            asked = Asked.of(call)
        self.asked.pop(box_id, None)
        self.asked[box_id] = asked
        while len(self.asked) > _REMEMBERED:
            self.asked.popitem(last=False)
        return asked

    def _take_back(self, box_id: str, names: Iterable[str]) -> None:
        """Tasks that a box gave up free their places."""
        wanted = set(names)
        if not wanted:
            return
        for course in self.courses.values():
            names = {
                self._names.name(course.id, step, box_id, kind) for step in course.known_steps for kind in _TRAINING
            }
            if wanted & names:  # also of a lease that a restart forgot
                course.give_up(box_id)
                self.changed(course.id)
                self.wake()
            step = course.candidate_step
            if step is not None and self._names.name(course.id, step, box_id, "evaluate") in wanted:
                course.declined.add(box_id)
                self.changed(course.id)

    def _ended(self, asked: Asked) -> tuple[str, ...]:
        return tuple(campaign for campaign in asked.held if campaign not in self.courses)

    def _task_for(self, box: BoxView, asked: Asked) -> Task | None:
        """What there is to do for a box now; a lease is given where it is no more than asked for again."""
        if box.admission != "admitted":
            return None
        for course in self.courses.values():
            held = asked.holds(course)
            order = course.order
            if held is None or not matches(order.cohort.tags, box.tags) or not is_listed(order, box.id):
                continue
            task = self._evaluate_task(course, box.id) or self._train_task(course, box.id, asked, held)
            if task is not None:
                self.changed(course.id)
                return task
        return None

    def _evaluate_task(self, course: Course, box_id: str) -> Task | None:
        step = course.candidate_step
        if step is None or box_id in course.evaluated or box_id in course.declined:
            return None
        weights = course.candidate_weights
        assert weights is not None
        return Task(
            id=self._names.name(course.id, step, box_id, "evaluate"),
            campaign=course.id,
            kind="evaluate",
            weights=weights,
            terms=course.terms,
            lease_s=course.order.lease_s,
        )

    def _train_task(self, course: Course, box_id: str, asked: Asked, held: int) -> Task | None:
        if not course.is_running or course.closing or course.is_done_with(box_id):
            return None
        if keeps_out(course.order, asked, course.spent.get(box_id, 0.0)):
            return None
        masking = self.maskings.get(course.id)
        if masking is not None and not masking.has_room:
            return None
        now_s = self._clock_s()
        if box_id not in course.leases and not course.has_room() and not (course.expire(now_s) and course.has_room()):
            return None
        weights = course.steps.inline(held)
        step = course.row.step
        kind: TaskKind = "train" if masking is None else "secure"
        return Task(
            id=self._names.name(course.id, step, box_id, kind),
            campaign=course.id,
            kind=kind,
            weights=weights,
            terms=None if course.id in asked.held else course.terms,
            lease_s=course.lease(box_id, now_s, payload(weights)),
            seed=task_seed(course.order.seed, step, box_id),
            clip=course.row.clip,
            secure=b"" if masking is None else masking.invitation,
        )


def check_protocol(theirs: int) -> None:
    """Return if this gateway speaks a box's version of the calls. Raises `VersionUnsupported`."""
    if theirs != PROTOCOL:
        raise VersionUnsupported(
            f"the box speaks version {theirs} of the rounds' calls, this gateway {PROTOCOL}; upgrade the older side",
            mine=PROTOCOL,
            theirs=theirs,
        )


def _nothing(campaign: str) -> None:
    """Nobody wants to know."""
