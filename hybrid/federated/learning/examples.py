"""What is learned from: features and targets, sample by sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hybrid.errors import TensorMismatch

TOGETHER_BYTES: Final = 2 << 20
"""Copied once a training; more stay where they are, for a small box has not the room."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of features, float32, with the target of each.

    Attributes:
        features: one array (n, …), or one array a sample: rows of a shelf, not copied.
        targets: class numbers, int64 (n,); or values, float32 (n, …).
    """

    features: np.ndarray | Sequence[np.ndarray]
    targets: np.ndarray

    def __post_init__(self) -> None:
        """Raises `TensorMismatch`."""
        if len(self.features) != len(self.targets):
            raise TensorMismatch(f"{len(self.features)} rows of features for {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def has_classes(self) -> bool:
        """Whether the targets are class numbers."""
        return bool(self.targets.dtype.kind in "iu")

    def fitting(self, n_scores: int) -> "Examples":
        """Those whose class the model has; the same object where all fit, or where targets are values."""
        if not self.has_classes or not len(self) or 0 <= int(self.targets.min()) <= int(self.targets.max()) < n_scores:
            return self
        kept = np.flatnonzero((self.targets >= 0) & (self.targets < n_scores))
        rows = (
            self.features[kept]
            if isinstance(self.features, np.ndarray)
            else [self.features[at] for at in kept.tolist()]
        )
        return Examples(rows, self.targets[kept])

    def together(self) -> "Examples":
        """The same, copied into one array where that is small: batches are then taken in one step."""
        if isinstance(self.features, np.ndarray) or not self.features:
            return self
        first = self.features[0]
        if len(self) * first.nbytes > TOGETHER_BYTES or any(row.shape != first.shape for row in self.features):
            return self
        return Examples(np.stack(list(self.features)), self.targets)

    def some(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features and targets of some samples, copied."""
        if isinstance(self.features, np.ndarray):
            return self.features[indices], self.targets[indices]
        return np.stack([self.features[index] for index in indices]), self.targets[indices]
