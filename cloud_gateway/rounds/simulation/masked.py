"""A virtual box's part in a masked round: the device of `hybrid.federated.secure`, answered stage by stage.

Design: as `edge_agent/learning/masked.py` has it, without a disk: what a box remembers over its falls is its key and
how often it masked an input for a step.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random
from typing import Final, Literal, NamedTuple

import numpy as np

from cloud_gateway.rounds.simulation.attack import Attack, attacked_levels
from hybrid.errors import BadMessage, Conflict, CorruptContent, MaskingRefused
from hybrid.federated.messages import SecureAnswer, SecureCall, Task
from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.invitation import Invitation
from hybrid.federated.secure.quantized import Quantized, quantized
from hybrid.fleet.signing import box_id_of

_WAIT_S: Final = 25.0
_ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256's group."""


class SimulatedKey:
    """A box's key, drawn from a seed: it guards nothing.

    Attributes:
        public_key: DER.
        box_id: the box's id.
    """

    def __init__(self, rng: Random) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self._key = ec.derive_private_key(rng.randrange(1, _ORDER), ec.SECP256R1())
        self.public_key = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.box_id = box_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """ECDSA with SHA-256, DER."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


class Played(NamedTuple):
    """What became of it, and the residual from now on; None keeps what there was."""

    state: Literal["done", "excluded", "refused"]
    residual: np.ndarray | None


class MaskedPart:
    """One box's part in one masked round.

    Args:
        key: the box's.
        task: whose `secure` is the invitation.
        update: float32, not clipped; and the residual.
        n_inputs: inputs that the box masked so far, by step; counted on.
        rng: of everything that is drawn.
    """

    def __init__(
        self,
        key: SimulatedKey,
        task: Task,
        update: tuple[np.ndarray, np.ndarray | None],
        n_inputs: Counter[int],
        rng: Random,
    ) -> None:
        self._key, self._task, self._rng, self._n_inputs = key, task, rng, n_inputs
        self._invitation = Invitation.from_bytes(task.secure)
        self._generator = np.random.default_rng(rng.getrandbits(63))
        self._made: Quantized = quantized(*update, self._invitation.task, self._generator)
        self._device: Device | None = None

    def turn(self, attack: Attack) -> None:
        """Mask what an attacker would in place of what was learned; the clip bit stays."""
        task, levels = self._invitation.task, self._made.levels.copy()
        place = slice(0, task.n_elements)
        levels[place] = attacked_levels(attack, levels[place], task.n_levels, self._generator)
        self._made = replace(self._made, levels=levels)

    async def play(self, call: Callable[[SecureCall], Awaitable[SecureAnswer]], falls: Callable[[], None]) -> Played:
        """Until the gateway says for good what became of it.

        Args:
            call: asks the gateway.
            falls: raises where the box falls over; asked before it brings something.
        """
        try:
            if self._n_inputs[self._task.weights.step]:
                raise MaskingRefused("this box has masked an input for this step before")
            return await self._play(call, falls)
        except MaskingRefused:
            return Played("refused", self._said_again())

    async def _play(self, call: Callable[[SecureCall], Awaitable[SecureAnswer]], falls: Callable[[], None]) -> Played:
        device = self._begun(self._invitation)
        content = device.advert()
        while True:
            if content:
                falls()
            answer = await call(
                SecureCall(
                    epoch="",
                    task=self._task.id,
                    campaign=self._task.campaign,
                    content=content,
                    wait_s=_WAIT_S,
                    attempt=device.task.attempt,
                )
            )
            if answer.state == "done":
                return Played("done", self._made.residual)
            if answer.state == "excluded":
                return Played("excluded", self._said_again())
            if answer.state == "wait":
                content = b""
            elif answer.stage == "again":
                if device.has_masked:
                    raise MaskingRefused("the round began anew after this box had masked its input")
                device = self._begun(Invitation.from_bytes(answer.content))
                content = device.advert()
            else:
                content = device.advert() if answer.stage == "advertise" else self._answered(device, answer.content)

    def _begun(self, invitation: Invitation) -> Device:
        self._device = Device.begin(
            invitation.task,
            self._key.public_key,
            sign=self._key.sign,
            random=self._rng.randbytes,
            guard=Guard(),
            n_inputs_before=self._n_inputs[self._task.weights.step],
        )
        return self._device

    def _answered(self, device: Device, content: bytes) -> bytes:
        had_masked = device.has_masked
        try:
            said = device.answer(content, sign=self._key.sign, levels=lambda: self._made.levels)
        except (BadMessage, Conflict, CorruptContent) as exc:
            raise MaskingRefused(f"the gateway sent what cannot be answered: {exc}") from exc
        if device.has_masked and not had_masked:
            self._n_inputs[self._task.weights.step] += 1
        return said

    def _said_again(self) -> np.ndarray | None:
        """The residual where what was masked is in no sum."""
        device = self._device
        if device is None or not device.has_masked:
            return None
        levels = self._made.levels[: device.task.n_elements]
        said: np.ndarray = levels.astype(np.float32) * np.float32(device.task.step_size)
        again: np.ndarray = self._made.residual + said
        return again
