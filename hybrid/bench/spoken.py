"""What a run of the bench says on a terminal: who won and by how much, in words, in lines of at most 80 characters."""

from collections.abc import Iterator, Sequence
from statistics import median
from textwrap import wrap
from typing import Final

from hybrid.bench.figures import CellFigures, ObjectiveFigures, PolicyFigures
from hybrid.bench.tables import milliseconds
from hybrid.schedule.options import Objective

WIDTH: Final = 80
MOST_BLOCKS: Final = 24
"""So many cells and objectives are told one by one; more are told by link."""

EVEN_RATIO: Final = 0.005

FIXED: Final = ("local", "offload raw", "offload encoded", "best static", "neurosurgeon", "dads", "sedna")
HEADINGS: Final = ("way", "mean", "p95", "energy", "bytes")
COUNTED: Final[dict[Objective, str]] = {
    "latency": "mean latency",
    "energy": "latency + 10 s a modelled joule",
    "bytes": "latency + 10 s a megabyte",
    "throughput": "mean latency",
}


def spoken(cells: Sequence[CellFigures]) -> str:
    """A block for each cell and objective, or a line for each link where there are many."""
    objectives = [found.objective for cell in cells[:1] for found in cell.objectives]
    blocks: list[str] = []
    for objective in objectives:
        found = [(cell, figures) for cell in cells if (figures := cell.of(objective)) is not None]
        if len(cells) * len(objectives) <= MOST_BLOCKS:
            blocks += ["\n".join(_block(cell, figures)) for cell, figures in found]
        else:
            blocks.append("\n".join(_by_link(objective, found)))
    blocks.append("\n".join(_total(cells)))
    return "\n\n".join(blocks)


def _block(cell: CellFigures, figures: ObjectiveFigures) -> Iterator[str]:
    """One cell and objective."""
    yield from wrap(f"{cell.model} on {cell.device} over {cell.link}, {cell.trace} link: {figures.objective}", WIDTH)
    ours = figures.of("hybrid")
    if ours is not None:
        yield from _paragraph(verdict(figures, ours))
    if figures.split_wins and figures.split is not None:
        way, ratio = figures.split
        yield from _paragraph(f"A cut truly wins here: {way} costs {ratio:.2f} of the best whole way.")
    yield from _aligned([HEADINGS, *(_row(policy) for policy in figures.policies)])
    yield from _paragraph(_bars(figures))


def _row(policy: PolicyFigures) -> tuple[str, ...]:
    way = "" if policy.policy in ("local", "hybrid") else f" ({policy.way})"
    energy, n_bytes = f"{policy.energy_j:.2f} J", f"{policy.n_bytes / 1e3:,.1f} kB"
    return (
        f"{policy.policy}{way}",
        f"{milliseconds(policy.mean_s)} ms",
        f"{milliseconds(policy.p95_s)} ms",
        energy,
        n_bytes,
    )


def verdict(figures: ObjectiveFigures, ours: PolicyFigures) -> str:
    """Who won, and by how much."""
    fixed = [policy for name in FIXED if (policy := figures.of(name)) is not None]
    best = min(fixed, key=lambda policy: policy.cost)
    chosen = ", ".join(
        f"{share:.0%} {name}" for share, name in zip(ours.shares, ("local", "offloaded", "split"), strict=True) if share
    )
    said = f"hybrid: {milliseconds(ours.cost)} ms ({COUNTED[figures.objective]}; planned {chosen})."
    name = best.policy if best.policy != "best static" else f"the best way in hindsight, {best.way}"
    return f"{said} {_compared(best.cost / ours.cost, name)} {_foreseen(figures)}"


def _compared(ratio: float, name: str) -> str:
    if abs(ratio - 1) <= EVEN_RATIO:
        return f"Even with {name}."
    if ratio > 1:
        return f"It wins: {name} costs {ratio - 1:.1%} more."
    return f"It loses to {name}, by {1 / ratio - 1:.1%}."


def _foreseen(figures: ObjectiveFigures) -> str:
    if figures.to_foresight is None:
        return ""
    return f"A clairvoyant over the same TCP: {1 / figures.to_foresight:.2f} of that."


def _bars(figures: ObjectiveFigures) -> str:
    missed = [bar for bar in figures.bars if not bar.held]
    said = f"bars: {len(figures.bars) - len(missed)} of {len(figures.bars)} held"
    for bar in missed:
        limit = f"{'at least' if bar.at_least else 'at most'} {bar.limit:g}"
        said += f"; missed: {bar.name} {bar.measured:.3f} ({limit}{f'; {bar.note}' if bar.note else ''})"
    return said + "."


def _by_link(objective: Objective, found: Sequence[tuple[CellFigures, ObjectiveFigures]]) -> Iterator[str]:
    """A line for each link and trace."""
    yield f"{objective} ({COUNTED[objective]})"
    groups: dict[str, list[ObjectiveFigures]] = {}
    for cell, figures in found:
        groups.setdefault(f"{cell.link}, {cell.trace}", []).append(figures)
    rows = [("link", "won", "even", "lost", "best fixed / hybrid", "bars")]
    for name, group in groups.items():
        ratios = [ratio for figures in group if (ratio := _ahead(figures)) is not None]
        wins = sum(ratio > 1 + EVEN_RATIO for ratio in ratios)
        even = sum(abs(ratio - 1) <= EVEN_RATIO for ratio in ratios)
        bars = [bar.held for figures in group for bar in figures.bars]
        counts = (str(wins), str(even), str(len(ratios) - wins - even))
        rows.append((name, *counts, f"{median(ratios):.2f}", f"{sum(bars)}/{len(bars)}"))
    yield from _aligned(rows)
    yield from _paragraph("Won, even or lost: against the fixed way that was the best of all, seen afterwards.")


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """A table whose first column holds words and whose others hold figures."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        figures = "".join(f"{figure:>{width + 2}}" for figure, width in zip(row[1:], widths[1:], strict=True))
        yield f"  {row[0]:<{widths[0]}}{figures}"


def _ahead(figures: ObjectiveFigures) -> float | None:
    """Cost of the best fixed way, seen afterwards, over ours."""
    ours, best = figures.of("hybrid"), figures.of("best static")
    return best.cost / ours.cost if ours is not None and best is not None and ours.cost else None


def _total(cells: Sequence[CellFigures]) -> Iterator[str]:
    bars = [bar for cell in cells for figures in cell.objectives for bar in figures.bars]
    yield from wrap(f"{sum(bar.held for bar in bars)} of {len(bars)} bars held in {len(cells)} cells.", WIDTH)


def _paragraph(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
