"""A model's versions coming down as differences: what all devices hold, link by link, the same to the last bit.

What devices hold is not the model but its *view*: the first version in full, then each link's decoded vector added. A
link says the difference between the newest weights and the view, so what a lossy form leaves out of one link is in the
next one: error feedback without a residual. Decoding and adding are single float32 operations, the same on every
machine; the digest of the view proves it. Devices train from the view and send updates against it.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hybrid.errors import DigestMismatch
from hybrid.federated.coding.form import Form, target
from hybrid.federated.layout import Layout


class Link(NamedTuple):
    """A step from one version's view to the next one's.

    Attributes:
        content: what is sent.
        view: float32 (n_elements,), what devices hold that had the last view and read `content`.
    """

    content: bytes
    view: np.ndarray


def view_digest(view: np.ndarray) -> str:
    """SHA-256 of a view's little-endian float32 bytes, in hex."""
    return hashlib.sha256(view.astype("<f4").tobytes()).hexdigest()


def link(form: Form, view: np.ndarray, weights: np.ndarray, layout: Layout, rng: np.random.Generator) -> Link:
    """From what devices hold towards new weights.

    Raises:
        TensorMismatch: lengths or datatypes are not the layout's, or an element is not finite.
    """
    difference = target(weights, layout, None) - target(view, layout, None)
    content = form.encode(difference, layout, rng).content
    return Link(content, view + form.decode(content, layout))


def follow(form: Form, view: np.ndarray, content: bytes | memoryview, layout: Layout, digest: str) -> np.ndarray:
    """A device's next view, a new array.

    Raises:
        BadMessage: the content is not this form's.
        DigestMismatch: this device's view was another one: ask for the whole version.
    """
    after: np.ndarray = view + form.decode(content, layout)
    if view_digest(after) != digest:
        raise DigestMismatch(f"the view came to {view_digest(after)[:12]}…, {digest[:12]}… was wanted: fetch it whole")
    return after


def links_pay(n_link_bytes: Sequence[int], layout: Layout) -> bool:
    """Whether these links are fewer bytes than the whole view: a device that was away too long takes it anew."""
    return sum(n_link_bytes) < 4 * layout.n_elements
