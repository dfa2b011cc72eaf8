"""The picture of all candidates: their time beside the drop in accuracy, with the floor and the front."""

from collections.abc import Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final, NamedTuple

from hybrid.compress.report.report import Candidate, Drop

WIDTH: Final = 760
HEIGHT: Final = 380
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 20, 48
_LABEL_ROOM: Final = 15
WORST_RATIO: Final = 6.0
"""The axis ends at so many times the floor at most, so that what lies near the floor can be told apart."""

_RADII: Final = (4.0, 13.0)


class Point(NamedTuple):
    """One candidate in the picture: shares of the original's time and bytes, and the drop in points."""

    candidate: Candidate
    time: float
    drop: Drop


def points_of(candidates: Sequence[Candidate]) -> list[Point]:
    """Those that were graded and timed, each by what it showed when it was tried: figures of one kind."""
    return [
        Point(each, each.tried_ratio, each.chosen_by)
        for each in candidates
        if each.chosen_by is not None and each.tried_ratio is not None
    ]


def chart(candidates: Sequence[Candidate], max_drop: float) -> str:
    """The picture as SVG; empty where nothing was graded and timed."""
    points = points_of(candidates)
    if not points:
        return ""
    most_time = max(1.05, *(point.time for point in points))
    lows = [100 * point.drop.drop for point in points]
    most = 100 * max_drop
    low, high = min(0.0, *lows), max(most, min(max(lows), WORST_RATIO * most))
    spare = 0.08 * (high - low) or 1.0
    scale = _Scale(most_time * 1.05, low - spare, high + spare)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Time and drop in accuracy of every candidate">',
        _axes(scale),
        _limit(scale, most),
        _front(scale, points),
        f'<circle class="original" cx="{scale.x(1):.1f}" cy="{scale.y(0):.1f}" r="6"><title>original</title></circle>',
        *(_dot(scale, point) for point in points),
        *_labels(scale, points),
        "</svg>",
    ]
    return "".join(parts)


class _Scale(NamedTuple):
    most_time: float
    low: float
    high: float

    def x(self, time: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * time / self.most_time

    def y(self, points: float) -> float:
        """Small drops above: up is good, left is good; what is worse than the axis shows lies at its lower edge."""
        return TOP + (HEIGHT - TOP - BOTTOM) * (min(points, self.high) - self.low) / (self.high - self.low)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends: a step of 1, 2 or 5 times a power of ten, four to nine of them."""
    raw = (high - low) / 8
    power = 10.0 ** floor(log10(raw))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= raw)
    first = ceil(low / step)
    return [round(step * number, 12) for number in range(first, floor(high / step) + 1)]


def _axes(scale: _Scale) -> str:
    parts = []
    for points in ticks(scale.low, scale.high):
        y = scale.y(points)
        parts.append(f'<line class="axis" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{points:g}</text>')
    for percent in ticks(0, 100 * scale.most_time):
        x = scale.x(percent / 100)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{percent:g} %</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">time, as a share of the original\'s</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2 - 10}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2 - 10})">'
        "drop, in points</text>"
    )
    return "".join(parts)


def _limit(scale: _Scale, points: float) -> str:
    y = scale.y(points)
    return (
        f'<line class="floor" x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}"/>'
        f'<text class="floor-word" x="{WIDTH - RIGHT}" y="{y - 5:.1f}" text-anchor="end">'
        f"the floor: {points:.2g} {'point' if points == 1 else 'points'}</text>"
    )


def _front(scale: _Scale, points: Sequence[Point]) -> str:
    front = sorted((point.time, 100 * point.drop.drop) for point in points if point.candidate.on_front)
    if len(front) < 2:
        return ""
    line = " ".join(f"{scale.x(time):.1f},{scale.y(drop):.1f}" for time, drop in front)
    return f'<polyline class="path" points="{line}"/>'


def _dot(scale: _Scale, point: Point) -> str:
    each, drop = point.candidate, point.drop
    x, y = scale.x(point.time), scale.y(100 * drop.drop)
    top, bottom = (min(HEIGHT - BOTTOM, max(TOP, scale.y(100 * end))) for end in (drop.low, drop.high))
    kind = "shipped" if each.status == "shipped" else "front" if each.on_front else "point"
    least, most = _RADII
    radius = least + (most - least) * min(1.0, (each.bytes_ratio or 0.0)) ** 0.5
    told = (
        f"{each.text}: {100 * point.time:.0f} % of the time, {100 * (each.bytes_ratio or 0):.0f} % of the bytes, "
        f"drop {100 * drop.drop:.2f} points ({100 * drop.low:.2f} to {100 * drop.high:.2f}), {each.status}"
    )
    return (
        f'<line class="whisker" x1="{x:.1f}" y1="{top:.1f}" x2="{x:.1f}" y2="{bottom:.1f}"/>'
        f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill-opacity=".8">'
        f"<title>{escape(told)}</title></circle>"
    )


def _labels(scale: _Scale, points: Sequence[Point]) -> list[str]:
    """Names of what was shipped or lies on the front, as far as they do not run into one another."""
    taken: list[tuple[float, float]] = []
    found = []
    ranked = sorted(points, key=lambda point: (point.candidate.status != "shipped", point.time))
    for point in ranked:
        each = point.candidate
        x, y = scale.x(point.time), scale.y(100 * point.drop.drop)
        if each.status != "shipped" and not each.on_front:
            continue
        if any(abs(y - other_y) < _LABEL_ROOM and abs(x - other_x) < 8 * len(each.id) for other_x, other_y in taken):
            continue
        taken.append((x, y))
        anchor, at = ("end", x - 8) if x > 0.75 * WIDTH else ("start", x + 8)  # beside its whisker, above its row
        found.append(f'<text x="{at:.1f}" y="{y - 11:.1f}" text-anchor="{anchor}">{escape(each.id)}</text>')
    return found
