"""Connected regions of a mask, in numpy alone."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """One region of 4-connected true pixels: its bounding box (right and bottom exclusive) and its runs.

    Attributes:
        left: first column.
        top: first row.
        right: one past the last column.
        bottom: one past the last row.
        mean: mean of the values below the region's own pixels.
    """

    left: int
    top: int
    right: int
    bottom: int
    mean: float


def regions(mask: np.ndarray, values: np.ndarray) -> list[Region]:
    """Every region of `mask`, `(h, w)` of bool, with the mean of `values`, `(h, w)`, below it.

    The rows' runs are joined by union-find: as many steps in Python as there are runs, not pixels.
    """
    row, left, right = _runs(mask)
    root = np.arange(row.size)

    def find(run: int) -> int:
        while root[run] != run:
            root[run] = root[root[run]]
            run = int(root[run])
        return run

    first_of_row = np.searchsorted(row, np.arange(mask.shape[0] + 1))
    for run in range(row.size):
        above = row[run] - 1
        if above < 0:
            continue
        for other in range(first_of_row[above], first_of_row[above + 1]):
            if left[other] < right[run] and left[run] < right[other]:
                root[find(run)] = find(other)
    labels = np.array([find(run) for run in range(row.size)], np.int64)
    sums = np.concatenate((np.zeros((len(values), 1)), np.cumsum(values, axis=1, dtype=np.float64)), axis=1)
    weights = sums[row, right] - sums[row, left]
    return [_region(np.flatnonzero(labels == label), row, left, right, weights) for label in np.unique(labels)]


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first column and one past the last column of every horizontal run, in reading order."""
    padded = np.zeros((mask.shape[0], mask.shape[1] + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1)
    row, left = np.nonzero(change == 1)
    _, right = np.nonzero(change == -1)
    return row, left, right


def _region(runs: np.ndarray, row: np.ndarray, left: np.ndarray, right: np.ndarray, weights: np.ndarray) -> Region:
    n_pixels = int((right[runs] - left[runs]).sum())
    return Region(
        left=int(left[runs].min()),
        top=int(row[runs].min()),
        right=int(right[runs].max()),
        bottom=int(row[runs].max()) + 1,
        mean=float(weights[runs].sum()) / n_pixels,
    )
