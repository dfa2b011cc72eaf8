"""How sure a classifier is of each row: the largest probability, after its scores were cooled to what was measured."""

from typing import Final

import numpy as np

from hybrid.artifact.manifest import ScoreKind

_LEAST: Final = 1e-12


def logits_of(scores: np.ndarray, kind: ScoreKind) -> np.ndarray:
    """Scores as logarithms, one row a sample; probabilities lose nothing by it but a constant."""
    rows = np.asarray(scores, np.float64).reshape(-1, scores.shape[-1])
    return np.log(np.maximum(rows, _LEAST)) if kind == "probabilities" else rows


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of logits over a temperature: above 1 for a model that is surer than it is right."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    found: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return found


def confidences(scores: np.ndarray, kind: ScoreKind, temperature: float) -> np.ndarray:
    """The probability of each row's most likely class; 0 where a score is no number, so that nobody relies on it.

    A row that holds several decisions (scores of three axes and more) is as sure as the least sure of them.
    """
    logits = logits_of(scores, kind)
    sound = np.isfinite(logits).all(axis=1)
    found = np.zeros(len(logits))
    if sound.any():
        found[sound] = probabilities(logits[sound], temperature).max(axis=1)
    if scores.ndim <= 2 or not len(found):
        return found
    least: np.ndarray = found.reshape(scores.shape[0], -1).min(axis=1)
    return least


def calibration_error(sure: np.ndarray, right: np.ndarray, n_bins: int = 15) -> float:
    """Expected calibration error: how far confidence and share of right answers lie apart, over bins of equal width."""
    places = np.minimum((sure * n_bins).astype(int), n_bins - 1)
    total = 0.0
    for place in range(n_bins):
        inside = places == place
        if inside.any():
            total += float(inside.mean()) * abs(float(right[inside].mean()) - float(sure[inside].mean()))
    return total
