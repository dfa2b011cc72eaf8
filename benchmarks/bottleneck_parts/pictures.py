"""What sending the input costs: pictures as PNG, WebP and JPEG of many qualities, and what is right of each."""

import io
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from PIL import Image

QUALITIES: Final = (95, 85, 70, 50, 30, 15, 5)
LOSSLESS: Final[dict[str, dict[str, Any]]] = {
    "PNG": {"optimize": True},
    "WebP lossless": {"lossless": True},
}
LOSSY: Final[dict[str, dict[str, Any]]] = {"WebP": {"method": 4}, "JPEG": {"optimize": True}}

Right = Callable[[np.ndarray], np.ndarray]
"""Pictures, uint8, to whether each of them is answered right."""


class Point(NamedTuple):
    """One way of one quality: mean bytes, share of right answers."""

    n_bytes: float
    accuracy: float


def curves(pictures: np.ndarray, right: Right) -> dict[str, list[Point]]:
    """The points of each way, the dearest first; pictures are (n, h, w) or (n, h, w, 3)."""
    found: dict[str, list[Point]] = {}
    for name, options in LOSSLESS.items():
        found[name] = [_point(pictures, right, name.split()[0], options)]
    for name, options in LOSSY.items():
        found[name] = [_point(pictures, right, name, {**options, "quality": quality}) for quality in QUALITIES]
    return found


def _point(pictures: np.ndarray, right: Right, form: str, options: dict[str, Any]) -> Point:
    n_bytes, seen = 0, []
    for picture in pictures:
        place = io.BytesIO()
        Image.fromarray(picture).save(place, form.upper(), **options)
        n_bytes += place.tell()
        place.seek(0)
        seen.append(np.asarray(Image.open(place).convert("L" if picture.ndim == 2 else "RGB")))
    return Point(n_bytes / len(pictures), float(right(np.stack(seen)).mean()))


def bytes_for(points: Sequence[Point], accuracy: float) -> float | None:
    """The fewest bytes that keep this accuracy, between two qualities along a straight line; None: no quality does."""
    ordered = sorted(points)
    for at, point in enumerate(ordered):
        if point.accuracy < accuracy:
            continue
        if at == 0:
            return point.n_bytes
        below = ordered[at - 1]
        share = (accuracy - below.accuracy) / (point.accuracy - below.accuracy)
        return below.n_bytes + share * (point.n_bytes - below.n_bytes)
    return None
