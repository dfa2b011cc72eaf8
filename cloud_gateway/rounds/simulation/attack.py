"""What boxes of bad will or bad memory send in place of what they learned."""

from typing import Final, Literal

import numpy as np

from hybrid.federated.coding.form import Form
from hybrid.federated.layout import Layout

Attack = Literal["flip", "scale", "noise", "garbage"]
_FLIPPED: Final = -5.0
_SCALED: Final = 1000.0


def attacked(attack: Attack, content: bytes, form: Form, layout: Layout, rng: np.random.Generator) -> bytes:
    """What goes out: five times the contrary, a thousand times as much, noise of the same norm, or no update."""
    if attack == "garbage":
        return rng.bytes(len(content))
    vector = _turned(attack, form.decode(content, layout), rng)
    return form.encode(vector.astype(np.float32), layout, rng).content


def attacked_levels(attack: Attack, levels: np.ndarray, largest: int, rng: np.random.Generator) -> np.ndarray:
    """The same of levels that are masked: an attacker does not clip, but no level can be beyond the largest."""
    if attack == "garbage":
        return rng.integers(-largest, largest, size=levels.shape, endpoint=True, dtype=np.int32)
    turned: np.ndarray = np.clip(np.rint(_turned(attack, levels, rng)), -largest, largest).astype(np.int32)
    return turned


def _turned(attack: Attack, vector: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    turned: np.ndarray = _FLIPPED * vector if attack == "flip" else _SCALED * vector
    if attack == "noise":
        noise = rng.normal(size=vector.shape)
        turned = noise * (np.linalg.norm(vector) / np.linalg.norm(noise))
    return turned
