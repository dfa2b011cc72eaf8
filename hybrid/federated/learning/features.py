"""Features of samples, each computed once and kept within a bound of bytes as long as the body is the same."""

from collections.abc import Sequence

import numpy as np

from hybrid.errors import TensorMismatch


class FeatureShelf:
    """Keeps one row of features a sample, of one body; of the newest samples, where not all fit.

    Attributes:
        n_bytes: that the rows hold.

    Args:
        most_bytes: what the rows may hold.
    """

    def __init__(self, most_bytes: int = 16 << 20) -> None:
        self._most_bytes = most_bytes
        self._body = ""
        self._rows: dict[str, np.ndarray] = {}
        self._ages: dict[str, int] = {}
        self._shape: tuple[int, ...] | None = None
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sample_id: object) -> bool:
        return sample_id in self._rows

    def expects(self, sample_id: str) -> bool:
        """Whether `begin` named it; may be asked by any thread."""
        return sample_id in self._ages

    def begin(self, body_key: str, sample_ids: Sequence[str]) -> None:
        """Keep rows of this body and of these samples alone, newest first; those that are there already stay."""
        if body_key != self._body:
            self._rows.clear()
            self._shape = None
        self._body = body_key
        self._ages = {sample_id: age for age, sample_id in enumerate(sample_ids)}
        for sample_id in [one for one in self._rows if one not in self._ages]:
            del self._rows[sample_id]
        self.n_bytes = sum(row.nbytes for row in self._rows.values())

    def has_room(self, sample_id: str) -> bool:
        """Whether a row like those that are there would still fit, if need be in place of an older sample's."""
        row_bytes = next(iter(self._rows.values())).nbytes if self._rows else 0
        return self.n_bytes + row_bytes <= self._most_bytes or self._oldest_behind(sample_id) is not None

    def put(self, sample_id: str, features: np.ndarray) -> bool:
        """Keep the features of a sample that `begin` named, (1, …), if need be in place of older ones'; whether so.

        Raises:
            TensorMismatch: not one row, another shape than the other samples', or not finite.
        """
        if features.shape[0] != 1:
            raise TensorMismatch(f"a sample has {features.shape[0]} rows of features; a label belongs to one")
        if self._shape is not None and features.shape[1:] != self._shape:
            raise TensorMismatch(
                f"features are {list(features.shape[1:])}, those of other samples {list(self._shape)}; samples of one "
                "size are wanted"
            )
        if not np.isfinite(features).all():
            raise TensorMismatch("a sample's features are not finite")
        row = np.array(features[0], np.float32)
        if sample_id not in self._rows:
            while self.n_bytes + row.nbytes > self._most_bytes:
                oldest = self._oldest_behind(sample_id)
                if oldest is None:
                    return False
                self.n_bytes -= self._rows.pop(oldest).nbytes
            self.n_bytes += row.nbytes
        self._shape = row.shape
        self._rows[sample_id] = row
        return True

    def rows(self, sample_ids: Sequence[str]) -> list[np.ndarray]:
        """The rows of these samples, not copied; raises `KeyError` for one that is not here."""
        return [self._rows[sample_id] for sample_id in sample_ids]

    def _oldest_behind(self, sample_id: str) -> str | None:
        """The oldest sample that is here, where it is older than this one."""
        oldest = max(self._rows, key=self._ages.__getitem__, default=sample_id)
        return oldest if self._ages[oldest] > self._ages[sample_id] else None
