"""The figures of a matrix as tables for people: a summary, the bars that were missed, true splits, and every cell."""

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final

from hybrid.bench.figures import CellFigures, ObjectiveFigures
from hybrid.schedule.options import Objective

PEERS: Final = ("offload raw", "offload encoded", "best static", "neurosurgeon", "dads", "sedna")


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def milliseconds(seconds: float | None) -> str:
    """`12.3`, `1,234`, or an empty cell."""
    if seconds is None:
        return ""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def summary(cells: Sequence[CellFigures], objective: Objective) -> str:
    """For each link and trace: how many cells keep each bar, and how far ahead of the others the scheduler is."""
    rows = []
    groups: dict[tuple[str, str], list[ObjectiveFigures]] = {}
    for cell in cells:
        found = cell.of(objective)
        if found is not None:
            groups.setdefault((cell.link, cell.trace), []).append(found)
    names = _bar_names(cells, objective)
    limit = next((bar.limit for cell in cells if (found := cell.of(objective)) for bar in found.bars
                  if bar.name == "mean / oracle"), 1.0)  # fmt: skip
    for (link, trace), group in groups.items():
        bars = [_kept(group, name) for name in names]
        near = _near(group, limit)
        ahead = [_times(group, peer) for peer in PEERS]
        errors = [one.prediction_error for one in group if one.prediction_error is not None]
        changes = max(one.changes_max for one in group)
        error = f"{median(errors):.1%}" if errors else ""
        rows.append((link, trace, str(len(group)), *bars, near, *ahead, error, f"{changes:.0f}"))
    headings = (
        "link",
        "trace",
        "cells",
        *names,
        "mean / clairvoyant over the same TCP",
        *PEERS,
        "prediction error",
        "most changes in 10 s",
    )
    return markdown(headings, rows)


def at_a_glance(cells: Sequence[CellFigures]) -> str:
    """How many cells hold each bar, by trace; and how many are as near to foresight as the oracle's bar asks."""
    rows = []
    traces = list(dict.fromkeys(cell.trace for cell in cells))
    for objective in dict.fromkeys(one.objective for cell in cells[:1] for one in cell.objectives):
        by_trace = {
            trace: [one for cell in cells if cell.trace == trace and (one := cell.of(objective)) is not None]
            for trace in traces
        }
        for name in _bar_names(cells, objective):
            limit = next(f"{bar.limit:g}" for bar in by_trace[traces[0]][0].bars if bar.name == name)
            rows.append((objective, name, limit, *(_kept(by_trace[trace], name) for trace in traces)))
            if name == "mean / oracle":
                near = [_near(by_trace[trace], float(limit)) for trace in traces]
                rows.append((objective, "mean / clairvoyant over the same TCP (no bar)", limit, *near))
    return markdown(("objective", "bar", "limit", *traces), rows)


def _near(group: Sequence[ObjectiveFigures], limit: float) -> str:
    """How many are within the limit of foresight over the real link, the median and the worst."""
    found = [one.to_foresight for one in group if one.to_foresight is not None]
    if not found:
        return ""
    return f"{sum(ratio <= limit for ratio in found)}/{len(found)} ({median(found):.3f}, {max(found):.3f})"


def _bar_names(cells: Sequence[CellFigures], objective: Objective) -> list[str]:
    return [bar.name for cell in cells[:1] if (found := cell.of(objective)) is not None for bar in found.bars]


def _kept(group: Sequence[ObjectiveFigures], name: str) -> str:
    """How many cells keep this bar, and the median and the worst figure."""
    bars = [bar for one in group for bar in one.bars if bar.name == name]
    held = sum(bar.held for bar in bars)
    measured = [bar.measured for bar in bars]
    worst = min(measured) if bars[0].at_least else max(measured)
    mark = "" if held == len(bars) else "**"
    return f"{mark}{held}/{len(bars)}{mark} ({median(measured):.3f}, {worst:.3f})"


def _times(group: Sequence[ObjectiveFigures], peer: str) -> str:
    """Median of the peer's cost over ours."""
    ratios = [
        theirs.cost / ours.cost
        for one in group
        if (theirs := one.of(peer)) is not None and (ours := one.of("hybrid")) is not None and ours.cost
    ]
    return f"{median(ratios):.2f}" if ratios else ""


def missed(cells: Sequence[CellFigures], objective: Objective) -> str:
    """Every missed bar, the worst first."""
    rows = []
    for cell in cells:
        found = cell.of(objective)
        for bar in found.bars if found is not None else ():
            if not bar.held:
                off = bar.limit / max(bar.measured, 1e-9) if bar.at_least else bar.measured / bar.limit
                limit = f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}"
                rows.append((off, (cell.name, bar.name, f"{bar.measured:.3f}", limit, bar.note)))
    rows.sort(key=lambda row: -row[0])
    return markdown(("cell", "bar", "measured", "limit", "note"), [row for _, row in rows]) if rows else "None."


def splits(cells: Sequence[CellFigures], objective: Objective) -> str:
    """The cells in which a cut truly wins, with what everybody makes of them."""
    rows = []
    for cell in cells:
        found = cell.of(objective)
        if found is None or not found.split_wins or found.split is None:
            continue
        way, ratio = found.split
        named = [milliseconds(one.cost if (one := found.of(name)) is not None else None) for name in ("local", *PEERS)]
        ours = found.of("hybrid")
        mean = milliseconds(ours.cost if ours is not None else None)
        rows.append((cell.name, way, f"{ratio:.2f}", *named, mean, milliseconds(found.oracle)))
    if not rows:
        return ""
    return markdown(("cell", "cut and codec", "/ best whole", "local", *PEERS, "hybrid", "oracle"), rows)


def splits_said(cells: Sequence[CellFigures], objective: Objective) -> str:
    """In words: where a cut truly wins, and whether we are ahead of every fixed way there."""
    found = [one for cell in cells if (one := cell.of(objective)) is not None]
    won = [one for one in found if one.split_wins]
    meant = "(at most 0.95 of the better of local and offload, seen afterwards)"
    if not won:
        return (
            f"No cut truly wins {meant} in any of {len(found)} cells: computing here or sending the input is as good."
        )
    ratios = []
    for one in won:
        ours, whole = one.of("hybrid"), [one.of(name) for name in ("local", "offload raw", "offload encoded")]
        if ours is not None:
            ratios.append(min(policy.cost for policy in whole if policy is not None) / ours.cost)
    ahead = sum(ratio > 1 for ratio in ratios)
    return (
        f"A cut truly wins {meant} in {len(won)} of {len(found)} cells. In {ahead} of these the scheduler is ahead of "
        f"local and of every offload (by {median(ratios) - 1:.0%} in the median, {min(ratios) - 1:.0%} at the least):"
    )


def winners(cells: Sequence[CellFigures], objective: Objective) -> str:
    """What the clairvoyant does most: how often nothing, everything, or a part leaves the device."""
    counts = Counter[str]()
    for cell in cells:
        found = cell.of(objective)
        if found is not None:
            counts[max(zip(found.oracle_shares, ("local", "offload", "split"), strict=True))[1]] += 1
    total = sum(counts.values()) or 1
    return ", ".join(f"{name} in {counts[name]} of {total}" for name in ("local", "offload", "split"))


def every_cell(cells: Sequence[CellFigures], objective: Objective) -> str:
    """One row a cell: mean costs in milliseconds, and the bars."""
    rows = []
    for cell in cells:
        found = cell.of(objective)
        ours = found.of("hybrid") if found is not None else None
        if found is None or ours is None:
            continue
        bars = " ".join("✓" if bar.held else f"✗{bar.measured:.2f}" for bar in found.bars)
        best = found.of("best static")
        rows.append(
            (
                cell.model,
                cell.device,
                cell.link,
                cell.trace,
                *(milliseconds(one.cost if (one := found.of(name)) else None) for name in ("local", *PEERS)),
                best.way if best else "",
                milliseconds(ours.cost),
                milliseconds(found.oracle),
                f"{ours.shares[0]:.0%} {ours.shares[1]:.0%} {ours.shares[2]:.0%}",
                f"{found.raced_ratio:.0%}",
                bars,
            )
        )
    headings = (
        "model", "device", "link", "trace", "local", *PEERS, "which static", "hybrid", "oracle",
        "planned local offload split", "raced", "bars",
    )  # fmt: skip
    return markdown(headings, rows)
