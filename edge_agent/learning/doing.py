"""Does a task on the one training thread, and gives it up when its lease ends or the box may learn no more."""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final, TypeVar
from zlib import crc32

import numpy as np

from edge_agent.learning.conditions import LOOK_S, Conditions
from edge_agent.learning.material import Material
from edge_agent.learning.offers import Candidate, Offers
from edge_agent.learning.store import LearningStore
from edge_agent.learning.yielding import Yielding
from hybrid.errors import Cancelled, DataUnfit, DigestMismatch, HybridError, ModelUntrainable, TensorMismatch
from hybrid.federated.box.personal import Beside, Fitted, fitted
from hybrid.federated.box.views import BASE_STEP, vector_of, view_of
from hybrid.federated.box.work import Learnable, Learned, Left, Work
from hybrid.federated.calls import RoundCalls
from hybrid.federated.campaign import Training
from hybrid.federated.layout import Layout
from hybrid.federated.learning.evaluation import Comparison
from hybrid.federated.learning.training import Trained, divided
from hybrid.federated.messages import EXACT, Task, Terms, Weights

NICENESS: Final = 10
"""Of the training thread; lower still, and it would keep the interpreter's lock from the loop on a busy machine."""

FIT_S: Final = 600.0
"""Of fitting personal layers, with all the time that it stands still."""

WHOLE: Final = -1
"""Held by a box that wants a view as a whole."""

KEPT_S: Final = 1800.0
"""So long features stay in memory after a task."""

_END_S: Final = 5.0
_T = TypeVar("_T")
_log = logging.getLogger("hybrid.agent.learning")

Keep = Callable[[Learned, bytes], None]


class _AnotherView(DigestMismatch):
    """What is here and what came do not make the view of the step."""


class Doing:
    """Does tasks, one at a time; methods are for the event loop.

    Attributes:
        material: heads and features.
        cpu_s: of the training thread, for the last task.
    """

    def __init__(
        self,
        store: LearningStore,
        calls: RoundCalls,
        *,
        offers: Offers,
        material: Material,
        yielding: Yielding,
        conditions: Conditions,
    ) -> None:
        self._store, self._calls = store, calls
        self._offers, self.material = offers, material
        self._yielding, self._conditions = yielding, conditions
        self._thread: ThreadPoolExecutor | None = None
        self._last: asyncio.Future[Any] | None = None
        self._ended_s = 0.0
        self.cpu_s = 0.0

    async def learned(self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float, keep: Keep) -> None:
        """Train, and keep what came of it; raises as `trained`, and what `keep` raises.

        Args:
            task, terms, candidate, deadline_s: as `trained` takes them.
            keep: takes the update, and the view that it began with; on the training thread: what follows at once needs
                no other one.
        """
        await self._done(task, terms, candidate, deadline_s, lambda work, found, view: keep(work.learned(found), view))

    async def trained(
        self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float, *, was_metered: bool
    ) -> tuple[Work, Trained, bytes]:
        """What training changed, what it was done with, and the view that it began with; for what is sent at once.

        Args:
            deadline_s: end of the lease, on the loop's clock.
            was_metered: what the gateway was told of the link when it gave the task.

        Raises:
            Cancelled: given up; says why.
            HybridError: it cannot be done.
        """
        conditions = self._conditions
        found = await self._done(task, terms, candidate, deadline_s, lambda work, found, view: (work, found, view))
        await conditions.lately()
        if conditions.condition.is_metered and not was_metered:
            raise Cancelled("the link costs by the byte by now")
        return found

    async def _done(
        self,
        task: Task,
        terms: Terms,
        candidate: Candidate,
        deadline_s: float,
        then: Callable[[Work, Trained, bytes], _T],
    ) -> _T:
        """The training, and what follows it on its thread."""
        self.cpu_s = 0.0
        ids = await self._offers.samples(candidate)
        weights = await self._weights(task, terms, candidate, deadline_s)

        def train(weights: Weights) -> _T:
            learnable = self.material.learnable(candidate)
            view = self._view(task, terms, learnable, weights)
            examples = self.material.examples(candidate, ids, held_out=False)
            if not len(examples):
                raise DataUnfit(f"no labelled sample can be learned from: {self.material.why_unfit or 'none is left'}")
            work = Work(task=task, terms=terms, learnable=learnable, left=self.left(task.campaign))
            return then(work, work.trained(view, examples, self._yielding.between), view.astype("<f4").tobytes())

        try:
            return await self._on_thread(lambda: train(weights), deadline_s)
        except _AnotherView as exc:
            _log.info("learning.view_fetched campaign=%s step=%d why=%s", task.campaign, weights.step, exc)
        whole = await self._calls.weights(task.campaign, task.weights.step, WHOLE)
        return await self._on_thread(lambda: train(whole), deadline_s)

    async def compared(self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float) -> Comparison:
        """How what would answer here with the task's candidate does beside what answers now; raises as `trained`."""
        self.cpu_s = 0.0
        ids = await self._offers.samples(candidate)
        learnable = await self._on_thread(lambda: self.material.learnable(candidate), deadline_s)
        weights = task.weights
        if not weights.whole:
            weights = await self._calls.weights(task.campaign, weights.step, EXACT)
        learned = vector_of(weights.whole, terms.layout)
        now = {**learnable.arrays, **self._offers.in_use(candidate)}

        def compare() -> Comparison:
            work = Work(task=task, terms=terms, learnable=learnable, left=self.left(task.campaign))
            held_out = self.material.examples(candidate, ids, held_out=True)
            if not len(held_out):
                raise DataUnfit("this box has no labelled sample that is kept for evaluation")
            trained_on = None
            note = self._store.notes.get(task.campaign)
            if terms.training.personal and (note is None or not note.is_forgotten):
                trained_on = self.material.examples(candidate, ids, held_out=False)
            return work.compared(now, learned, trained_on, held_out, self._yielding.between)

        return await self._on_thread(compare, deadline_s)

    async def fitted(
        self, candidate: Candidate, campaign: str, training: Training, personal: np.ndarray | None
    ) -> tuple[Fitted, Layout, Layout]:
        """Personal layers beside the version that answers, the layout of what it shares, and theirs.

        Args:
            candidate: the version.
            campaign, training: that it came of, and its plan.
            personal: as `fitted` takes them.

        Raises:
            Cancelled: given up; says why.
            HybridError: it cannot be done.
        """
        self.cpu_s = 0.0
        deadline_s = asyncio.get_running_loop().time() + FIT_S
        ids = await self._offers.samples(candidate)
        learnable = await self._on_thread(lambda: self.material.learnable(candidate), deadline_s)
        shared, kept = divided(learnable.layout, training.personal)
        if kept is None:
            named = ", ".join(training.personal[:5])
            raise TensorMismatch(
                f"no tensor of {candidate.version.name} is called {named}, the plan of {campaign} says"
            )
        beside = Beside(program=learnable.program, layout=learnable.layout, arrays=learnable.arrays)

        def fit() -> Fitted:
            trained_on = self.material.examples(candidate, ids, held_out=False)
            held_out = self.material.examples(candidate, ids, held_out=True)
            seed = crc32(f"{campaign}/{candidate.version.artifact_digest}".encode())
            between = self._yielding.between
            return fitted(beside, training, personal, trained_on, held_out, seed=seed, between=between)

        return await self._on_thread(fit, deadline_s), shared, kept

    def left(self, campaign: str) -> Left:
        """What the campaign's tasks left here; blocks."""
        store = self._store
        return Left(
            residual=_vector(store.vector(campaign, "residual")),
            control=_vector(store.vector(campaign, "control")),
            personal=_vector(store.vector(campaign, "personal")),
        )

    def rest(self) -> None:
        """Let go of features that no task has needed for long: another round may come soon, or never."""
        is_idle = self._last is not None and self._last.done()
        if is_idle and asyncio.get_running_loop().time() - self._ended_s >= KEPT_S:
            self.material.release()

    async def close(self) -> None:
        """End what trains."""
        self._yielding.give_up()
        thread, self._thread = self._thread, None
        if thread is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await asyncio.to_thread(thread.shutdown, cancel_futures=True)

    async def _weights(self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float) -> Weights:
        """What the task said of the view, or what is fetched where that was too large for it."""
        weights: Weights = task.weights
        if not weights.n_bytes or weights.whole or weights.differences:
            return weights
        await self._on_thread(lambda: self.material.learnable(candidate).shared(terms), deadline_s)  # it fits at all
        note = self._store.notes.get(task.campaign)
        held = note.step if note is not None and note.step >= 0 else BASE_STEP
        return await self._calls.weights(task.campaign, weights.step, held)

    def _view(self, task: Task, terms: Terms, learnable: Learnable, weights: Weights) -> np.ndarray:
        """The view to begin with; blocks.

        Raises:
            _AnotherView: what is here and what came make another one: it is to be fetched whole.
        """
        own = learnable.shared(terms)
        held = (BASE_STEP, own)
        note = self._store.notes.get(task.campaign)
        if weights.whole:
            held = (-1, own)
        elif note is not None and note.step >= 0:
            content = self._store.vector(task.campaign, "view")
            if content is not None:
                held = (note.step, vector_of(content, terms.layout))
        try:
            return view_of(weights, terms.layout, held, terms.coding.share)
        except DigestMismatch as exc:
            raise _AnotherView(str(exc)) from exc

    async def _on_thread(self, work: Callable[[], _T], deadline_s: float) -> _T:
        """Run work on the training thread; while it runs it is seen whether it still may."""
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="learning", initializer=_step_back)

        if self._last is not None and not self._last.done():  # begun anew, it would go on with what was given up
            raise Cancelled("what was given up before has not ended yet")

        def timed() -> _T:
            began_s = time.thread_time()
            try:
                return work()
            except MemoryError as exc:
                raise ModelUntrainable("to train this model takes more memory than this box has") from exc
            finally:
                self.cpu_s += time.thread_time() - began_s

        self._yielding.begin()
        running = loop.run_in_executor(self._thread, timed)
        self._last = running
        why = ""
        try:
            while not running.done() and not why:
                left_s = deadline_s - loop.time()
                await asyncio.wait((running,), timeout=max(0.0, min(LOOK_S, left_s)))
                if not running.done():
                    why = "the lease ended" if loop.time() >= deadline_s else await self._conditions.look()
        finally:
            self._ended_s = loop.time()
            if not running.done():
                self._yielding.give_up()
                await asyncio.wait((running,), timeout=_END_S)
                running.add_done_callback(_seen)
        if why and not _came_through(running):
            raise Cancelled(why)
        return running.result()


def _came_through(work: "asyncio.Future[_T]") -> bool:
    """Whether it was done all the same: what it kept is there."""
    return work.done() and not work.cancelled() and work.exception() is None


def _step_back() -> None:
    """This thread comes after all others."""
    with suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


def _seen(work: "asyncio.Future[_T]") -> None:
    """Nobody waits for it any more, however it ended."""
    if not work.cancelled() and (error := work.exception()) is not None and not isinstance(error, HybridError):
        _log.error("learning.failed", exc_info=error)


def _vector(content: bytes | None) -> np.ndarray | None:
    return None if content is None else np.frombuffer(content, "<f4").astype(np.float32)
