"""The part of the agent that learns: asks for tasks, does them while nobody asks, brings what came of them.

Design: one task at a time, and none before the update of the last one has been taken for good. What is to be sent is on
the disk before it is sent, so a box that falls over sends the same bytes again, and never trains the same task twice.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from edge_agent.learning import outcomes
from edge_agent.learning.bringing import Bringing
from edge_agent.learning.conditions import LOOK_S, Conditions
from edge_agent.learning.offers import Offers
from edge_agent.learning.patience import Patience
from edge_agent.learning.personal import Personal
from edge_agent.learning.standing import CampaignStatus, LearningStatus
from edge_agent.learning.store import LearningStore
from edge_agent.learning.surroundings import Surroundings
from edge_agent.learning.tasks import Tasks
from edge_agent.learning.yielding import Yielding
from edge_agent.part import Problem
from hybrid.errors import HybridError, LinkError, Overloaded, StorageError, Warming
from hybrid.federated.messages import Held, Offer, TaskAnswer, TaskCall

WAIT_S: Final = 120.0
"""Of a poll; it ends before that where another model answers, or twice as many samples have labels."""

UPDATE_WAIT_S: Final = 20.0
MOST_HELD: Final = 16
_AFTER_GIVING_UP_S: Final = 2.0
_log = logging.getLogger("hybrid.agent.learning")


class Learning:
    """A `Part`. All methods are for the event loop.

    Attributes:
        store: what is kept.
        yielding: is told of requests.
        personal: personal layers that answer; None where none do.
    """

    name = "learning"

    def __init__(
        self,
        store: LearningStore,
        around: Surroundings,
        *,
        offers: Offers,
        conditions: Conditions,
        yielding: Yielding | None = None,
        mode: Callable[[], str] = lambda: "idle",
        personal: Personal | None = None,
    ) -> None:
        """Make the part.

        Args:
            store: of a folder; `run` opens it.
            around: of the agent.
            offers: which models could learn.
            conditions: whether the box may.
            yielding: to requests.
            mode: what the operator wishes: idle or off.
            personal: has personal layers answer; None where none do.
        """
        self.store, self.yielding = store, yielding or Yielding()
        self._around, self._offers, self._conditions, self._mode = around, offers, conditions, mode
        self.yielding.is_wanted = lambda: self._mode() != "off"
        self.personal = personal
        if personal is not None:
            personal.n_left_out = self._n_left_out
        self._patience = Patience(around.rng)
        self._tasks = Tasks(store, around, offers=offers, conditions=conditions, yielding=self.yielding)
        self._bringing = Bringing(store, around)
        self._woken = asyncio.Event()
        self._opened = ""
        self._told: tuple[object, ...] = ()
        self._poll: asyncio.Timeout | None = None
        self._n_new = self._n_told = 0
        self._has_news = False
        self._sends = False
        self._why_not = ""
        self._trouble: HybridError | None = None

    def wake(self) -> None:
        """Something changed: another wish of the operator, a sample was labelled, a model came."""
        if self._mode() == "off":
            self.yielding.give_up()
        self._has_news = True
        self._end_poll()
        self._woken.set()

    def relabelled(self, sample_id: str) -> None:
        """A sample has a label, its first or another one."""
        if self._tasks.doing is not None:
            self._tasks.doing.material.forget(sample_id)
        self._offers.relabelled()
        if self.personal is not None:
            self.personal.relabelled(sample_id)
        self._n_new += 1
        if self._n_new >= self._n_told:
            self._end_poll()
        self._woken.set()

    # A Part.

    async def run(self) -> None:
        """See `Part`."""
        answer: TaskAnswer | None = None
        try:
            while True:
                self._woken.clear()
                try:
                    pause_s, answer = await self._once(answer)
                    self._trouble = None
                except HybridError as exc:
                    pause_s, answer = self._failed(exc), None
                except TimeoutError as exc:
                    pause_s, answer = self._failed(LinkError(f"the gateway did not answer in time: {exc}")), None
                except OSError as exc:
                    pause_s, answer = self._failed(StorageError(f"the disk fails: {exc.strerror or exc}")), None
                finally:
                    self._sends = False
                if pause_s > 0:
                    await self._pause(pause_s)
        finally:
            await self._tasks.close()
            self._opened = ""
            await asyncio.to_thread(self.store.close)

    def problems(self) -> Sequence[Problem]:
        """See `Part`; to wait for power, quiet or samples is no problem."""
        found = []
        if isinstance(self._trouble, StorageError):
            what = f"learning cannot store anything: {self._trouble}"
            do = "Make room on the disk, or look at its health; inference goes on, learning begins again by itself."
            found.append(Problem(code=self._trouble.code, what=what, do=do))
        if self.store.n_begun_anew:
            what = "damaged notes of learning were set aside: an update that waited is lost, views come anew"
            do = "Look at the disk's health; remove learning.db.corrupt-* when you need it no more."
            found.append(Problem(code="learning_begun_anew", what=what, do=do))
        if self._tasks.unfit:
            do = "See `hybrid agent rounds`; `hybrid rounds report` on the gateway says whether other boxes can."
            found.append(Problem(code="learning_unfit", what=self._tasks.unfit, do=do))
        if self._tasks.damaged:
            named = ", ".join(sorted(self._tasks.damaged))
            what = f"the disk has damaged the account of the privacy spent on {named}: no task with a budget is done"
            do = (
                "Look at the disk's health. To take part again stop the agent and remove learning/learning.db of its "
                "folder: the account begins anew, an update that waits and personal layers are lost."
            )
            found.append(Problem(code="learning_account_damaged", what=what, do=do))
        return [*found, *(self.personal.problems() if self.personal is not None else ())]

    def status(self) -> LearningStatus:
        """See `Part`."""
        store, doing, mode = self.store, self._tasks.doing, self._mode()
        waiting = store.waiting  # the training thread may let go of it
        is_away = bool(self._opened) and self._around.is_away()
        now = self._tasks.now or ("brings an update" if self._sends and not is_away else "")
        why_not = self._why_not or ("its gateway cannot be reached" if is_away else "")
        return LearningStatus(
            mode=mode,
            doing=now,
            why_not="" if now or mode == "off" else why_not,
            lacking="" if mode == "off" or self._offers.lacking in why_not else self._offers.lacking,
            waiting_bytes=waiting.n_bytes if waiting is not None else 0,
            n_given_up=self._tasks.n_given_up,
            n_stood=self.yielding.n_stood,
            stood_s=round(self.yielding.longest_s, 4),
            task_cpu_s=round(doing.cpu_s, 4) if doing is not None else 0.0,
            n_unfit=doing.material.n_unfit if doing is not None else 0,
            why_unfit=doing.material.why_unfit if doing is not None else "",
            n_left_out=self._n_left_out(),
            feature_bytes=self._around.feature_bytes,
            campaigns=tuple(map(CampaignStatus.of, store.notes.values())),
            personal=self.personal.status() if self.personal is not None else (),
            n_judged=self.personal.n_judged if self.personal is not None else 0,
            n_worse=self.personal.n_worse if self.personal is not None else 0,
        )

    # Inside.

    def _n_left_out(self) -> int:
        doing = self._tasks.doing
        return doing.material.n_left_out if doing is not None else 0

    async def _once(self, answer: TaskAnswer | None) -> tuple[float, TaskAnswer | None]:
        """One step: the pause before the next one, and an answer that is to be looked at then."""
        self._has_news = False
        gateway = self._around.gateway()
        if not gateway:
            self._why_not = "this box is in no fleet, or asks no gateway"
            if self.personal is not None:
                await self.personal.plainly()
            return LOOK_S, None
        if gateway != self._opened:
            await asyncio.to_thread(self.store.close)
            await asyncio.to_thread(self.store.open, gateway)
            self._opened, self._told = gateway, ()
        if answer is None and self.store.owes:
            await asyncio.to_thread(self.store.pay)
        candidates = await self._offers.now()
        is_off = self._mode() == "off"
        why_not = "" if is_off else await self._conditions.lately()
        if self.personal is not None:
            in_hand = answer is not None or self.store.waiting is not None  # a lease ends, an update grows stale
            may_fit = not is_off and not why_not and not in_hand
            await self.personal.look(candidates, self._tasks.fitted if may_fit else None)
        if answer is None:
            self._tasks.rest()
        if is_off:
            self._why_not = ""
            return LOOK_S, None
        self._n_new = 0
        offers = await self._offers.look(candidates)
        self._why_not = why_not or self._offers.why_none
        if self.store.waiting is not None:
            return await self._bring(offers)
        if answer is not None and answer.task is not None:
            if not await self._tasks.take(answer.task, candidates, self._why_not):
                return self._around.rng.uniform(0.0, _AFTER_GIVING_UP_S), None
            return 0.0, None
        if self._why_not:
            return LOOK_S, None
        call = self._call(offers, WAIT_S)
        answer = await self._polled(call, offers)
        return (0.0, None) if answer is None else await self._heard(call, answer, offers)

    async def _polled(self, call: TaskCall, offers: tuple[Offer, ...]) -> TaskAnswer | None:
        """Ask; None where what there is to offer became another thing meanwhile: it is to be told at once."""
        self._n_told = sum(offer.n_samples for offer in offers)
        if self._has_news or self._n_new >= self._n_told:
            return None  # since it was looked at what there is
        poll = asyncio.timeout(None)
        try:
            async with poll:
                self._poll = poll
                return await self._around.calls.task(call)
        except TimeoutError:
            if not poll.expired():
                raise
            return None
        finally:
            self._poll = None

    def _end_poll(self) -> None:
        if self._poll is not None and self._poll.when() is None:
            self._poll.reschedule(asyncio.get_running_loop().time())

    async def _bring(self, offers: tuple[Offer, ...]) -> tuple[float, TaskAnswer | None]:
        """Bring the update that waits, and ask for the next task with it."""
        waiting = self.store.waiting
        note = self.store.notes.get(waiting.campaign) if waiting is not None else None
        if note is not None and self._conditions.condition.is_metered and not note.is_metered:
            self._why_not = "an update waits for a link that is not metered"
            return LOOK_S, None
        self._sends = True
        call = None if self._why_not else self._call(offers, UPDATE_WAIT_S)
        answer = await self._bringing.bring(call)
        self._patience.succeeded()
        if call is None or answer is None:
            return 0.0, None
        return await self._heard(call, answer, offers)

    async def _heard(
        self, call: TaskCall, answer: TaskAnswer, offers: tuple[Offer, ...]
    ) -> tuple[float, TaskAnswer | None]:
        """What follows from an answer; one without a task is none."""
        self._patience.succeeded()
        condition = self._conditions.condition
        self._told = () if answer.is_forgotten else (offers, condition)
        self._tasks.is_metered = condition.is_metered
        self._tasks.refused = [task for task in self._tasks.refused if task not in call.refused]
        if answer.ended:
            await asyncio.to_thread(outcomes.ended, self.store, answer.ended)
        if answer.task is not None or answer.is_forgotten:
            return 0.0, answer
        return self._around.rng.uniform(0.0, max(0.0, answer.poll_after_s)), None

    def _call(self, offers: tuple[Offer, ...], wait_s: float) -> TaskCall:
        condition = self._conditions.condition
        notes = [note for note in self.store.notes.values() if not note.is_over and note.step >= 0]
        is_as_before = self._told == (offers, condition)
        call = TaskCall(
            epoch=self._around.epoch(),
            wait_s=wait_s,
            held=tuple(Held(campaign=note.id, step=note.step) for note in notes[-MOST_HELD:]),
            refused=tuple(self._tasks.refused),
            is_as_before=is_as_before,
        )
        return call if is_as_before else msgspec.structs.replace(call, offers=offers, condition=condition)

    def _failed(self, error: HybridError) -> float:
        self._trouble = error
        self._told = ()
        self._why_not = f"its gateway says: {error}" if isinstance(error, Overloaded | Warming) else str(error)
        pause_s = self._patience.failed(error)
        if self._patience.is_worth_a_line:
            _log.warning("learning.waits code=%s pause_s=%.1f error=%s", error.code, pause_s, error)
        return pause_s

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                if self._patience.n_failures:
                    await asyncio.sleep(pause_s)  # news do not shorten a pause after failures
                await self._woken.wait()
