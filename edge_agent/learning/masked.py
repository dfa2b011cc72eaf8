"""A task of a masked round: trains, then answers the gateway stage by stage, and never says more than the rules allow.

Design: the secrets of a round are in memory only; a box that restarts drops out, and is repaired. What is on the disk,
before a masked input leaves, is that this box has masked one for the step: so no restart masks a second.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from edge_agent.trust.identity import BoxKey
from hybrid.errors import BadMessage, Conflict, CorruptContent, HybridError, LinkError, MaskingRefused, Overloaded
from hybrid.federated.calls import RoundCalls
from hybrid.federated.messages import SecureAnswer, SecureCall, Task, Terms
from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.device_list import opened
from hybrid.federated.secure.invitation import Invitation
from hybrid.federated.secure.quantized import Quantized, quantized
from hybrid.federated.secure.task import SecureTask

WAIT_S: Final = 25.0
PAUSE_S: Final = 2.0
_MOST_REFUSALS: Final = 8
_LONGEST_REASON: Final = 400
_log = logging.getLogger("hybrid.agent.learning")

Update = tuple[np.ndarray, np.ndarray | None]
"""Float32 (n_elements,), not clipped; and what the last one left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedOutcome:
    """What became of a masked task.

    Attributes:
        state: done: the update is in a sum; excluded: the round went on without it, or failed; refused: this box took
            no further part.
        reason: why, where not done.
        residual: to be kept for the campaign's next task, None for what was there before.
        n_bytes: that were brought.
        has_masked: whether an input left: this box takes no further part in the step. Without one it may come again.
    """

    state: Literal["done", "excluded", "refused"]
    reason: str = ""
    residual: np.ndarray | None = None
    n_bytes: int = 0
    has_masked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Insisting:
    """What this box brings to every masked round.

    Attributes:
        key: the box's.
        n_inputs_before: inputs that it masked for this campaign's step.
        note_input: counts one more; on the disk when it returns; blocks.
        root_sha256: of the pinned root that signs device lists; empty without.
        must_be_listed: whether a round without such a list is refused: once a box was given one, to go without is the
            gateway's word against the operator's.
        least_sequence: of a list.
        least_devices: fewest devices in a sum.
    """

    key: BoxKey
    n_inputs_before: int
    note_input: Callable[[], None]
    root_sha256: bytes = b""
    must_be_listed: bool = False
    least_sequence: int = 0
    least_devices: int = 3

    def guard(self, invitation: Invitation) -> Guard:
        """What its device insists on.

        Raises:
            MaskingRefused: no list where there must be one. HybridError: the list is not the root's, or an older one.
        """
        if not (self.root_sha256 and invitation.device_list):
            if self.must_be_listed:
                raise MaskingRefused("the round has no list of devices that the operator's root signed: sit it out")
            return Guard(least_devices=self.least_devices)
        listed = opened(invitation.device_list, self.root_sha256, least_sequence=self.least_sequence)
        return Guard(least_devices=self.least_devices, listed=listed.box_ids, devices_digest=listed.digest)


async def masked(
    calls: RoundCalls,
    task: Task,
    terms: Terms,
    *,
    epoch: str,
    insisting: Insisting,
    trained: Callable[[], Awaitable[Update]],
    deadline_s: float,
) -> MaskedOutcome:
    """Do a masked task.

    Args:
        calls: to the gateway.
        task: whose `secure` is the invitation.
        terms: of the campaign.
        epoch: of the installation.
        insisting: of this box.
        trained: trains, and gives update and residual.
        deadline_s: end of the lease, on the loop's clock: until then it tries.

    Raises:
        BadMessage: an invitation that does not fit task or terms.
        HybridError: as `trained`.
    """
    invitation = Invitation.from_bytes(task.secure)
    _check(invitation.task, task, terms)
    part: _Part | None = None
    try:
        insisting.guard(invitation).check(invitation.task)
        if insisting.n_inputs_before:
            raise MaskingRefused("this box has masked an input for this step before: it sits the step out")
        update, residual = await trained()
        made = await asyncio.to_thread(quantized, update, residual, invitation.task, np.random.default_rng())
        part = _Part(calls, task, terms, epoch=epoch, insisting=insisting, made=made)
        async with asyncio.timeout_at(deadline_s):
            return await part.play(invitation)
    except TimeoutError:
        return _ended(part, "excluded", "the lease ended", is_lost=False)
    except MaskingRefused as exc:
        _log.warning("learning.masking_refused campaign=%s step=%d why=%s", task.campaign, task.weights.step, exc)
        return _ended(part, "refused", str(exc), is_lost=True)


def _ended(
    part: "_Part | None", state: Literal["done", "excluded", "refused"], reason: str, *, is_lost: bool
) -> MaskedOutcome:
    """An outcome; what was masked is said again in the next update where it is known to be in no sum (`is_lost`)."""
    if part is None or part.device is None or not part.device.has_masked:
        return MaskedOutcome(state=state, reason=reason, n_bytes=0 if part is None else part.n_bytes)
    asked, made = part.device.task, part.made
    residual = made.residual
    if is_lost:
        residual = residual + made.levels[: asked.n_elements] * np.float32(asked.step_size)
    return MaskedOutcome(state=state, reason=reason, residual=residual, n_bytes=part.n_bytes, has_masked=True)


class _Part:
    """One box's part in one masked round.

    Attributes:
        made: what is masked.
        device: of the newest attempt; None before the first.
        n_bytes: that were brought.
    """

    def __init__(
        self, calls: RoundCalls, task: Task, terms: Terms, *, epoch: str, insisting: Insisting, made: Quantized
    ) -> None:
        self._calls, self._task, self._terms, self._epoch = calls, task, terms, epoch
        self._insisting, self.made = insisting, made
        self.device: Device | None = None
        self.n_bytes = 0

    async def play(self, invitation: Invitation) -> MaskedOutcome:
        """Until the gateway says for good what became of it."""
        device, content = await self._begun(invitation)
        n_refusals = 0
        while True:
            try:
                answer = await self._call(device, content)
            except (LinkError, Overloaded) as exc:
                _log.info("learning.masked_waits task=%s why=%s", self._task.id, exc)
                await asyncio.sleep(PAUSE_S)
                continue
            except HybridError as exc:
                n_refusals += 1
                if n_refusals >= _MOST_REFUSALS:
                    return _ended(self, "refused", str(exc), is_lost=False)
                content = b""  # it is not taken: what comes next is asked for
                await asyncio.sleep(PAUSE_S)
                continue
            if answer.state == "done":
                return _ended(self, "done", "", is_lost=False)
            if answer.state == "excluded":
                return _ended(self, "excluded", answer.reason[:_LONGEST_REASON], is_lost=True)
            if answer.state == "wait":
                content = b""
            elif answer.stage == "again":
                if device.has_masked:
                    raise MaskingRefused("the round began anew after this box had masked its input: it sits it out")
                device, content = await self._begun(Invitation.from_bytes(answer.content))
            elif answer.stage == "advertise":
                content = device.advert()
            else:
                content = await self._answered(device, answer.content)

    async def _begun(self, invitation: Invitation) -> tuple[Device, bytes]:
        _check(invitation.task, self._task, self._terms)
        insisting = self._insisting
        guard = insisting.guard(invitation)
        device = await asyncio.to_thread(
            lambda: Device.begin(
                invitation.task,
                insisting.key.public_key,
                sign=insisting.key.sign,
                random=os.urandom,
                guard=guard,
                n_inputs_before=insisting.n_inputs_before,
            )
        )
        self.device = device
        return device, device.advert()

    async def _call(self, device: Device, content: bytes) -> SecureAnswer:
        self.n_bytes += len(content)
        return await self._calls.secure(
            SecureCall(
                epoch=self._epoch,
                task=self._task.id,
                campaign=self._task.campaign,
                content=content,
                wait_s=WAIT_S,
                attempt=device.task.attempt,
            )
        )

    async def _answered(self, device: Device, content: bytes) -> bytes:
        """The device's answer; that it masked an input is on the disk before the answer leaves."""
        had_masked = device.has_masked
        try:
            said = await asyncio.to_thread(
                device.answer, content, sign=self._insisting.key.sign, levels=lambda: self.made.levels
            )
        except (BadMessage, Conflict, CorruptContent) as exc:
            raise MaskingRefused(f"the gateway sent what cannot be answered: {exc}") from exc
        if device.has_masked and not had_masked:
            await asyncio.to_thread(self._insisting.note_input)
        return said


def _check(asked: SecureTask, task: Task, terms: Terms) -> None:
    """Raises `BadMessage` where an invitation is for something else than the task that it came with."""
    layout = terms.layout
    wanted = (task.campaign, task.weights.step, terms.model, terms.artifact_digest, terms.variant, layout.digest)
    named = (asked.campaign, asked.step, asked.model, asked.artifact_digest, asked.variant, asked.layout_digest)
    is_fit = asked.n_elements == layout.n_elements and asked.has_clip_bit == terms.is_adaptive
    if named != wanted or not is_fit or (task.clip > 0 and abs(asked.clip_norm - task.clip) > 1e-9 * task.clip):
        raise BadMessage("the masked round's invitation is for another task than the one that it came with")
