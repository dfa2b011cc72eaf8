"""Robust ways of making one vector of many, in bounded memory, each with what it cannot do.

They read the updates as often as they must from a *spool*: a callable that gives an iterator over all of them, in the
same order each time (memory-mapped files are best: a block of coordinates then costs only itself). Never silently on:
where devices hold unlike data, an honest update is an outlier too. On Fashion-MNIST (Dirichlet 0.1, docs/updates.md)
each costs 1.3 to 6.2 points where nobody attacks, and careful attacks harm them more than the mean with its gates.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np

from hybrid.errors import TensorMismatch
from hybrid.federated.aggregation.mean import RunningMean
from hybrid.federated.layout import Layout

Spool = Callable[[], Iterable[np.ndarray]]

_BLOCK_BYTES: Final = 32 << 20
"""Of all updates together, at one time."""


class Combined(NamedTuple):
    """What a rule made.

    Attributes:
        delta: float32 (n_elements,).
        left_out: indices of the updates that count nothing in it; others may be clipped or counted in places only.
    """

    delta: np.ndarray
    left_out: tuple[int, ...] = ()


def mean(spool: Spool, layout: Layout, weights: Sequence[float]) -> Combined:
    """The weighted mean. Limit: a single attacker moves it anywhere within the norm gate."""
    running = RunningMean(layout)
    for vector, weight in zip(spool(), weights, strict=True):
        running.add(vector, weight)
    return Combined(running.mean())


def norm_clipped(
    spool: Spool, layout: Layout, weights: Sequence[float], dampings: Sequence[float] | None = None
) -> Combined:
    """The weighted mean after shortening every update to the median of the norms; `dampings` as the mean has them.

    Limits: bounds what an attacker gets to what an honest device gets, no more: many that agree still steer. A weight
    that devices state themselves undoes it: use uniform weights against attackers. Honest large updates (of a device
    with many samples) are shortened as well.

    Source: Sun et al., Can You Really Backdoor Federated Learning?, 2019.
    """
    norms = [norm(vector) for vector in spool()]
    limit = float(np.median(norms)) if norms else 0.0
    running = RunningMean(layout)
    damped = [1.0] * len(norms) if dampings is None else dampings
    for vector, length, weight, damping in zip(spool(), norms, weights, damped, strict=True):
        running.add(vector if length <= limit else vector * np.float32(limit / length), weight, damping)
    return Combined(running.mean())


def median(spool: Spool, layout: Layout, block_bytes: int = _BLOCK_BYTES) -> Combined:
    """The median of each coordinate; samples and staleness do not count.

    Limits: fewer than half attackers, and honest updates that resemble one another. Coordinates that most devices
    leave at zero stay at zero, so it does not go with top-k; on unlike data it is biased even without attackers.

    Source: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018, definition 1.
    """
    delta = np.empty(layout.n_elements, np.float32)
    for place, block in _blocks(spool, layout, block_bytes):
        delta[place] = np.median(block, axis=0)
    return Combined(delta)


def trimmed_mean(spool: Spool, layout: Layout, trimmed_ratio: float, block_bytes: int = _BLOCK_BYTES) -> Combined:
    """The mean of each coordinate without its largest and smallest `trimmed_ratio` of values, rounded up.

    Limits: as the median's; the ratio must be at least the share of attackers, below a half.

    Source: Yin et al., ICML 2018, definition 2.

    Raises:
        TensorMismatch: nothing would be left.
    """
    if not 0 <= trimmed_ratio < 0.5:
        raise TensorMismatch(f"trimming {trimmed_ratio} at each side: from 0 to below 0.5 is possible")
    delta = np.empty(layout.n_elements, np.float32)
    for place, block in _blocks(spool, layout, block_bytes):
        n_updates = len(block)
        n_trimmed = math.ceil(trimmed_ratio * n_updates - 1e-9)
        if 2 * n_trimmed >= n_updates:
            raise TensorMismatch(f"trimming {n_trimmed} of {n_updates} updates at each side leaves none")
        block.sort(axis=0)
        delta[place] = block[n_trimmed : n_updates - n_trimmed].mean(axis=0, dtype=np.float64)
    return Combined(delta)


def multi_krum(spool: Spool, layout: Layout, n_attackers: int, block_bytes: int = _BLOCK_BYTES) -> Combined:
    """The uniform mean of the n - f updates whose n - f - 2 nearest neighbours are nearest.

    Limits: needs n ≥ 2f + 3, a guess of f, and honest updates near one another; takes n² distances (one pass of
    matrix products). Attackers that stay within the spread of honest updates pass. On unlike data it leaves out
    honest devices, and what only they know is not learnt.

    Source: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017, section 4 (Multi-Krum with m = n - f).

    Raises:
        TensorMismatch: too few updates for so many attackers.
    """
    products: np.ndarray | None = None
    for _, block in _blocks(spool, layout, block_bytes):
        wide = block.astype(np.float64)
        products = wide @ wide.T if products is None else products + wide @ wide.T
    n_updates = 0 if products is None else len(products)
    if products is None or n_attackers < 0 or n_updates < 2 * n_attackers + 3:
        raise TensorMismatch(
            f"multi-Krum against {n_attackers} attackers needs {2 * n_attackers + 3} updates, {n_updates} came"
        )
    squares = np.diag(products)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * products, 0)
    np.fill_diagonal(distances, np.inf)
    n_near = n_updates - n_attackers - 2
    scores = np.sort(distances, axis=1)[:, :n_near].sum(axis=1)
    chosen = set(np.argsort(scores, kind="stable")[: n_updates - n_attackers].tolist())
    running = RunningMean(layout)
    for index, vector in enumerate(spool()):
        if index in chosen:
            running.add(vector)
    return Combined(running.mean(), tuple(index for index in range(n_updates) if index not in chosen))


def norm(vector: np.ndarray) -> float:
    """The Euclidean norm, summed in float64 block by block; not finite where an element is not."""
    total = 0.0
    for start in range(0, len(vector), 1 << 16):
        block = vector[start : start + (1 << 16)].astype(np.float64)
        total += float(block @ block)
    return math.sqrt(total)


def _blocks(spool: Spool, layout: Layout, block_bytes: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Coordinates of all updates, as many as `block_bytes` hold: (n_updates, ≤ block) float32, new and writable."""
    n_updates = sum(1 for _ in spool())
    if not n_updates:
        raise TensorMismatch("a robust rule was given no update")
    n_coordinates = max(1, block_bytes // (4 * n_updates))
    for start in range(0, layout.n_elements, n_coordinates):
        place = slice(start, min(start + n_coordinates, layout.n_elements))
        block = np.empty((n_updates, place.stop - place.start), np.float32)
        for index, vector in enumerate(spool()):
            if vector.shape != (layout.n_elements,):
                raise TensorMismatch(f"update {index} has {vector.shape} elements, the layout {layout.n_elements}")
            block[index] = vector[place]
        yield place, block
