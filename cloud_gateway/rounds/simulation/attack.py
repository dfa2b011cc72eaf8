"""What boxes of bad will or bad memory send in place of what they learned."""

from typing import Literal

import numpy as np

from hybrid.federated.coding.form import Form
from hybrid.federated.layout import Layout

Attack = Literal["flip", "scale", "noise", "garbage"]


def attacked(attack: Attack, content: bytes, form: Form, layout: Layout, rng: np.random.Generator) -> bytes:
    """What goes out: five times the contrary, a thousand times as much, noise of the same norm, or no update."""
    if attack == "garbage":
        return rng.bytes(len(content))
    vector = form.decode(content, layout)
    if attack == "noise":
        noise = rng.normal(size=vector.shape)
        vector = noise * (np.linalg.norm(vector) / np.linalg.norm(noise))
    else:
        vector = vector * (-5.0 if attack == "flip" else 1000.0)
    return form.encode(vector.astype(np.float32), layout, rng).content
