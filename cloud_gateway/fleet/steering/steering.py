"""What boxes should be and how they are: state calls, reports, assignments and rollouts, without any transport.

Design: everything is decided in memory on the event loop (`ledger.py`); a task lets time pass for rollouts,
and writes what changed in one transaction. What a person orders is on the disk before it is answered, as is a report
from an outbox; what a state call tells may wait for the next write, since each call tells all of it again.
"""

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from cloud_gateway.fleet.assignments import Assignment, Terms
from cloud_gateway.fleet.rollouts.rollout import Member, Plan
from cloud_gateway.fleet.steering.desired import BoxView, Rollout, generation_of
from cloud_gateway.fleet.steering.herd import HerdLimits
from cloud_gateway.fleet.steering.ledger import Ledger
from cloud_gateway.fleet.steering.neighbours import Neighbours
from cloud_gateway.fleet.steering.polls import WaitingPolls
from cloud_gateway.fleet.steering.reports import BoxState
from cloud_gateway.fleet.steering.store import HistoryEntry, RolloutStore
from hybrid.errors import Conflict, Forbidden, HybridError, NotAdmitted, NotFound, Overloaded, StorageError
from hybrid.fleet.messages import Installed, StateAnswer, StateCall

_log = logging.getLogger("hybrid.gateway.fleet")

TICK_S: Final = 5.0
_SOON_S: Final = 0.2
_LOST_TIME_S: Final = 30.0
"""A longer pause between two ticks was no time in which boxes could tell anything: the machine stood still."""


class Steering:
    """One gateway's fleet, as boxes see it. All methods belong to the event loop, but for `box_changed` and `seen`.

    Attributes:
        boxes: the registry of boxes.
        ledger: assignments, rollouts and last words.
        lost: what a damaged disk took, in words; empty for nothing.
        polls: the calls that wait.
        n_calls, n_refused: state calls, and those refused for their number.
        n_halted: rollouts that halted since the start.
    """

    def __init__(
        self,
        path: Path,
        around: Neighbours,
        *,
        now_s: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        connect: Callable[[Path], sqlite3.Connection] | None = None,
        limits: HerdLimits | None = None,
    ) -> None:
        """Open what is kept; blocks for as long as that takes.

        Args:
            path: the database; the file of assignments lies beside it.
            around: what it leans on.
            now_s: this machine's clock, seconds since 1970.
            rng: for ids and for spreading.
            connect: in place of SQLite on this machine's disk.
            limits: of the herd.

        Raises:
            DiskFull, StorageError: the disk refused.
        """
        self._around = around
        self.boxes = around.boxes
        self._now_s = now_s
        self._rng = rng or random.Random()  # noqa: S311 (nothing secret is drawn)
        self._limits = limits or HerdLimits()
        self._store = RolloutStore(path, connect)
        kept = self._store.load()
        self.lost = kept.lost
        self._is_blind = kept.is_blind
        self.ledger = Ledger(kept, around.boxes, now_s=now_s, rng=self._rng)
        self.polls = WaitingPolls(self._limits)
        self._writing = asyncio.Lock()
        self._soon = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_s = 0.0
        self._told_trust: dict[str, int] = {}
        self.n_calls = self.n_refused = self.n_halted = 0

    @property
    def poll_after_s(self) -> float:
        """Upper end of the random pause that a box makes between two calls, at the present size of the fleet."""
        return self._limits.poll_after_s(len(self.boxes.all()))

    # What boxes ask.

    async def state(self, box_id: str, call: StateCall) -> StateAnswer:
        """Answer a state call: at once when the box should be something else than it says, else when that is so.

        Raises:
            Forbidden: there is no such box.
            NotAdmitted: it is not admitted (any more); what it runs goes on.
            Overloaded: too many calls wait, or what boxes should run is not known at present.
        """
        box = self._known(box_id)
        self.n_calls += 1
        self._hear(box, call)
        known, wait_s = call.known, call.wait_s
        answer = self._answer(box, call.trust_sequence)
        if self._is_blind:
            raise Overloaded(
                "this gateway lost what boxes should run: they go on with what they have until a person assigns it",
                retry_after_s=self._limits.most_poll_after_s,
            )
        trust_sequence = call.trust_sequence
        if answer.generation == known and not self._has_news(box_id, trust_sequence):
            del call, answer  # a waiting call should weigh little
            try:
                await self.polls.wait(box_id, known, wait_s, len(self.boxes.all()))
            except Overloaded:
                self.n_refused += 1
                raise
            box = self._known(box_id)
            answer = self._answer(box, trust_sequence)
            self.ledger.note_seen(box_id)
            self._state_of(box_id).seen_s = self._now_s()
        return answer

    async def take_report(self, box_id: str, report: Installed, item_id: int, made_s: float) -> None:
        """Take over a report from a box's outbox; on the disk when this returns. The same one again changes nothing.

        Raises:
            StorageError: it is not kept.
        """
        await self.take_reports(((box_id, report, item_id, made_s),))

    async def take_reports(self, reports: Sequence[tuple[str, Installed, int, float]]) -> None:
        """Take over many of them, in their order and with one write: box, report, its item's id, when it was made.

        Raises:
            StorageError: none of them is kept.
        """
        for box_id, report, item_id, made_s in reports:
            told = self._state_of(box_id).note_report(report, item_id, made_s)
            self.ledger.note_seen(box_id)
            if self.ledger.note_told(box_id, [told] if told is not None else []):
                self._soon.set()
        await self._write()

    def seen(self, box_id: str) -> None:
        """A box was heard of by another call. May be called from any thread."""
        self._call_soon(lambda: self.ledger.note_seen(box_id))

    def box_changed(self, box_id: str) -> None:
        """A box came, went, or has other tags. May be called from any thread."""
        self._call_soon(lambda: self._place(box_id))

    # What people order. Each is on the disk when it returns.

    async def assign(
        self,
        model: str,
        version: str | None,
        selector: Mapping[str, str],
        terms: Terms,
        who: str,
        *,
        anew: bool = False,
    ) -> Assignment:
        """Let boxes with these tags run a version.

        Raises:
            NotFound: there is no such version here.
            Conflict: a rollout of that model runs on some of the boxes; or all assignments were lost, and `anew` is not
                said.
        """
        self._check_sight(anew=anew)
        record = await asyncio.to_thread(self._around.versions.resolve, model, version)
        made = self.ledger.assign(
            Assignment(
                id=0,
                model=model,
                version=record.version,
                artifact_digest=record.artifact_digest,
                selector=dict(selector),
                terms=terms,
                made_s=self._now_s(),
                made_by=who,
            )
        )
        self._is_blind = False
        await self._ordered()
        return made

    async def unassign(self, model: str, selector: Mapping[str, str]) -> Assignment:
        """End an assignment. Raises `NotFound`."""
        gone = self.ledger.unassign(model, dict(selector))
        await self._ordered()
        return gone

    async def start(self, plan: Plan, *, queue: bool = False) -> Rollout:
        """Begin a rollout; the plan's id, digest, version and former version are filled in here.

        Raises:
            NotFound: no such version, or no box with these tags.
            Conflict: another rollout of that model runs on some of the boxes.
        """
        from msgspec.structs import replace

        self._check_sight(anew=False)
        record = await asyncio.to_thread(self._around.versions.resolve, plan.model, plan.version or None)
        same = [a for a in self.ledger.assignments if a.model == plan.model and a.selector == plan.selector]
        plan = replace(
            plan,
            id=self.ledger.fresh_id(),
            version=record.version,
            artifact_digest=record.artifact_digest,
            previous=same[0].label if same else "",
            made_s=self._now_s(),
        )
        if same and same[0].artifact_digest == plan.artifact_digest:
            raise Conflict(f"{plan.label} is assigned to these boxes already; there is nothing to roll out")
        rollout = self.ledger.start(plan, queue=queue)
        await self._ordered()
        return rollout

    async def order(self, what: str, rollout_id: str, who: str) -> Rollout:
        """`pause`, `resume`, `abort` or `complete` a rollout.

        Raises:
            NotFound: no such rollout, or no such order.
            Conflict: not in the state that it is in.
        """
        orders = {
            "pause": self.ledger.pause,
            "resume": self.ledger.resume,
            "abort": self.ledger.abort,
            "complete": self.ledger.complete,
        }
        if what not in orders:
            raise NotFound(f"{what[:40]!r} is no order; give {', '.join(orders)}")
        rollout = orders[what](rollout_id, who)
        await self._ordered()
        return rollout

    async def history(self, rollout_id: str) -> tuple[HistoryEntry, ...]:
        """What happened in a rollout, oldest first."""
        await self._write()
        return await asyncio.to_thread(self._store.history, rollout_id)

    async def members(self, rollout: Rollout) -> dict[str, Member]:
        """The boxes of a rollout; those of one that ended are read from the disk."""
        if rollout.members or rollout.figures is None:
            return rollout.members
        return await asyncio.to_thread(self._store.members, rollout.plan.id)

    # How it lives.

    async def run(self) -> None:
        """Let time pass for rollouts, wake boxes, write what changed; until cancelled."""
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        if self.lost:
            await asyncio.to_thread(self._alarm, "rollouts_lost", self.lost)
        for box in self.boxes.all():
            self.ledger.note_box(box.id)
        while True:
            try:
                async with asyncio.timeout(TICK_S):
                    await self._soon.wait()
                await asyncio.sleep(_SOON_S)  # boxes that tell at the same moment are looked at together
            except TimeoutError:
                pass
            self._soon.clear()
            try:
                await self._tick()
            except Exception:  # noqa: BLE001 (a fault of ours must not end the fleet's life; the next tick tries again)
                _log.exception("fleet.tick_fault")

    async def _tick(self) -> None:
        now_s = asyncio.get_running_loop().time()
        elapsed_s, self._last_s = min(now_s - self._last_s, _LOST_TIME_S), now_s
        for box_id in self.polls.box_ids():
            self.ledger.note_seen(box_id)
        halted = self.ledger.advance(elapsed_s)
        self.n_halted += len(halted)
        try:
            await self._write()
        except StorageError as exc:  # a full disk must not end the task; what could not be written is kept in memory
            _log.error("fleet.rollouts_not_written error=%s", exc)
        await self._wake()
        for rollout in halted:
            text = f"rollout {rollout.plan.id} of {rollout.plan.label} halted: {rollout.course.reason}"
            await asyncio.to_thread(self._alarm, "rollout_halted", text)

    async def release(self, within_s: float) -> None:
        """Let waiting calls go, spread over the time; before the gateway stops."""
        await self.polls.release(within_s, self._rng)

    def close(self) -> None:
        """Write what is not written, and close the disk; blocks, and belongs to the end."""
        try:
            self._store.write(self.ledger.take_changes())
        finally:
            self._store.close()

    # Inside.

    def _known(self, box_id: str) -> BoxView:
        box = self.boxes.find(box_id)
        if box is None:
            raise Forbidden("this gateway knows no such box; enrol it again")
        if box.admission != "admitted":
            raise NotAdmitted(f"box {box.name} is {box.admission}; what it runs goes on", admission=box.admission)
        return box

    def _state_of(self, box_id: str) -> BoxState:
        state = self.ledger.states.get(box_id)
        if state is None:
            state = self.ledger.states[box_id] = BoxState()
        return state

    def _hear(self, box: BoxView, call: StateCall) -> None:
        told = self._state_of(box.id).note_call(call, self._now_s())
        self.ledger.note_seen(box.id)
        if self.ledger.note_told(box.id, told):
            self._soon.set()

    def _check_sight(self, *, anew: bool) -> None:
        if self._is_blind and not anew:
            raise Conflict(
                f"{self.lost}. The first assignment makes boxes remove all other models; say --anew if that is wanted",
                advice="Bring back assignments.record from a backup and restart the gateway, or assign with --anew.",
            )

    def _has_news(self, box_id: str, trust_sequence: int) -> bool:
        """Whether a newer trust bundle was not told to this box yet; one that it did not take is no news again."""
        bundle = self._around.trust()
        newest = bundle[0] if bundle is not None else -1
        is_news = newest > trust_sequence and self._told_trust.get(box_id, -1) < newest
        self._told_trust[box_id] = newest
        return is_news

    def _answer(self, box: BoxView, trust_sequence: int) -> StateAnswer:
        models = self.ledger.desired(box)
        bundle = self._around.trust()
        return StateAnswer(
            generation=generation_of(models, box.tags),
            models=models,
            trust=bundle[1] if bundle is not None and bundle[0] > trust_sequence else None,
            poll_after_s=self.poll_after_s,
            tags=box.tags,
            admission=box.admission,
        )

    def _generation(self, box_id: str) -> str | None:
        box = self.boxes.find(box_id)
        return generation_of(self.ledger.desired(box), box.tags) if box is not None else None

    def _place(self, box_id: str) -> None:
        self.ledger.note_box(box_id)
        self.polls.wake(box_id)

    async def _ordered(self) -> None:
        await self._write()
        await self._wake()

    async def _wake(self) -> None:
        await self.polls.wake_changed(self._generation)

    async def _write(self) -> None:
        async with self._writing:
            changes = self.ledger.take_changes()
            if changes.is_empty:
                return
            work = asyncio.ensure_future(asyncio.to_thread(self._store.write, changes))
            try:
                await asyncio.shield(work)
            except BaseException:
                await asyncio.wait((work,))  # a thread cannot be cancelled: what it writes is not written again
                if work.exception() is not None:
                    self.ledger.give_back(changes)
                raise
            self.ledger.shed()

    def _alarm(self, kind: str, text: str) -> None:
        try:
            self._around.raise_alarm(kind, "", text)
        except HybridError as exc:
            _log.warning("fleet.alarm_not_kept kind=%s error=%s", kind, exc)

    def _call_soon(self, work: Callable[[], None]) -> None:
        """Do something on the loop, also from another thread; before the loop runs there is nothing to do."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)
