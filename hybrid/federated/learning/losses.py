"""Losses of scores: cross-entropy over classes, or the mean squared error."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from hybrid.errors import TensorMismatch
from hybrid.federated.learning.program import LossAt

LossName = Literal["cross-entropy", "squared-error"]
_LEAST = np.float32(1e-9)


def loss_name(targets: np.ndarray) -> LossName:
    """What fits these targets: class numbers, or values."""
    return "cross-entropy" if targets.dtype.kind in "iu" else "squared-error"


def loss_of(name: LossName, targets: np.ndarray, *, n: int, smoothing: float = 0.0) -> LossAt:
    """The loss of scores (rows, classes) or (rows, …) against the targets of these rows.

    Args:
        name: which.
        targets: class numbers, or values of the scores' size.
        n: what sums are divided by: the rows of the whole batch, of which these may be a part.
        smoothing: share of each target that is spread over all classes; 0 for none.
    """
    if name == "squared-error":
        return lambda scores: _squared_error(scores, targets, n)
    return lambda scores: _cross_entropy(scores, targets, n, smoothing)


def rows_of_scores(scores: np.ndarray, n_rows: int) -> np.ndarray:
    """Scores as (rows, classes); raises `TensorMismatch` where they are not one row a sample."""
    if scores.ndim < 1 or scores.shape[0] != n_rows:
        raise TensorMismatch(f"scores are {list(scores.shape)} for {n_rows} samples; one row each is wanted")
    return scores.reshape(n_rows, -1)


def _cross_entropy(scores: np.ndarray, classes: np.ndarray, n: int, smoothing: float) -> tuple[float, np.ndarray]:
    flat = rows_of_scores(scores, len(classes))
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < flat.shape[1]:
        raise TensorMismatch(f"a class of {int(classes.max())} where the model has {flat.shape[1]}")
    shifted = np.exp(flat - flat.max(1, keepdims=True))
    shares = shifted / shifted.sum(1, keepdims=True)
    rows = np.arange(len(classes))
    if smoothing:
        wanted = np.full_like(shares, smoothing / shares.shape[1])
        wanted[rows, classes] += np.float32(1 - smoothing)
        loss = -(wanted * np.log(shares + _LEAST)).sum() / n
        return float(loss), ((shares - wanted) / n).reshape(scores.shape)
    loss = -np.log(shares[rows, classes] + _LEAST).sum() / n
    shares[rows, classes] -= 1
    shares /= n
    return float(loss), shares.reshape(scores.shape)


def rows_of_values(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Targets as (rows, values); raises `TensorMismatch` where a row has not as many as one of the scores."""
    flat = values.reshape(len(values), -1)
    n_wanted = rows_of_scores(scores, len(values)).shape[1]
    if flat.shape[1] != n_wanted:
        raise TensorMismatch(f"labels have {flat.shape[1]} values, the model gives {n_wanted}")
    return flat


def _squared_error(scores: np.ndarray, values: np.ndarray, n: int) -> tuple[float, np.ndarray]:
    flat = rows_of_scores(scores, len(values))
    apart = flat - rows_of_values(values, scores)
    scale = np.float32(n * flat.shape[1])
    return float((apart * apart).sum() / scale), (apart * (np.float32(2) / scale)).reshape(scores.shape)


Counted = Callable[[np.ndarray, np.ndarray], np.ndarray]


def is_right(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """For each row whether its highest score is its class's; never where a score is no number."""
    flat = rows_of_scores(scores, len(classes))
    found: np.ndarray = (flat.argmax(1) == classes) & np.isfinite(flat).all(1)
    return found
