"""A masked task on this box: what it trains is masked, what it must never do twice is on the disk before it does it."""

import asyncio
import logging
from typing import Final

import msgspec
import numpy as np

from edge_agent.learning import outcomes
from edge_agent.learning.doing import Doing
from edge_agent.learning.masked import Insisting, MaskedOutcome, Update, masked
from edge_agent.learning.offers import Candidate
from edge_agent.learning.records import Outcome
from edge_agent.learning.store import LearningStore, Vectors
from edge_agent.learning.surroundings import Surroundings
from hybrid.federated.learning.training import Trained
from hybrid.federated.messages import Task, Terms
from hybrid.federated.privacy.accountant import cost_of
from hybrid.federated.secure.device_list import opened
from hybrid.federated.secure.invitation import Invitation

_SAID: Final = {"done": "a masked update is in a sum", "excluded": "a masked round went on without this box"}
_OUTCOMES: Final[dict[str, Outcome]] = {"done": "accepted", "excluded": "closed"}
_log = logging.getLogger("hybrid.agent.learning")


class SecureTasks:
    """Takes one masked task; methods are for the event loop."""

    def __init__(self, store: LearningStore, around: Surroundings, doing: Doing) -> None:
        self._store, self._around, self._doing = store, around, doing
        self._found: Trained | None = None
        self._view = b""

    async def take(
        self, task: Task, terms: Terms, candidate: Candidate, deadline_s: float, *, was_metered: bool
    ) -> str:
        """Do it; why this box would not, empty where it took its part.

        Args:
            task, terms, candidate, deadline_s, was_metered: as `Doing.trained` takes them.

        Raises:
            HybridError: it cannot be trained, or the disk refused.
        """
        key = self._around.key()
        if key is None:
            return "this box has no key to sign with"
        root, list_before = self._around.root_sha256(), await asyncio.to_thread(lambda: self._store.device_list)
        insisting = Insisting(
            key=key,
            n_inputs_before=await asyncio.to_thread(self._store.n_masked, task.campaign, task.weights.step),
            note_input=lambda: self._note_input(task, terms),
            root_sha256=root,
            must_be_listed=list_before >= 0,
            least_sequence=max(0, list_before),
        )

        async def trained() -> Update:
            if root:
                await asyncio.to_thread(self._note_list, Invitation.from_bytes(task.secure).device_list, root)
            work, self._found, self._view = await self._doing.trained(
                task, terms, candidate, deadline_s, was_metered=was_metered
            )
            return self._found.delta, work.left.residual

        outcome = await masked(
            self._around.calls,
            task,
            terms,
            epoch=self._around.epoch(),
            insisting=insisting,
            trained=trained,
            deadline_s=deadline_s,
        )
        if outcome.state == "refused":
            if outcome.residual is not None:  # masked in vain: what it said is said again
                residual, note = _bytes(outcome.residual), self._store.note(task.campaign, terms)
                await asyncio.to_thread(self._store.keep, note, {"residual": residual})
            return outcome.reason
        if outcome.state == "excluded" and not outcome.has_masked:
            _log.info("learning.masked_without campaign=%s why=%s", task.campaign, outcome.reason)
            return ""  # nothing of it was said: the same task may come again, with another attempt or a new lease
        await asyncio.to_thread(self._keep, task, terms, outcome)
        return ""

    def _note_input(self, task: Task, terms: Terms) -> None:
        """One more masked input leaves: never a second for this step, and its privacy is spent."""
        note = self._store.note(task.campaign, terms)
        cost = cost_of(terms.noise) if terms.noise > 0 else 0.0
        note, accounts = outcomes.charge(self._store, note, task.weights.step, cost=cost, delta=terms.delta)
        self._store.note_masked(task.weights.step, note, accounts)

    def _note_list(self, envelope: bytes, root: bytes) -> None:
        """A list of devices that is the root's: no round without one is believed from now on."""
        if envelope:
            self._store.note_device_list(opened(envelope, root).sequence)

    def _keep(self, task: Task, terms: Terms, outcome: MaskedOutcome) -> None:
        is_counted = outcome.state == "done"
        note, found = self._store.note(task.campaign, terms), self._found
        note = msgspec.structs.replace(
            note,
            n_accepted=note.n_accepted + is_counted,
            n_lost=note.n_lost + (not is_counted),
            n_bytes=note.n_bytes + (outcome.n_bytes if is_counted else 0),
            last=_SAID[outcome.state] + (f": {outcome.reason}" if outcome.reason else ""),
        )
        vectors: dict[str, bytes | None] = {}
        if found is not None:
            note = msgspec.structs.replace(
                note,
                step=task.weights.step,
                sha256=task.weights.sha256,
                loss_before=found.loss_before,
                loss_after=found.loss_after,
            )
            vectors["view"] = self._view
            if found.personal.size:
                vectors["personal"] = _bytes(found.personal)
        if outcome.residual is not None:
            vectors["residual"] = _bytes(outcome.residual)
        kept: Vectors = vectors  # type: ignore[assignment]
        self._store.finish(task.id, _OUTCOMES[outcome.state], note, kept)


def _bytes(vector: np.ndarray) -> bytes:
    return vector.astype("<f4").tobytes()
