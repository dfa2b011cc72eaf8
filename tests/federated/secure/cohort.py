"""A cohort of boxes and a gateway in one process: whoever is to drop does, and every state is restored from bytes."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.gateway import MaskedRound
from hybrid.federated.secure.quantized import Sum
from hybrid.federated.secure.task import SecureTask
from hybrid.federated.secure.unmask import unmasked
from hybrid.fleet.signing import box_id_of

STAGES = ("advertise", "share", "mask", "consent", "unmask")


def task_of(n_elements=50, **changes) -> SecureTask:
    fields = {
        "campaign": "k3p9w2xa", "step": 4, "model": "digits", "artifact_digest": "a" * 64, "variant": "fp32",
        "layout_digest": "b" * 64, "n_elements": n_elements, "clip_norm": 1.0, "element_range": 0.25,
    }  # fmt: skip
    return SecureTask(**(fields | changes))


class Box:
    """A box: its key, and its state as bytes between any two messages."""

    def __init__(self, number: int, seed: int = 0) -> None:
        scalar = int.from_bytes(hashlib.sha256(f"box {number} {seed}".encode()).digest(), "big") >> 8
        self._key = ec.derive_private_key(scalar + 1, ec.SECP256R1())
        self.public = self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = box_id_of(self.public)
        self._rng = np.random.default_rng([number, seed])
        self.levels = self._rng.integers(-127, 128, 0)
        self.state = b""
        self.guard = Guard()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))

    def random(self, n_bytes: int) -> bytes:
        return self._rng.bytes(n_bytes)

    def begin(self, task: SecureTask, n_inputs_before: int = 0) -> bytes:
        self.levels = self._rng.integers(-task.n_levels, task.n_levels + 1, task.n_masked)
        made = Device.begin(
            task, self.public, sign=self.sign, random=self.random, guard=self.guard, n_inputs_before=n_inputs_before
        )
        self.state = made.to_bytes()
        return Device.from_bytes(self.state).advert()

    @property
    def device(self) -> Device:
        return Device.from_bytes(self.state, guard=self.guard)

    def answer(self, message: bytes) -> bytes:
        device = self.device
        content = device.answer(message, sign=self.sign, levels=lambda: self.levels)
        self.state = device.to_bytes()
        return content


@dataclass
class Cohort:
    """A gateway with its journal, and boxes."""

    task: SecureTask
    boxes: list[Box]
    journal: list[bytes] = field(default_factory=list)
    inputs: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, n_boxes: int, task: SecureTask | None = None, seed: int = 0) -> "Cohort":
        return cls(task or task_of(), [Box(number, seed) for number in range(n_boxes)])

    @property
    def round(self) -> MaskedRound:
        return MaskedRound.restored(self.task, self.journal)

    def take(self, box: Box, content: bytes) -> bool:
        state = self.round
        entry = state.take(box.id, content)
        if state.stage == "mask":
            self.inputs[box.id] = content
        if entry is not None:
            self.journal.append(entry)
        return entry is not None

    def close(self) -> None:
        self.journal.append(self.round.close())

    def stage(self, boxes: list[Box]) -> None:
        """One stage with these boxes, in this order."""
        for box in boxes:
            state = self.round
            message = box.begin(self.task) if state.stage == "advertise" else box.answer(state.message_for(box.id))
            assert self.take(box, message)
            if state.stage == "unmask" and b"consent" in message:  # a late one
                assert self.take(box, box.answer(self.round.message_for(box.id)))
        self.close()

    def run(self, drops: dict[str, list[int]] | None = None, rng: np.random.Generator | None = None) -> MaskedRound:
        """All stages; `drops` says who is gone from which stage on."""
        present = list(range(len(self.boxes)))
        for stage in STAGES:
            if self.round.stage == "excluded":
                break
            present = [number for number in present if number not in (drops or {}).get(stage, [])]
            order = present if rng is None else list(rng.permutation(present))
            self.stage([self.boxes[number] for number in order])
        return self.round

    def sum(self) -> Sum:
        return unmasked(self.round, self.inputs.__getitem__)

    def expected(self, numbers) -> np.ndarray:
        return sum(self.boxes[number].levels.astype(np.int64) for number in numbers)
