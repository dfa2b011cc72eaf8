"""From what a box holds to a step's view, and the proof that it is the same to the last bit as everybody's."""

import numpy as np

from hybrid.errors import BadMessage, DigestMismatch
from hybrid.federated.coding.catalog import form
from hybrid.federated.coding.versions import view_digest
from hybrid.federated.layout import Layout
from hybrid.federated.messages import Weights

BASE_STEP = 0
"""The step whose view is the base's own head."""


def view_of(weights: Weights, layout: Layout, held: tuple[int, np.ndarray], share: float = 0.01) -> np.ndarray:
    """The view of a step, float32 (n_elements,).

    Args:
        weights: what the gateway said.
        layout: of what travels.
        held: step and view that the box holds; the base's own head is that of step 0.
        share: of the elements in a sparse difference, as the campaign's coding has it.

    Raises:
        DigestMismatch: it cannot be had from this: ask for the whole view.
        BadMessage: what came is no vector of this layout.
    """
    step, view = held
    if weights.whole:
        view, step = vector_of(weights.whole, layout), weights.step
    for difference in weights.differences:
        if difference.step != step + 1:
            raise DigestMismatch(f"a difference leads to step {difference.step}, this box holds {step}")
        view = view + form(difference.form, share).decode(difference.content, layout)
        step += 1
    if step != weights.step or view.shape != (layout.n_elements,) or view_digest(view) != weights.sha256:
        raise DigestMismatch(f"the view came to step {step}, {weights.step} was wanted, or to other numbers: fetch it")
    return view


def vector_of(content: bytes, layout: Layout) -> np.ndarray:
    """A vector that came as float32. Raises `BadMessage`."""
    if len(content) != 4 * layout.n_elements:
        raise BadMessage(f"a vector of {len(content)} bytes, the layout has {layout.n_elements} elements")
    return np.frombuffer(content, "<f4").astype(np.float32)


def bytes_of(vector: np.ndarray) -> bytes:
    """A vector as it is kept and travels: float32, little-endian."""
    return vector.astype("<f4").tobytes()
