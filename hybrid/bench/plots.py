"""Small pictures as SVG, drawn by hand: lines and bars with axes, readable in light and dark pages."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10
from typing import Final

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 34, 44
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b2912f")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; each line also has its own dashes."""

DASHES: Final = ("", "6 3", "2 2", "8 3 2 3", "1 3", "12 4", "4 4", "10 2 2 2")
Points = Sequence[tuple[float, float]]


def lines(title: str, x_label: str, y_label: str, series: Mapping[str, Points], *, marks: bool = False) -> str:
    """A picture of named lines.

    Args:
        title: above it.
        x_label, y_label: of the axes, with units.
        series: points by name, in the order of the legend.
        marks: whether each point gets a dot.
    """
    points = [point for line in series.values() for point in line]
    x_axis, y_axis = Axis.of([x for x, _ in points]), Axis.of([y for _, y in points])
    parts = [_frame(title, x_label, y_label, x_axis, y_axis)]
    for number, (name, line) in enumerate(series.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        placed = [(_x(x_axis, x), _y(y_axis, y)) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        style = f'fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dash}"'
        parts.append(f'<polyline points="{path}" {style}/>')
        if marks:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
        parts.append(_legend(number, name, colour, dash))
    return _document(parts, title)


class Axis:
    """A range with round ticks."""

    def __init__(self, low: float, high: float, step: float) -> None:
        self.low, self.high, self.step = low, high, step

    @classmethod
    def of(cls, values: Sequence[float]) -> "Axis":
        """From 0, or from near the least value where all are far from it, in steps of 1, 2 or 5."""
        top, bottom = max(values, default=1.0), min(values, default=0.0)
        bottom = 0.0 if bottom < 0.6 * top else bottom
        span = (top - bottom) or abs(top) or 1.0
        raw = span / 5
        size = 10.0 ** floor(log10(raw))
        step = next(size * times for times in (1, 2, 5, 10) if size * times >= raw)
        return cls(floor(bottom / step) * step, ceil(top / step) * step, step)

    @property
    def ticks(self) -> list[float]:
        """Where the labels stand."""
        n_steps = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(n_steps + 1)]

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1."""
        return (value - self.low) / ((self.high - self.low) or 1.0)


def _x(axis: Axis, value: float) -> float:
    return LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, x_label: str, y_label: str, x_axis: Axis, y_axis: Axis) -> str:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<text x="{LEFT}" y="20" font-weight="bold">{escape(title)}</text>']
    for tick in x_axis.ticks:
        x = _x(x_axis, tick)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y_axis.ticks:
        y = _y(y_axis, tick)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    turned = f'transform="rotate(-90 14 {middle_y:.0f})"'
    parts.append(f'<text x="14" y="{middle_y:.0f}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return "\n".join(parts)


def _legend(number: int, name: str, colour: str, dash: str) -> str:
    x, y = WIDTH - RIGHT + 10, TOP + 10 + 18 * number
    line = (
        f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"/>'
    )
    return f'{line}<text x="{x + 28}" y="{y + 4}">{escape(name)}</text>'


def _document(parts: Sequence[str], title: str) -> str:
    style = (
        "text{font:11px system-ui,sans-serif;fill:#333}.grid{stroke:#bbb;stroke-width:.5}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#555}}"
    )
    size, label = f'viewBox="0 0 {WIDTH} {HEIGHT}"', f'role="img" aria-label="{escape(title)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>'
    return "\n".join([head, f"<style>{style}</style>", *parts, "</svg>", ""])
