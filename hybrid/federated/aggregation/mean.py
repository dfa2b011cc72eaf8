"""The weighted mean of updates that arrive one by one, in the memory of one."""

import math

import numpy as np

from hybrid.errors import TensorMismatch
from hybrid.federated.layout import Layout


def staleness_weight(n_versions_behind: int) -> float:
    """1/√(1+τ) for an update whose base is τ versions old.

    Source: Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, section 5.
    """
    return 1.0 / math.sqrt(1.0 + max(0, n_versions_behind))


class RunningMean:
    """Σ weight·damping·vector / Σ weight, summed in float64.

    The order of arrival moves the float64 sum in its last bits only; after rounding to float32 it almost never shows
    (a float32 sum of ten updates differs by up to 1e-4 after some rounds). The damping (staleness) is left out of the
    divisor, as in FedBuff: a buffer of old updates makes a smaller step, not the same step by older directions.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sum = np.zeros(layout.n_elements, np.float64)
        self.weight = 0.0
        self.n_updates = 0

    def add(self, vector: np.ndarray, weight: float = 1.0, damping: float = 1.0) -> None:
        """Counts one update.

        Args:
            vector: float32 (n_elements,), finite (the gates' business).
            weight: the device's samples, or 1 for uniform weights; above 0.
            damping: 0 to 1, `staleness_weight`.

        Raises:
            TensorMismatch: of another length or datatype, or a weight that is no finite number above 0.
        """
        if vector.shape != self._sum.shape or vector.dtype != np.float32:
            raise TensorMismatch(f"an update is {vector.dtype} {vector.shape}, the layout says {self._sum.shape}")
        if not (0 < weight < math.inf and 0 <= damping <= 1):
            raise TensorMismatch(f"an update weighs {weight}, damped by {damping}: above 0, and 0 to 1, were wanted")
        self._sum += np.multiply(vector, weight * damping, dtype=np.float64)
        self.weight += weight
        self.n_updates += 1

    def mean(self) -> np.ndarray:
        """Float32 (n_elements,); zero while nothing was added."""
        if not self.n_updates:
            return np.zeros(self._layout.n_elements, np.float32)
        return (self._sum / self.weight).astype(np.float32)
