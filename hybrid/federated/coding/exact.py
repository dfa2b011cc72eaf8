"""Every element as the float32 that it is: nothing lost, four bytes each."""

import numpy as np

from hybrid.errors import BadMessage
from hybrid.federated.coding.form import Encoded, target
from hybrid.federated.layout import Layout


class Exact:
    """Little-endian float32, one behind the other, without a header. What it reads may hold NaN: gates look for it."""

    name = "float32"

    def max_bytes(self, layout: Layout) -> int:
        """Exactly so many."""
        return 4 * layout.n_elements

    def encode(
        self, vector: np.ndarray, layout: Layout, rng: np.random.Generator, residual: np.ndarray | None = None
    ) -> Encoded:
        """All of it; the residual is zero."""
        del rng
        wanted = target(vector, layout, residual)
        return Encoded(wanted.astype("<f4").tobytes(), np.zeros(layout.n_elements, np.float32))

    def decode(self, content: bytes | memoryview, layout: Layout) -> np.ndarray:
        """Raises `BadMessage` for another length."""
        if len(content) != self.max_bytes(layout):
            raise BadMessage(f"a float32 content of {len(content)} bytes: the layout needs {self.max_bytes(layout)}")
        return np.frombuffer(content, "<f4").astype(np.float32)
