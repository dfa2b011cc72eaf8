"""Brings the update that waits: the same bytes until the gateway says for good what became of them."""

import asyncio
import logging
from hashlib import sha256
from typing import Final

import msgspec

from edge_agent.learning import outcomes
from edge_agent.learning.records import Waiting
from edge_agent.learning.store import LearningStore
from edge_agent.learning.surroundings import Surroundings
from hybrid.errors import BadMessage, Conflict, Forbidden, NotFound, TensorMismatch, TooLarge
from hybrid.federated.messages import INLINE_BYTES, TaskAnswer, TaskCall, UpdateAnswer, UpdateCall

_MOST_REFUSALS: Final = 8
_REFUSALS: Final = (BadMessage, TooLarge, TensorMismatch, Forbidden, NotFound)
"""Answers to one update that will not become better: after some of them it is dropped."""
_log = logging.getLogger("hybrid.agent.learning")


class Bringing:
    """See the module; methods are for the event loop."""

    def __init__(self, store: LearningStore, around: Surroundings) -> None:
        self._store, self._around = store, around
        self._n_refusals = 0

    async def bring(self, next_call: TaskCall | None) -> TaskAnswer | None:
        """Bring the update that waits; what was answered to `next_call`, None where nothing was.

        Raises:
            HybridError: nothing is settled; the same again later.
        """
        store, waiting = self._store, self._store.waiting
        if waiting is None:
            return None
        content: bytes | None = store.update_in_memory() or await asyncio.to_thread(store.update)
        if content is None or sha256(content).hexdigest() != waiting.sha256:
            await asyncio.to_thread(outcomes.drop, store, "gave-up", "the disk damaged an update")
            return None
        try:
            if len(content) > INLINE_BYTES:
                await self._around.put_blob(waiting.sha256, content)
                content = b""
            answer = await self._around.calls.update(_update(waiting, content, self._around.epoch(), next_call))
        except Conflict as exc:
            _log.error("learning.conflict task=%s error=%s", waiting.task, exc)
            await asyncio.to_thread(outcomes.drop, store, "conflict", str(exc))
            return None
        except _REFUSALS as exc:
            self._n_refusals += 1
            if self._n_refusals < _MOST_REFUSALS:
                raise
            answer = UpdateAnswer(state="rejected", gate=exc.code, reason=str(exc))
        self._n_refusals = 0
        if not outcomes.settled_with_next(store, answer):
            await asyncio.to_thread(outcomes.settle, store, answer)
        _log.info("learning.brought task=%s outcome=%s gate=%s", waiting.task, answer.state, answer.gate)
        return answer.next


def _update(waiting: Waiting, content: bytes, epoch: str, next_call: TaskCall | None) -> UpdateCall:
    return UpdateCall(
        epoch=epoch,
        task=waiting.task,
        campaign=waiting.campaign,
        step=waiting.step,
        form=waiting.form,
        sha256="" if content else waiting.sha256,
        n_bytes=waiting.n_bytes,
        content=content,
        n_samples=waiting.n_samples,
        loss_before=waiting.loss_before,
        loss_after=waiting.loss_after,
        is_below_clip=waiting.is_below_clip,
        train_s=waiting.train_s,
        next=None if next_call is None else msgspec.structs.replace(next_call, epoch=""),
    )
