"""Windows of a stream: whether a policy was never far behind the better side, for as long as people notice."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hybrid.simulation.outcome import Outcome

Floats = npt.NDArray[np.float64]

WINDOW_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Windows:
    """A policy's costs by window.

    Attributes:
        mean: (n_windows,) mean over the requests that began in the window; NaN where none did.
        p50: (n_windows,) the median of them.
        n_requests: (n_windows,) how many.
    """

    mean: Floats
    p50: Floats
    n_requests: Floats


def windows(outcome: Outcome, costs: Floats, window_s: float = WINDOW_S) -> Windows:
    """The costs of a stream by window; an incomplete window at its end belongs to the one before it."""
    n_windows = max(1, int(outcome.duration_s / window_s))
    number = np.minimum((outcome.start_s / window_s).astype(int), n_windows - 1)
    mean, p50, count = np.full(n_windows, np.nan), np.full(n_windows, np.nan), np.zeros(n_windows)
    edges = np.searchsorted(number, np.arange(n_windows + 1))
    for window in range(n_windows):
        inside = costs[edges[window] : edges[window + 1]]
        count[window] = len(inside)
        if len(inside):
            mean[window], p50[window] = inside.mean(), np.median(inside)
    return Windows(mean=mean, p50=p50, n_requests=count)


def better_side(*sides: Windows) -> Windows:
    """For each window the least mean and the least median of these; a side without a request in it is not counted."""
    return Windows(
        mean=np.nanmin(np.stack([side.mean for side in sides]), axis=0),
        p50=np.nanmin(np.stack([side.p50 for side in sides]), axis=0),
        n_requests=np.max(np.stack([side.n_requests for side in sides]), axis=0),
    )


def ratios(ours: Windows, reference: Windows) -> Floats:
    """For each window with requests of ours, the worse of the two ratios (mean and median) to the reference."""
    both = np.maximum(ours.mean / reference.mean, ours.p50 / reference.p50)
    return both[ours.n_requests > 0]


def share_within(values: Floats, limit: float) -> float:
    """The share of values that are at most `limit`; 1 where there are none."""
    return float((values <= limit).mean()) if len(values) else 1.0
