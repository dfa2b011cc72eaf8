"""The order in which a latent is coded, and what of its already coded neighbours says how the next symbol is coded.

Design: three passes over each channel, as interlaced pictures have them: points of even row and column under their
channel's own table; points of odd row and column, which know four neighbours across corners; the others, which know
four beside them. A pass needs only earlier ones, so all its symbols are found at once, which a raster order with its
neighbour to the left would forbid. A latent of one row or one column has its two neighbours counted twice; behind the
edge lies what lies before it.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

N_PASSES: Final = 3
EDGES: Final = (1, 2, 3, 5, 8, 13, 24)
"""An unrest below the first is class 0, below the second class 1, …"""

N_CONTEXTS: Final = 1 + (N_PASSES - 1) * (len(EDGES) + 1)
"""One for the first pass, and one for each class of unrest in each of the others."""

_CORNERS: Final = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_SIDES: Final = ((-1, 0), (1, 0), (0, -1), (0, 1))


class Part(NamedTuple):
    """Points that are coded together: every second row from `row`, every second column from `column`."""

    number: int
    row: int
    column: int

    def of(self, latent: np.ndarray) -> np.ndarray:
        """A view of these points of a latent (n, c, h, w)."""
        return latent[:, :, self.row :: 2, self.column :: 2]


_PARTS: Final = (Part(0, 0, 0), Part(1, 1, 1), Part(2, 0, 1), Part(2, 1, 0))


class Neighbourhood(NamedTuple):
    """What the neighbours of some points say, in the points' shape.

    Attributes:
        mean: of the four, rounded to whole numbers, halves upwards; int16.
        context: 0 to `N_CONTEXTS` - 1.
    """

    mean: np.ndarray
    context: np.ndarray


def parts(latent: np.ndarray) -> Iterator[Part]:
    """The parts of a latent that are not empty, in their order."""
    _, _, height, width = latent.shape
    return (part for part in _PARTS if part.row < height and part.column < width)


def neighbourhood(latent: np.ndarray, part: Part, predicted: np.ndarray) -> Neighbourhood:
    """What is known about the points of a part when all earlier parts stand in `latent`, int16 (n, c, h, w).

    Args:
        latent: whatever stands at points of this and later parts is not looked at.
        part: which points.
        predicted: bool, one a channel: whether its symbols are distances from the mean of their neighbours. The unrest
            of such a channel is how far its neighbours lie apart, of another the sum of their absolute values.
    """
    shape = part.of(latent).shape
    if part.number == 0:
        return Neighbourhood(np.zeros(shape, np.int16), np.zeros(shape, np.int64))
    near = _near(latent, part)
    mean = (near.sum(axis=0, dtype=np.int16) + 2) >> 2
    unrest = np.where(
        predicted[None, :, None, None],
        near.max(axis=0) - near.min(axis=0),
        np.abs(near).sum(axis=0, dtype=np.int16),
    )
    first = 1 + (part.number - 1) * (len(EDGES) + 1)
    return Neighbourhood(mean, _CLASS_OF[unrest] + first)


def _steps(shape: tuple[int, ...], part: Part) -> tuple[tuple[int, int], ...]:
    if part.number == 1:
        return _CORNERS
    if shape[2] == 1:
        return _SIDES[2:] * 2
    return _SIDES[:2] * 2 if shape[3] == 1 else _SIDES


def _near(latent: np.ndarray, part: Part) -> np.ndarray:
    """The four neighbours of each point of a part: int16 (4, n, c, rows, columns)."""
    n, c, height, width = latent.shape
    framed = np.empty((n, c, height + 2, width + 2), np.int16)
    framed[:, :, 1:-1, 1:-1] = latent
    framed[:, :, 0], framed[:, :, -1] = framed[:, :, 2], framed[:, :, -3]
    framed[:, :, :, 0], framed[:, :, :, -1] = framed[:, :, :, 2], framed[:, :, :, -3]
    top, left = 1 + part.row, 1 + part.column
    return np.stack(
        [
            framed[:, :, top + down : height + 1 + down : 2, left + right : width + 1 + right : 2]
            for down, right in _steps(latent.shape, part)
        ]
    )


_CLASS_OF: Final = np.searchsorted(EDGES, np.arange(4 * 128 + 1), side="right").astype(np.int64)
