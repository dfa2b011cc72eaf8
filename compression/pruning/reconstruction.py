"""Which channels others can stand in for, and with what weights: least squares over what the consumers see.

Let `x` be the channels that a consumer weighs with the rows of `w`, and `H` their second moments over samples and
positions. Removing channel `c` and refitting the others costs `|w_c|^2 / (H^-1)_cc` of the output's squared error, and
the refitted weights follow from one row of `H^-1`: the optimal brain surgeon, with a column of weights in place of one.
Channels go one by one, the cheapest first; a channel that several consumers weigh costs the sum of their shares.

Source: B. Hassibi, D. Stork, Second order derivatives for network pruning, NIPS 1992; by channels with refitting on
samples: Y. He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017 (1707.06168), J.-H. Luo et
al., ThiNet, ICCV 2017 (1707.06342).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

RIDGE: Final = 1e-3
"""Share of the mean second moment that is added to each channel's own."""
DOUBT: Final = 0.1
"""The same, times channels over rows: with fewer rows than channels every channel seems to be made of the others."""
_N_BLOCKS: Final = 32
_POOL: Final = 4


@dataclass(slots=True)
class Moments:
    """First and second moments of channels over samples and positions, of one tensor or across two.

    Attributes:
        n: rows seen.
        square: sums of products, `(channels of the one, channels of the other)`.
        left: sums of the one.
        right: sums of the other.
    """

    n: int = 0
    square: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    left: np.ndarray = field(default_factory=lambda: np.zeros(0))
    right: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add(self, one: np.ndarray, other: np.ndarray) -> None:
        """Rows of both tensors, `(rows, channels)`."""
        square = one.T.astype(np.float64) @ other.astype(np.float64)
        left, right = one.sum(axis=0, dtype=np.float64), other.sum(axis=0, dtype=np.float64)
        if self.n == 0:
            self.square, self.left, self.right = square, left, right
        else:
            self.square += square
            self.left += left
            self.right += right
        self.n += len(one)

    @property
    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean of each channel of the one and of the other."""
        return self.left / self.n, self.right / self.n

    def central(self) -> np.ndarray:
        """Second moments about the means, per row."""
        one, other = self.means
        return np.asarray(self.square / self.n - np.outer(one, other))


def regular(square: np.ndarray, n_rows: int) -> np.ndarray:
    """Second moments that can be inverted, trusted as far as this many rows allow."""
    n_channels = len(square)
    ridge = RIDGE + DOUBT * n_channels / max(n_rows, 1)
    size = float(np.trace(square)) / max(n_channels, 1)
    return np.asarray(square + np.eye(n_channels) * max(size * ridge, 1e-12))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """What one consumer sees of a group.

    Attributes:
        rows: its weights, `(rows, channels)`: every output and kernel position is a row.
        square: second moments of its channels, `(channels, channels)`.
        n_rows: over how many rows.
        places: where the group's channels lie among them, `(n, times)`: a concatenation may hold them more than once.
    """

    rows: np.ndarray
    square: np.ndarray
    n_rows: int
    places: np.ndarray


def removal_costs(consumers: Sequence[Weighed], n_channels: int) -> np.ndarray:
    """What taking each channel costs at the moment that it goes, in shares of the consumers' output energy.

    Channels are taken greedily, so the costs only rise; sorting by them gives the order of going. The last one has the
    cost infinity. They go in blocks, each chosen one by one from a pool of the cheapest: the cube of the channels in
    matrix products, where one by one over all of them would be as many operations in slow vectors.
    """
    work = [_Surgeon(consumer) for consumer in consumers]
    costs = np.full(n_channels, np.inf)
    n_block = max(1, n_channels // _N_BLOCKS)
    worst = 0.0
    while (alive := np.flatnonzero(np.isinf(costs))).size > 1:
        price = np.sum([surgeon.prices() for surgeon in work], axis=0)
        pool = alive[np.argsort(price[alive], kind="stable")[: _POOL * n_block]]
        parts = [surgeon.part(pool) for surgeon in work]
        gone: list[int] = []
        for _ in range(min(n_block, alive.size - 1)):
            left = np.setdiff1d(np.arange(pool.size), gone)
            now = np.sum([part.prices() for part in parts], axis=0)[left]
            at = int(left[np.argmin(now)])
            worst = max(worst, float(now.min()))
            costs[pool[at]] = worst
            gone.append(at)
            for part in parts:
                part.take(np.array([at]))
        for surgeon in work:
            surgeon.take(pool[gone])
    return costs


class _Surgeon:
    """One consumer while channels go.

    Rows enter the costs only by their inner products, so that many rows cost no more than few.
    """

    def __init__(self, consumer: Weighed) -> None:
        square = regular(consumer.square, consumer.n_rows)
        inner = consumer.rows.T.astype(np.float64) @ consumer.rows
        self.inverse = np.linalg.inv(square)
        self.inner = inner / (float(np.sum(inner * square)) or 1.0)
        self.places = consumer.places

    def part(self, channels: np.ndarray) -> "_Surgeon":
        """The same for these channels of the group alone; taking from it tells what taking from all would."""
        own = self.places[channels].ravel()
        part = object.__new__(_Surgeon)
        part.inverse, part.inner = self.inverse[np.ix_(own, own)], self.inner[np.ix_(own, own)]
        part.places = np.arange(len(own)).reshape(len(channels), -1)
        return part

    def prices(self) -> np.ndarray:
        """What taking each channel of the group would cost now."""
        own = np.diag(self.inner) / np.maximum(np.diag(self.inverse), 1e-30)
        return np.asarray(own[self.places].sum(axis=1))

    def take(self, channels: np.ndarray) -> None:
        """Refit the others: the weights of a channel move along its row of the inverse, which then loses it."""
        at = self.places[channels].ravel()
        moves = np.linalg.solve(self.inverse[np.ix_(at, at)], self.inverse[at])
        columns = self.inner[:, at] @ moves
        self.inner -= columns + columns.T - moves.T @ self.inner[np.ix_(at, at)] @ moves
        self.inverse -= self.inverse[:, at] @ moves
        for square in (self.inner, self.inverse):
            square[at, :] = square[:, at] = 0
        self.inverse[at, at] = 1.0


def mixing(across: np.ndarray, seen: np.ndarray, kept: np.ndarray, n_rows: int) -> np.ndarray:
    """The matrix that makes the best guess of each whole channel from those that are there, `(whole, there)`.

    It is drawn towards leaving every channel that is there what it was, which is also what few samples lead to.

    Args:
        across: second moments of the whole channels with those that are there.
        seen: second moments of those that are there.
        kept: which of the whole channels each of those that are there is.
        n_rows: over how many rows the moments are.
    """
    plain = np.zeros(across.shape)
    plain[kept, np.arange(len(kept))] = 1
    return np.asarray(plain + np.linalg.solve(regular(seen, n_rows), (across - plain @ seen).T).T)
