"""The report's chart: seconds of every answer over time, as SVG text drawn here, without any script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from hybrid.cli.demo.figures import Sample
from hybrid.cli.demo.link import Phase
from hybrid.cli.demo.messages import POLICIES

NAMES: Final = {"device": "device only", "cloud": "cloud only", "hybrid": "hybrid"}
"""What people read for each policy."""

_TICKS_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_MARGIN_LEFT: Final = 52
_MARGIN_RIGHT: Final = 10
_MARGIN_TOP: Final = 44
_LANE: Final = 18
_MARGIN_BOTTOM: Final = 74


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Size of the picture and what its axes span.

    Attributes:
        width: of the picture, in its own units (pixels where it is not scaled).
        height: likewise.
        until_s: right end of the time axis.
        low_s: lower end of the latency axis, which is logarithmic.
        high_s: its upper end.
    """

    width: int
    height: int
    until_s: float
    low_s: float
    high_s: float

    def x(self, at_s: float) -> float:
        """Where a time stands."""
        return _MARGIN_LEFT + (self.width - _MARGIN_LEFT - _MARGIN_RIGHT) * min(at_s, self.until_s) / self.until_s

    def y(self, took_s: float) -> float:
        """Where a latency stands; what lies outside stands on the edge."""
        clipped = min(max(took_s, self.low_s), self.high_s)
        ratio = math.log(clipped / self.low_s) / math.log(self.high_s / self.low_s)
        return self.bottom - (self.bottom - _MARGIN_TOP) * ratio

    @property
    def bottom(self) -> int:
        """Where the plot ends and the lane of places begins."""
        return self.height - _MARGIN_BOTTOM


def chart(samples: Sequence[Sample], phases: Sequence[Phase], *, width: int, height: int) -> str:
    """One SVG element: shaded phases, a line a policy, crosses for missing answers, a lane of where hybrid computed."""
    frame = _frame(samples, phases, width, height)
    policies = "".join(_series(policy, samples, frame) for policy in POLICIES)
    about = (
        "Milliseconds of every answer over time, on a logarithmic axis, for three policies; the table has the figures."
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{about}">'
        f"{_backdrop(phases, frame)}{_axes(frame)}{policies}{_lane(samples, frame)}</svg>"
    )


def swatch(policy: str) -> str:
    """A small picture of a policy's line and mark, for the legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 34 14" aria-hidden="true"><path class="line {policy}" d="M1 7H33"/>'
        f"{_mark(policy, 17, 7, 4)}</svg>"
    )


def _frame(samples: Sequence[Sample], phases: Sequence[Phase], width: int, height: int) -> Frame:
    took_s = [one.took_s for one in samples] or [0.1, 1.0]
    low_s = max((tick for tick in _TICKS_S if tick <= min(took_s)), default=_TICKS_S[0])
    high_s = min((tick for tick in _TICKS_S if tick >= max(took_s)), default=_TICKS_S[-1])
    if high_s <= low_s:
        high_s = 2 * low_s
    return Frame(width=width, height=height, until_s=phases[-1].ends_s, low_s=low_s, high_s=high_s)


def _backdrop(phases: Sequence[Phase], frame: Frame) -> str:
    parts: list[str] = []
    for phase in phases:
        left, right = frame.x(phase.begins_s), frame.x(phase.ends_s)
        middle = (left + right) / 2
        parts.append(
            f'<rect class="phase {phase.name}" x="{left:.1f}" y="{_MARGIN_TOP}" width="{right - left:.1f}" '
            f'height="{frame.bottom - _MARGIN_TOP}"/>'
            f'<text class="name" x="{middle:.1f}" y="18">{phase.name}</text>'
        )
        if right - left > 170:
            parts.append(f'<text class="says" x="{middle:.1f}" y="35">{escape(phase.says)}</text>')
    return "".join(parts)


def _axes(frame: Frame) -> str:
    parts: list[str] = []
    for tick_s in (tick for tick in _TICKS_S if frame.low_s <= tick <= frame.high_s):
        y = frame.y(tick_s)
        label = f"{tick_s:g} s" if tick_s >= 1 else f"{1000 * tick_s:g} ms"
        parts.append(
            f'<path class="grid" d="M{_MARGIN_LEFT} {y:.1f}H{frame.width - _MARGIN_RIGHT}"/>'
            f'<text class="tick" text-anchor="end" x="{_MARGIN_LEFT - 6}" y="{y + 4:.1f}">{label}</text>'
        )
    step_s = next(step for step in (1, 2, 5, 10, 20, 60, 120, 600, 3600) if frame.until_s / step <= frame.width / 70)
    for at_s in range(0, int(frame.until_s) + 1, step_s):
        x = frame.x(at_s)
        anchor = "end" if x > frame.width - 30 else "middle"
        parts.append(f'<text class="tick" text-anchor="{anchor}" x="{x:.1f}" y="{frame.height - 34}">{at_s} s</text>')
    return "".join(parts)


def _series(policy: str, samples: Sequence[Sample], frame: Frame) -> str:
    """A line through a policy's answers, broken where one did not come; marks thinned to what can be told apart."""
    path, marks, crosses = "", [], []
    pen, last_x = "M", -math.inf
    for one in (one for one in samples if one.policy == policy):
        x, y = frame.x(one.ended_s), frame.y(one.took_s)
        if one.error:
            pen = "M"
            if x - last_x >= 5:
                crosses.append(f'<path class="cross {policy}" d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8"/>')
                last_x = x
            continue
        path += f"{pen}{x:.1f} {y:.1f}"
        pen = "L"
        if x - last_x >= 9:
            marks.append(_mark(policy, x, y, 3))
            last_x = x
    return f'<path class="line {policy}" d="{path or "M0 0"}"/>{"".join(marks)}{"".join(crosses)}'


def _mark(policy: str, x: float, y: float, size: float) -> str:
    if policy == "device":
        side = f'width="{2 * size}" height="{2 * size}"'
        return f'<rect class="mark {policy}" x="{x - size:.1f}" y="{y - size:.1f}" {side}/>'
    if policy == "cloud":
        return f'<path class="mark {policy}" d="M{x:.1f} {y - size:.1f}l{size} {2 * size}h-{2 * size}z"/>'
    return f'<circle class="mark {policy}" cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'


def _lane(samples: Sequence[Sample], frame: Frame) -> str:
    """Where hybrid computed: runs of answers of one kind, each with its word where there is room."""
    top = frame.bottom + 6
    parts = [f'<text class="tick" text-anchor="end" x="{_MARGIN_LEFT - 6}" y="{top + 13}">where</text>']
    runs: list[tuple[str, float, float]] = []
    for one in (one for one in samples if one.policy == "hybrid" and not one.error):
        kind = _kind(one)
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1], one.ended_s)
        else:
            runs.append((kind, runs[-1][2] if runs else max(0.0, one.began_s), one.ended_s))
    for kind, begin_s, end_s in runs:
        left, right = frame.x(begin_s), frame.x(end_s)
        parts.append(
            f'<rect class="lane {kind}" x="{left:.1f}" y="{top}" width="{max(1.0, right - left):.1f}" '
            f'height="{_LANE}"><title>{kind}, {begin_s:.1f} s to {end_s:.1f} s</title></rect>'
        )
        if right - left > 8 * len(kind) + 6:
            parts.append(f'<text class="in {kind}" x="{(left + right) / 2:.1f}" y="{top + 13}">{kind}</text>')
    axis = f'<text class="says" x="{(_MARGIN_LEFT + frame.width) / 2:.0f}" y="{frame.height - 12}">time</text>'
    return "".join(parts) + axis


def _kind(one: Sample) -> str:
    places = {stage.placement for stage in one.stages}
    if places == {"local"}:
        return "device"
    return "gateway" if places == {"offload"} else "both"
