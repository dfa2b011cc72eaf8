"""How good the predictions are: the running median of their absolute relative error, for each placement."""

from collections import deque
from statistics import median
from typing import Final

WINDOW: Final = 200
"""Answers that count, for each placement."""


class PredictionError:
    """Running errors of predicted seconds against measured ones; appending is atomic, so that it needs no lock."""

    def __init__(self) -> None:
        self._errors: dict[str, deque[float]] = {}

    def observe(self, placement: str, predicted_s: float, measured_s: float) -> None:
        """One answer: what was expected of its plan, and what it took (both above 0)."""
        errors = self._errors.get(placement)
        if errors is None:
            errors = self._errors.setdefault(placement, deque(maxlen=WINDOW))
        errors.append(abs(predicted_s - measured_s) / measured_s)

    def median_ratio(self, placement: str = "") -> float | None:
        """The median of |predicted - measured| / measured; None before the first answer.

        Args:
            placement: of the plan; empty for all.
        """
        kept = [list(errors) for name, errors in list(self._errors.items()) if placement in ("", name)]
        flat = [error for errors in kept for error in errors]
        return median(flat) if flat else None
