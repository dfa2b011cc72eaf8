"""Windows of a stream: whether a policy was never far behind another, for as long as people notice.

Design: two policies are compared over the requests that both of them answered. In a paced stream a due time that comes
while a request still runs is skipped, so a policy that sits in a bad second answers few requests of it, and one that
does not answers many: the medians of all their requests would be taken over different moments. Where both answered
everything, this is the comparison of the whole windows.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from hybrid.simulation.outcome import Outcome

Floats = npt.NDArray[np.float64]

WINDOW_S: Final = 10.0


def shared(ours: Outcome, theirs: Outcome) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The rows of both outcomes that belong to the requests that both answered, in the order of the stream."""
    _, here, there = np.intersect1d(ours.slot, theirs.slot, assume_unique=True, return_indices=True)
    return here, there


def ratios(
    ours: Outcome, our_costs: Floats, theirs: Outcome, their_costs: Floats, window_s: float = WINDOW_S
) -> Floats:
    """For each window, the worse of two ratios of ours to theirs: of the means, and of the medians.

    Args:
        ours: an outcome.
        our_costs: (n,) of its requests.
        theirs: an outcome over the same stream.
        their_costs: (n,) of its requests.
        window_s: seconds of a window.

    Returns:
        (n_windows,), NaN where no request was answered by both; an incomplete window at the end belongs to the one
        before it.
    """
    here, there = shared(ours, theirs)
    n_windows = max(1, int(ours.duration_s / window_s))
    number = np.minimum((ours.start_s[here] / window_s).astype(int), n_windows - 1)
    edges = np.searchsorted(number, np.arange(n_windows + 1))
    found = np.full(n_windows, np.nan)
    for window in range(n_windows):
        inside = slice(edges[window], edges[window + 1])
        mine, other = our_costs[here[inside]], their_costs[there[inside]]
        if len(mine):
            found[window] = max(mine.mean() / other.mean(), np.median(mine) / np.median(other))
    return found


def share_within(values: Floats, limit: float) -> float:
    """The share of values that are at most `limit`; 1 where there are none."""
    return float((values <= limit).mean()) if len(values) else 1.0
