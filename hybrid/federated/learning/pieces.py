"""How much of a training is done at once: pieces of a few milliseconds, between which a request may come first."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from hybrid.federated.learning.operators.call import Step

PIECE_PRODUCTS: Final = 4_000_000
"""Samples of a piece times weights: a few milliseconds on a slow core, forward and back."""

STEP_PRODUCTS: Final = 16_000_000
"""Products of the steps between two pauses; more only where one step alone is as large."""

_PIECE_BYTES: Final = 32 << 20
_MOST_ROWS: Final = 256
_PRODUCTS: Final = ("Gemm", "MatMul", "Conv", "ConvTranspose")

_T = TypeVar("_T")


def driven(pieces: Generator[None, None, _T], between: Callable[[], None] = lambda: None) -> _T:
    """What pieces of work come to; `between` is called after each."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            found: _T = done.value
            return found
        between()


def rows_of_piece(n_weights: int) -> int:
    """Samples that are computed at once."""
    return max(1, min(_MOST_ROWS, PIECE_PRODUCTS // max(n_weights, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What one sample costs.

    Attributes:
        n_products: of its largest step.
        n_bytes: of all that is computed from it.
    """

    n_products: int
    n_bytes: int

    @property
    def rows(self) -> int:
        """Samples that are computed at once where weights are used at many places."""
        by_time, by_room = STEP_PRODUCTS // max(self.n_products, 1), _PIECE_BYTES // max(self.n_bytes, 1)
        return max(1, min(_MOST_ROWS, by_time, by_room))


class Meter:
    """Counts what was done since the last pause."""

    def __init__(self) -> None:
        self._n = 0

    def is_full(self, n_products: int) -> bool:
        """Whether it is time for a pause, after so many more products."""
        self._n += n_products
        if self._n < STEP_PRODUCTS:
            return False
        self._n = 0
        return True


def products_of(step: Step, values: Mapping[str, np.ndarray]) -> int:
    """Multiplications of a step that was computed, forward; about as many as elements where it is no product."""
    answer = values[step.output]
    if step.op not in _PRODUCTS:
        return int(answer.size)
    left, right = values[step.inputs[0]], values[step.inputs[1]]
    if step.op in ("Conv", "ConvTranspose"):
        moved = answer if step.op == "Conv" else left
        return int(moved.size * (right.size // max(right.shape[0], 1)))
    return int(answer.size * left.shape[0 if step.attributes.get("transA") else -1])
