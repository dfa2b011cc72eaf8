"""What masking an update costs: bytes beside the ring-width payload, keys and shares apart, and seconds of one core.

Whole rounds of the real protocol, device and gateway in one process, with the system's randomness; three devices in ten
are lost, one at each of three stages. No network: bytes are those of the messages.
"""

import argparse
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.report import Bar, Record, publish
from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.gateway import STAGES, MaskedRound
from hybrid.federated.secure.messages import Masked, decoded
from hybrid.federated.secure.quantized import quantized
from hybrid.federated.secure.ring import packed_size
from hybrid.federated.secure.task import SecureTask
from hybrid.federated.secure.unmask import unmasked
from hybrid.fleet.signing import box_id_of

MASKED_RATIO = 1.05
MASK_LIMIT_S = 1.0


class Box:
    """A box's key, its device of the round, and its quantized update."""

    def __init__(self, task: SecureTask, rng: np.random.Generator) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = box_id_of(self.public)
        self.sign = lambda message: key.sign(message, ec.ECDSA(hashes.SHA256()))
        self.update = (rng.standard_normal(task.n_elements) * (0.8 / task.n_elements**0.5)).astype(np.float32)
        self.levels = np.zeros(0, np.int32)
        self.device: Device | None = None

    def answer(self, task: SecureTask, message: bytes | None) -> bytes:
        """To the gateway's message; the first one is the advert."""
        if self.device is None:
            self.device = Device.begin(
                task, self.public, sign=self.sign, random=os.urandom, guard=Guard(corrupt_percent=5)
            )
            return self.device.advert()
        if message is None:
            raise RuntimeError("the gateway has nothing for this device")
        return self.device.answer(message, sign=self.sign, levels=lambda: self.levels)


@dataclass
class Costs:
    """Of one round: seconds and bytes by stage, of one device on average and of the gateway in all."""

    device_s: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    up_bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    down_bytes: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    gateway_s: float = 0.0
    sum_s: float = 0.0
    quantize_s: float = 0.0
    payload_bytes: int = 0
    signature_bytes: float = 0.0

    @property
    def body_bytes(self) -> float:
        """Of a masked input, its signature counted apart."""
        return self.up_bytes["mask"] - self.signature_bytes


def one_round(n_devices: int, n_elements: int, seed: int) -> Costs:
    """A round; raises where the sum is wrong."""
    task = SecureTask(
        campaign="benchmark", step=0, model="m", artifact_digest="a" * 64, variant="fp32", layout_digest="b" * 64,
        n_elements=n_elements, clip_norm=1.0, element_range=6.0 / n_elements**0.5,
    )  # fmt: skip
    rng, costs = np.random.default_rng(seed), Costs()
    boxes = [Box(task, rng) for _ in range(n_devices)]
    begun = time.perf_counter()
    for box in boxes:
        box.levels = quantized(box.update, None, task, rng).levels
    costs.quantize_s = (time.perf_counter() - begun) / n_devices
    state, inputs, present = MaskedRound(task), {}, boxes
    n_lost = 3 * n_devices // 10
    gone = {"share": n_lost // 3, "mask": n_lost // 3, "unmask": n_lost - 2 * (n_lost // 3)}
    for stage in STAGES[:-1]:
        present = present[gone.get(stage, 0) :]
        for box in present:
            begun = time.perf_counter()
            message = state.message_for(box.id)
            told = time.perf_counter()
            content = box.answer(task, message)
            answered = time.perf_counter()
            state.take(box.id, content)
            costs.gateway_s += told - begun + time.perf_counter() - answered
            costs.device_s[stage] += (answered - told) / len(present)
            costs.up_bytes[stage] += len(content) / len(present)
            costs.down_bytes[stage] += len(message or b"") / len(present)
            if stage == "mask":
                inputs[box.id] = content
                costs.signature_bytes += len(decoded(content, Masked, most_bytes=len(content)).signature) / len(present)
        begun = time.perf_counter()
        state.close()
        costs.gateway_s += time.perf_counter() - begun
    begun = time.perf_counter()
    total = unmasked(state, inputs.__getitem__)
    costs.sum_s = time.perf_counter() - begun
    counted = [box for box in boxes if box.id in inputs]
    if not np.array_equal(total.levels, np.sum([box.levels for box in counted], 0, np.int64)):
        raise RuntimeError("the sum is wrong")
    costs.payload_bytes = packed_size(n_elements, state.roster.bits)
    return costs


def row(n_devices: int, n_elements: int, costs: Costs) -> list[str | float]:
    """One row of the table."""
    keys = {stage: costs.up_bytes[stage] for stage in STAGES[:-1]}
    keys["mask"] = costs.signature_bytes
    return [
        f"{n_devices} × {n_elements:,}",
        f"{costs.payload_bytes:,.0f}",
        f"{costs.body_bytes:,.0f}",
        f"{sum(keys.values()):,.0f} ({' + '.join(f'{each:,.0f}' for each in keys.values())})",
        f"{sum(costs.down_bytes.values()):,.0f}",
        costs.quantize_s,
        costs.device_s["mask"],
        sum(costs.device_s.values()) - costs.device_s["mask"],
        costs.gateway_s,
        costs.sum_s,
    ]


def main() -> int:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3, help="of each size; the fastest counts")
    arguments = parser.parse_args()
    rows: list[list[str | float]] = []
    bars: list[Bar] = []
    for n_devices, n_elements in ((10, 650), (10, 4_810), (10, 1_000_000), (100, 4_810)):
        n_rounds = arguments.rounds if n_devices == 10 else 1
        rounds = [one_round(n_devices, n_elements, arguments.seed + each) for each in range(n_rounds)]
        costs = min(rounds, key=lambda each: each.device_s["mask"])
        rows.append(row(n_devices, n_elements, costs))
        name = f"{n_devices} devices, {n_elements:,} elements"
        ratio = costs.body_bytes / costs.payload_bytes
        bars.append(Bar(name=f"{name}: masked body over ring-width payload", measured=ratio, limit=MASKED_RATIO))
        if n_elements == 1_000_000:
            mask_s = costs.device_s["mask"]
            bars.append(Bar(name=f"{name}: a device's masking", measured=mask_s, limit=MASK_LIMIT_S, unit=" s"))
    return publish(
        Record(
            name="secure_aggregation",
            claim="Secure aggregation: what masking costs a device and the gateway",
            method=(
                "Whole rounds with 30 % of the devices lost (a third each before sharing, before masking and before "
                "unmasking) and the right sum; the fastest of the rounds of a size. Bytes are those of one device's "
                "messages; keys and shares are advertise + share + the signature of a masked input + consent + unmask, "
                "and the masked body is without that signature. Seconds are of one core; the gateway's are of all "
                "devices' messages together."
            ),
            seed=arguments.seed,
            columns=[
                "devices × elements", "ring payload, bytes", "masked body, bytes", "keys and shares up, bytes",
                "down, bytes", "quantize, s", "mask, s", "other stages, s", "gateway's messages, s", "sum, s",
            ],
            rows=rows,
            bars=bars,
        )
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
