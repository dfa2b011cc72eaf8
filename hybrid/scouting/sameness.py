"""How far two results are from one another."""

from collections.abc import Iterable, Sequence

import numpy as np

TOLERANCE_RATIO = 1e-4
"""Largest |a - b| over largest |b| at which two results are the same."""


def distance(found: Iterable[np.ndarray], wanted: Iterable[np.ndarray]) -> float:
    """The largest `distance_ratio` of all outputs."""
    return max((distance_ratio(one, other) for one, other in zip(found, wanted, strict=True)), default=0.0)


def is_alike(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    """Whether results have the wanted ones' shapes and datatypes, and finite numbers where those have them."""
    return len(found) == len(wanted) and all(map(_has_form, found, wanted))


def _has_form(found: np.ndarray, wanted: np.ndarray) -> bool:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return wanted.dtype.kind != "f" or bool((np.isfinite(found) | ~np.isfinite(wanted)).all())


def distance_ratio(found: np.ndarray, wanted: np.ndarray) -> float:
    """max|a - b| / max|b|; infinite where shapes, dtypes, NaNs or any whole number or string differ."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(found, wanted) else float("inf")
    if not wanted.size:
        return 0.0
    apart, size = found.astype(np.float64), wanted.astype(np.float64)
    if not np.array_equal(np.isfinite(apart), np.isfinite(size)):
        return float("inf")
    finite = np.isfinite(size)
    if not np.array_equal(apart[~finite], size[~finite], equal_nan=True):
        return float("inf")
    largest = np.abs(size[finite]).max(initial=0.0)
    worst = np.abs(apart[finite] - size[finite]).max(initial=0.0)
    return float(worst / largest) if largest else float(worst)
