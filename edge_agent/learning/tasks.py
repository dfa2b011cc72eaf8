"""Takes a task: does it, keeps what came of it, or gives it up and says why."""

import asyncio
import logging
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from edge_agent.learning import outcomes
from edge_agent.learning.conditions import Conditions
from edge_agent.learning.offers import Candidate, Offers
from edge_agent.learning.records import Outcome, Waiting
from edge_agent.learning.store import LearningStore, Vectors
from edge_agent.learning.surroundings import Surroundings
from edge_agent.learning.yielding import Yielding
from hybrid.errors import BadMessage, Forbidden, HybridError, LinkError, ModelError, TensorMismatch
from hybrid.federated.campaign import Training
from hybrid.federated.messages import EvaluationCall, Task, Terms

if TYPE_CHECKING:
    from edge_agent.learning.doing import Doing
    from edge_agent.learning.secure_task import SecureTasks
    from hybrid.federated.box.personal import Fitted
    from hybrid.federated.box.work import Learned
    from hybrid.federated.layout import Layout

_VERBS: Final = {"train": "trains", "evaluate": "evaluates", "secure": "trains, masked,"}
_log = logging.getLogger("hybrid.agent.learning")


class Tasks:
    """One task at a time; methods are for the event loop.

    Attributes:
        now: what is done, in words; empty while nothing is.
        refused: tasks that were given up and that the gateway was not told of yet.
        n_given_up: since the start.
        unfit: why the last campaign cannot be learned here; empty where it can.
        damaged: models of which the disk has damaged what privacy this box spent.
        doing: does them; None before the first.
        is_metered: what the gateway was told of the link when it gave the task.
    """

    def __init__(
        self,
        store: LearningStore,
        around: Surroundings,
        *,
        offers: Offers,
        conditions: Conditions,
        yielding: Yielding,
    ) -> None:
        self._store, self._around, self._offers = store, around, offers
        self._conditions, self._yielding = conditions, yielding
        self.now = ""
        self.refused: list[str] = []
        self.n_given_up = 0
        self.unfit = ""
        self.damaged: frozenset[str] = frozenset()
        self.doing: Doing | None = None
        self.is_metered = False

    async def take(self, task: Task, candidates: Sequence[Candidate], why_not: str) -> bool:
        """Do a task, or give it up; whether it was done.

        Args:
            candidates: models that could learn now.
            why_not: what keeps the box from it; empty where nothing does.

        Raises:
            LinkError: the gateway did not answer; the task may be done when it is offered again.
            OSError: the disk failed; the task is given up.
        """
        deadline_s = asyncio.get_running_loop().time() + task.lease_s
        note = self._store.notes.get(task.campaign)
        terms = task.terms or (note.terms if note is not None else None)
        candidate = None if terms is None else next((one for one in candidates if one.fits(terms)), None)
        if task.id in self._store.done:
            return self.give_up(task, "it was done before")
        if terms is None:
            return self.give_up(task, "the campaign's terms are not here")
        if candidate is None:
            return self.give_up(task, f"{terms.model} answers here with another version or variant")
        if not why_not and terms.noise > 0:
            why_not = await asyncio.to_thread(self._over_budget, terms)
        if why_not:
            return self.give_up(task, why_not)
        self.now = f"{_VERBS[task.kind]} {terms.model} (step {task.weights.step} of {task.campaign})"
        try:
            await self._do(task, terms, candidate, deadline_s)
            self.unfit = ""
        except LinkError:
            raise  # the gateway offers the same task again while its lease lasts
        except OSError:  # so are errors of the disk
            self.give_up(task, "the disk failed")
            raise
        except HybridError as exc:
            if isinstance(exc, ModelError | TensorMismatch | BadMessage | Forbidden):
                self.unfit = f"campaign {task.campaign} cannot be learned here: {exc}"
            return self.give_up(task, str(exc))
        finally:
            self.now = ""
        return True

    def give_up(self, task: Task, why: str) -> bool:
        """A task is not done; always False."""
        self.n_given_up += 1
        if task.id not in self.refused:
            self.refused.append(task.id)
        _log.info("learning.gave_up task=%s campaign=%s why=%r", task.id, task.campaign, why)
        return False

    async def fitted(
        self, candidate: Candidate, campaign: str, training: Training, personal: np.ndarray | None
    ) -> "tuple[Fitted, Layout, Layout]":
        """Personal layers fitted to what answers; see `Doing.fitted`."""
        if self.doing is None:
            self.doing = await asyncio.to_thread(self._made)
        version = candidate.version
        self.now = f"fits personal layers of {campaign} to {version.name}:{version.version}"
        try:
            return await self.doing.fitted(candidate, campaign, training, personal)
        finally:
            self.now = ""

    def rest(self) -> None:
        """There is nothing to do now."""
        if self.doing is not None:
            self.doing.rest()

    async def close(self) -> None:
        """End what trains."""
        doing, self.doing = self.doing, None
        if doing is not None:
            await doing.close()

    async def _do(self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float) -> None:
        if self.doing is None:
            self.doing = await asyncio.to_thread(self._made)  # imports take long: the loop answers requests meanwhile
        if task.kind == "evaluate":
            await self._evaluate(self.doing, task, terms, candidate, deadline_s)
        elif task.kind == "train":
            await self._train(self.doing, task, terms, candidate, deadline_s)
        else:
            tasks = await asyncio.to_thread(self._secure, self.doing)
            why = await tasks.take(task, terms, candidate, deadline_s, was_metered=self.is_metered)
            if why:
                self.give_up(task, why)

    def _made(self) -> "Doing":
        from edge_agent.learning.doing import Doing  # with all that training loads
        from edge_agent.learning.material import Material

        return Doing(
            self._store,
            self._around.calls,
            offers=self._offers,
            material=Material(self._around.samples, self._yielding, most_bytes=self._around.feature_bytes),
            yielding=self._yielding,
            conditions=self._conditions,
        )

    def _secure(self, doing: "Doing") -> "SecureTasks":
        from edge_agent.learning.secure_task import SecureTasks  # with all that masking loads

        return SecureTasks(self._store, self._around, doing)

    async def _train(self, doing: "Doing", task: Task, terms: Terms, candidate: Candidate, deadline_s: float) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()

        def keep(learned: "Learned", view: bytes) -> None:
            note = msgspec.structs.replace(
                self._store.note(task.campaign, terms),
                step=task.weights.step,
                sha256=task.weights.sha256,
                is_metered=self.is_metered,
                last="an update waits for the gateway",
                loss_before=learned.seen.loss_before,
                loss_after=learned.seen.loss_after,
            )
            waiting = _waiting(task, terms, learned, loop.time() - began_s)
            left = learned.left
            vectors: Vectors = {"view": view, "residual": _bytes(left.residual), "personal": _bytes(left.personal)}
            self._store.keep(note, vectors, (waiting, learned.content), _bytes(left.control) or b"")

        await doing.learned(task, terms, candidate, deadline_s, keep)

    async def _evaluate(
        self, doing: "Doing", task: Task, terms: Terms, candidate: Candidate, deadline_s: float
    ) -> None:
        found = await doing.compared(task, terms, candidate, deadline_s)
        call = EvaluationCall(
            epoch=self._around.epoch(),
            task=task.id,
            campaign=task.campaign,
            step=task.weights.step,
            n=found.candidate.n,
            n_right=found.candidate.n_right,
            n_base_right=found.base.n_right,
            n_lost=found.n_lost,
            n_won=found.n_won,
        )
        answer = await self._around.calls.evaluation(call)
        known = self._store.notes.get(task.campaign)
        note = self._store.note(task.campaign, terms)
        said = f"a candidate was right on {call.n_right} of {call.n} samples, what answers now on {call.n_base_right}"
        is_over = known is not None and known.is_over  # its rounds may be, long before its result is judged
        note = msgspec.structs.replace(note, n_evaluated=note.n_evaluated + 1, last=said, is_over=is_over)
        outcome: Outcome = "accepted" if answer.state == "accepted" else "closed"
        await asyncio.to_thread(self._store.finish, task.id, outcome, note)

    def _over_budget(self, terms: Terms) -> str:
        """Whether one more update would spend more of this box's privacy than the campaign allows."""
        if terms.noise <= 0 or terms.max_epsilon <= 0:
            return ""
        from hybrid.federated.campaign import Privacy
        from hybrid.federated.privacy.account import has_left

        try:
            spent = outcomes.account_of(self._store, terms.model).cost
        except BadMessage:
            self.damaged |= {terms.model}
            return f"the disk has damaged what this box noted of its privacy spent on {terms.model}"
        self.damaged -= {terms.model}
        privacy = Privacy(noise=terms.noise, delta=terms.delta, max_epsilon=terms.max_epsilon, clip=1.0)
        return "" if has_left(privacy, spent) else f"one more update would go over an epsilon of {terms.max_epsilon:g}"


def _waiting(task: Task, terms: Terms, learned: "Learned", train_s: float) -> Waiting:
    from hybrid.federated.privacy.accountant import cost_of

    return Waiting(
        task=task.id,
        campaign=task.campaign,
        step=task.weights.step,
        form=learned.form,
        sha256=sha256(learned.content).hexdigest(),
        n_bytes=len(learned.content),
        n_samples=learned.n_samples,
        loss_before=learned.loss_before,
        loss_after=learned.loss_after,
        is_below_clip=learned.is_below_clip,
        train_s=round(train_s, 3),
        cost=cost_of(terms.noise) if terms.noise > 0 else 0.0,
        delta=terms.delta,
    )


def _bytes(vector: np.ndarray | None) -> bytes | None:
    """As it is kept; a vector of zeros is none."""
    return None if vector is None or not vector.any() else vector.astype("<f4").tobytes()
