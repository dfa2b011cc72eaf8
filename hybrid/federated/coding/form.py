"""What every form of a vector offers: bytes with what they left out, and back from bytes that nobody trusts.

*Error feedback*: a lossy form rounds. What was rounded away is no loss as long as it is added to the next vector that
the same device sends; `encode` takes that *residual* and returns the next one. The residual belongs to the lineage of
models that the device trains, not to the version that an update started from: kept by version, it is lost at every
dropout. Whoever stores it stores the bytes beside it in one transaction, so that a retry sends the same bytes and
nothing is carried on twice.
"""

from typing import NamedTuple, Protocol

import numpy as np

from hybrid.errors import BadMessage, TensorMismatch
from hybrid.federated.layout import Layout


class Encoded(NamedTuple):
    """A vector on its way.

    Attributes:
        content: what is sent.
        residual: float32 (n_elements,), what `content` does not say of vector and old residual.
    """

    content: bytes
    residual: np.ndarray


class Form(Protocol):
    """One way of writing a vector."""

    @property
    def name(self) -> str:
        """As the catalog knows it and as a task names it."""

    def max_bytes(self, layout: Layout) -> int:
        """No content of this form is longer: the limit of a body, known before it is read."""

    def encode(
        self, vector: np.ndarray, layout: Layout, rng: np.random.Generator, residual: np.ndarray | None = None
    ) -> Encoded:
        """Vector and residual as bytes.

        Args:
            vector: float32 (n_elements,).
            rng: of the stochastic rounding; a form that does not round leaves it alone.
            residual: what earlier contents of this lineage left out, None for nothing.

        Raises:
            TensorMismatch: another length or datatype, or an element that is not finite.
        """

    def decode(self, content: bytes | memoryview, layout: Layout) -> np.ndarray:
        """The vector that these bytes say, float32 (n_elements,), new and writable; the same one on every machine.

        Raises:
            BadMessage: they are not this form's, or no vector of this layout. Memory is bounded by the layout.
        """


def target(vector: np.ndarray, layout: Layout, residual: np.ndarray | None) -> np.ndarray:
    """What a content should say: vector and residual, as a new float32 array.

    Raises:
        TensorMismatch: as `Form.encode`.
    """
    for name, array in (("vector", vector), ("residual", residual)):
        if array is not None and (array.shape != (layout.n_elements,) or array.dtype != np.float32):
            raise TensorMismatch(
                f"a {name} is {array.dtype} {array.shape}, the layout says float32 ({layout.n_elements},)"
            )
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = vector.copy() if residual is None else vector + residual
    if not np.isfinite(wanted).all():
        first = int(np.flatnonzero(~np.isfinite(wanted))[0])
        raise TensorMismatch(f"element {first} of an update is {wanted[first]}: training diverged, nothing was sent")
    return wanted


def refuse_longer(content: bytes | memoryview, form: Form, layout: Layout) -> None:
    """Raises `BadMessage` for more bytes than the form can need."""
    limit = form.max_bytes(layout)
    if len(content) > limit:
        raise BadMessage(f"a {form.name} content of {len(content)} bytes: {limit} are enough for this layout")
