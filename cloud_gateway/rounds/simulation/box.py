"""A virtual box: the boxes' own learner, called as the agent calls it, over a link and a machine of the catalog.

What it sends and gets is packed and unpacked as on the wire, and takes as long as its bytes take on its link; training
takes as long as its machine would, by a model (`Machine.train_s`). It drops out of tasks, goes away and comes back.
"""

import asyncio
import dataclasses
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Final, TypeVar

import msgspec
import numpy as np

from cloud_gateway.rounds.desk import RoundsDesk
from cloud_gateway.rounds.simulation.attack import Attack, attacked
from cloud_gateway.rounds.simulation.masked import MaskedPart, SimulatedKey
from cloud_gateway.rounds.simulation.settings import Machine
from hybrid.errors import Conflict, DigestMismatch, HybridError, Overloaded
from hybrid.federated.box.views import BASE_STEP, view_of
from hybrid.federated.box.work import Learnable, Learned, Left, Work, given_back, wire_layout
from hybrid.federated.coding.catalog import form
from hybrid.federated.learning.examples import Examples
from hybrid.federated.messages import (
    INLINE_BYTES,
    Held,
    Offer,
    SecureAnswer,
    SecureCall,
    Task,
    TaskAnswer,
    TaskCall,
    Terms,
    UpdateAnswer,
    UpdateCall,
    Weights,
    encoded,
)

_WAIT_S: Final = 240.0
_NEXT_WAIT_S: Final = 60.0
_AGAIN_S: Final = 5.0
_REBOOT_S: Final = 600.0
_NOT_AGAIN: Final = ("norm", "finite")
_ASK_BYTES: Final = 120
_AWAY_S: Final = 3600.0
_STAGES: Final = 5
_Message = TypeVar("_Message", TaskCall, UpdateCall, SecureCall)
_Answer = TypeVar("_Answer", TaskAnswer, UpdateAnswer, SecureAnswer)


class _Vanished(Exception):
    """The box fell over in the middle of a task."""


@dataclass(slots=True)
class Traffic:
    """What a box sent and got, in bytes of messages, and what became of its work.

    Attributes:
        outcomes: of its updates.
        failures: tasks that it could not do, and calls that were refused, by the error.
        n_dropped: tasks in the middle of which it fell over.
        train_s: that it trained, in virtual seconds.
    """

    n_bytes_up: int = 0
    n_bytes_down: int = 0
    n_calls: int = 0
    n_dropped: int = 0
    train_s: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True, kw_only=True)
class Learner:
    """What a box has.

    Attributes:
        learnable: the head of its model.
        examples: its samples.
        offer: what it tells of them.
        machine: how fast it trains and its link carries.
        drops_ratio: chance that it falls over in a task.
        away_ratio: share of the time that it is away.
        attack: what it sends in place of what it learned; None for an honest box.
        key: for masked rounds.
    """

    learnable: Learnable
    examples: Examples
    offer: Offer
    machine: Machine
    drops_ratio: float = 0.0
    away_ratio: float = 0.0
    attack: Attack | None = None
    key: SimulatedKey | None = None


class VirtualBox:
    """One box. Attributes: traffic, what it cost and brought."""

    def __init__(
        self, box_id: str, learner: Learner, desk: RoundsDesk, put_blob: Callable[[str, str, bytes], None], seed: int
    ) -> None:
        self._id, self._learner, self._desk, self._put_blob = box_id, learner, desk, put_blob
        self._rng = Random(f"{seed} {box_id}")  # noqa: S311 (nothing secret is drawn)
        self._terms: Terms | None = None
        self._campaign = ""
        self._held: tuple[int, np.ndarray] | None = None
        self._left = Left()
        self._told = False
        self._refused: tuple[str, ...] = ()
        self._n_inputs: Counter[int] = Counter()
        self._leaves_s = self._drawn_leave()
        self.traffic = Traffic()

    async def live(self, starts_within_s: float) -> None:
        """Ask for tasks and do them, until cancelled."""
        await asyncio.sleep(self._rng.uniform(0.0, starts_within_s))
        answer: TaskAnswer | None = None
        while True:
            await self._away()
            try:
                if answer is None or answer.task is None:
                    answer = await self._asked(_WAIT_S)
                task = answer.task
                if task is None:
                    await asyncio.sleep(self._rng.uniform(0.0, max(answer.poll_after_s, 0.1)))
                    answer = None
                    continue
                answer = await self._done(task)
            except _Vanished:
                self.traffic.n_dropped += 1
                answer, self._told = None, False
                await asyncio.sleep(self._rng.expovariate(1.0 / _REBOOT_S))
            except Overloaded as exc:
                answer = None
                await asyncio.sleep(float(exc.fields.get("retry_after_s", _AGAIN_S)))
            except HybridError as exc:
                answer = None
                self.traffic.failures[exc.code] += 1
                await asyncio.sleep(_AGAIN_S)

    async def _away(self) -> None:
        """Go away now and then, so that it is away for its share of the time."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._leaves_s:
            await asyncio.sleep(self._rng.expovariate(1.0 / _AWAY_S))
            self._leaves_s = loop.time() + self._drawn_leave()
            self._told = False

    def _drawn_leave(self) -> float:
        """How long it stays."""
        ratio = self._learner.away_ratio
        return self._rng.expovariate(ratio / ((1.0 - ratio) * _AWAY_S)) if ratio > 0.0 else math.inf

    # A task.

    async def _done(self, task: Task) -> TaskAnswer | None:
        """Do a task and bring what was learned; the next task, where one came along."""
        terms = task.terms or self._terms
        if task.kind == "evaluate" or terms is None:
            self._gives_up(task)
            return None
        if task.campaign != self._campaign:
            self._campaign, self._held, self._left = task.campaign, None, Left()
        self._terms = terms
        learner = self._learner
        view = await self._view(task, terms)
        work = Work(task=task, terms=terms, learnable=learner.learnable, left=self._left)
        try:
            found = work.trained(view, learner.examples, _go_on)
        except HybridError as exc:
            self.traffic.failures[exc.code] += 1
            self._gives_up(task)
            return None
        train_s = learner.machine.train_s(found.n_samples, found.n_steps, terms.training)
        if task.kind == "train" and self._rng.random() < learner.drops_ratio:
            await asyncio.sleep(self._rng.random() * train_s)
            raise _Vanished
        await asyncio.sleep(train_s)
        self.traffic.train_s += train_s
        if task.kind == "secure":
            await self._masked(task, found.delta, view)
            return None
        learned = work.learned(found)
        self._held = (task.weights.step, view)
        return await self._brought(task, terms, learned, train_s)

    def _gives_up(self, task: Task) -> None:
        """The next call says that this task will not be done."""
        self._told, self._refused = False, (*self._refused, task.id)

    async def _masked(self, task: Task, delta: np.ndarray, view: np.ndarray) -> None:
        """Bring an update into a sum that shows nothing of it."""
        assert self._learner.key is not None
        part = MaskedPart(self._learner.key, task, (delta, self._left.residual), self._n_inputs, self._rng)
        if self._learner.attack is not None:
            part.turn(self._learner.attack)
        played = await part.play(lambda call: self._call(self._desk.secure, call, SecureAnswer), self._fall)
        self._held = (task.weights.step, view)
        self.traffic.outcomes["accepted" if played.state == "done" else played.state] += 1
        if played.residual is not None:
            self._left = dataclasses.replace(self._left, residual=played.residual)
        if played.state != "done":
            self._refused = (*self._refused, task.id)  # told of what it has, as before

    def _fall(self) -> None:
        """Fall over at one of the stages of a masked round, about as often as in a task."""
        if self._rng.random() < self._learner.drops_ratio / _STAGES:
            raise _Vanished

    async def _view(self, task: Task, terms: Terms) -> np.ndarray:
        """The view to begin with: from what is held and what came, else fetched."""
        own = self._learner.learnable.shared(terms)
        held = self._held or (BASE_STEP, own)
        weights = task.weights
        try:
            if weights.n_bytes and not weights.whole and not weights.differences:
                weights = await self._fetched(task, held[0])
            return view_of(weights, terms.layout, held, terms.coding.share)
        except DigestMismatch:
            return view_of(await self._fetched(task, -1), terms.layout, (-1, own))

    async def _fetched(self, task: Task, have: int) -> Weights:
        """A step's weights, brought by a call of their own."""
        machine, step = self._learner.machine, task.weights.step
        await asyncio.sleep(machine.link.up_s(_ASK_BYTES, self._rng))
        answer = encoded(await self._desk.weights(self._id, task.campaign, step, have))
        self.traffic.n_calls += 1
        self.traffic.n_bytes_up += _ASK_BYTES
        self.traffic.n_bytes_down += len(answer)
        await asyncio.sleep(machine.link.down_s(len(answer), self._rng))
        return msgspec.msgpack.decode(answer, type=Weights)

    async def _brought(self, task: Task, terms: Terms, learned: Learned, train_s: float) -> TaskAnswer | None:
        content = learned.content
        if self._learner.attack is not None:
            rng = np.random.default_rng(self._rng.getrandbits(32))
            content = attacked(
                self._learner.attack, content, form(learned.form, terms.coding.share), wire_layout(terms), rng
            )
        digest = sha256(content).hexdigest()
        is_inline = len(content) <= INLINE_BYTES
        if not is_inline:
            await asyncio.sleep(self._learner.machine.link.up_s(len(content), self._rng))
            self.traffic.n_bytes_up += len(content)
            self._put_blob(self._id, digest, content)
        call = UpdateCall(
            epoch="",
            task=task.id,
            campaign=task.campaign,
            step=task.weights.step,
            form=learned.form,
            sha256="" if is_inline else digest,
            n_bytes=len(content),
            content=content if is_inline else b"",
            n_samples=learned.n_samples,
            loss_before=learned.loss_before,
            loss_after=learned.loss_after,
            is_below_clip=learned.is_below_clip,
            train_s=round(train_s, 3),
            next=self._task_call(_NEXT_WAIT_S),
        )
        answer = await self._settled(call)
        self._left = _left_after(self._left, learned, answer, terms)
        outcome = f"rejected:{answer.gate}" if answer.state == "rejected" else answer.state
        self.traffic.outcomes[outcome] += 1
        if answer.next is not None and answer.next.is_forgotten:
            self._told = False
        return answer.next

    async def _settled(self, call: UpdateCall) -> UpdateAnswer:
        """What became of an update; the same bytes again where the gateway asks for patience."""
        while True:
            try:
                return await self._call(self._desk.update, call, UpdateAnswer)
            except Conflict as exc:
                return UpdateAnswer(state="rejected", gate="conflict", reason=str(exc))
            except Overloaded as exc:
                await asyncio.sleep(float(exc.fields.get("retry_after_s", _AGAIN_S)))

    # Calls.

    async def _asked(self, wait_s: float) -> TaskAnswer:
        answer = await self._call(self._desk.task, self._task_call(wait_s), TaskAnswer)
        self._told = not answer.is_forgotten
        return answer

    def _task_call(self, wait_s: float) -> TaskCall:
        held = (Held(campaign=self._campaign, step=self._held[0]),) if self._held is not None else ()
        offers = () if self._told else (self._learner.offer,)
        refused, self._refused = self._refused, ()
        return TaskCall(epoch="", wait_s=wait_s, offers=offers, held=held, refused=refused, is_as_before=self._told)

    async def _call(
        self, ask: Callable[[str, _Message], Awaitable[_Answer]], call: _Message, kind: type[_Answer]
    ) -> _Answer:
        """One call, both ways over the link; what arrives was unpacked from bytes."""
        sent = encoded(call)
        self.traffic.n_calls += 1
        self.traffic.n_bytes_up += len(sent)
        await asyncio.sleep(self._learner.machine.link.up_s(len(sent), self._rng))
        answer = encoded(await ask(self._id, msgspec.msgpack.decode(sent, type=type(call))))
        self.traffic.n_bytes_down += len(answer)
        await asyncio.sleep(self._learner.machine.link.down_s(len(answer), self._rng))
        return msgspec.msgpack.decode(answer, type=kind)


def _left_after(before: Left, learned: Learned, answer: UpdateAnswer, terms: Terms) -> Left:
    """What stays on the box, by what became of its update: as the agent has it."""
    residual, control = learned.left.residual, before.control
    if answer.state == "accepted":
        control = learned.left.control
    elif answer.state == "rejected" and answer.gate in _NOT_AGAIN:
        residual = None
    else:
        residual = given_back(terms, learned.form, learned.content, residual)
    return Left(residual=residual, control=control, personal=learned.left.personal)


def _go_on() -> None:
    """Nobody asks for anything meanwhile."""
