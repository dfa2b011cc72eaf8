"""What a run of the matrix leaves for people: a summary, a page with every cell, and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hybrid.bench import plots, tables
from hybrid.bench.figures import CellFigures
from hybrid.bench.matrix import Matrix
from hybrid.bench.parts import ModelParts
from hybrid.schedule.options import Objective

SAID: dict[Objective, str] = {
    "latency": "Costs are mean milliseconds of latency. Each ten-second window is held against local and against the "
    "best permitted encoded offload (mean and median), over the requests that both answered: a due time that one of "
    "them skipped, since its last request still ran, is compared for neither. The oracle knows the future of an ideal "
    "link; the clairvoyant over the same TCP makes its choices over the real one.",
    "energy": "Costs are latency plus 10 s for each modelled joule of the device, in milliseconds: joules dominate. "
    "Every joule is modelled from the device's description.",
    "bytes": "Costs are latency plus 10 s for each megabyte on the link, in milliseconds: bytes dominate.",
    "throughput": "Costs are mean milliseconds of latency.",
}


LEGEND = (
    "Bars: cells that hold it (median, worst). Clairvoyant over the same TCP: cells whose mean is within the oracle's "
    "limit of it (median); it is no bar, but says what can be won at all. Peers: median of their cost over ours; above "
    "1 we are ahead."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Texts and pictures by file name.

    Attributes:
        summary: for docs/benchmarks.md.
        every_cell: a page of its own.
        pictures: SVG by file name.
    """

    summary: str
    every_cell: str
    pictures: Mapping[str, str] = field(default_factory=dict)


def pages(matrix: Matrix, parts: Sequence[ModelParts], cells: Sequence[CellFigures], *, pictures_at: str) -> Pages:
    """All that is written of these cells.

    Args:
        matrix: that was run.
        parts: of its models.
        cells: their figures.
        pictures_at: folder of the pictures as the pages see it, with a slash at its end.
    """
    pictures = fronts(cells)
    blocks = [_models(parts, cells), _how(matrix, cells), "Cells that hold each bar (median, worst):"]
    blocks.append(tables.at_a_glance(cells))
    for objective in matrix.objectives:
        bars = [bar for cell in cells if (found := cell.of(objective)) is not None for bar in found.bars]
        held = sum(bar.held for bar in bars)
        blocks += [
            f"### Objective `{objective}`: {held} of {len(bars)} bars held",
            SAID[objective],
            LEGEND,
            tables.summary(cells, objective),
            f"What the clairvoyant does most often: {tables.winners(cells, objective)}.",
            tables.splits_said(cells, objective),
            tables.splits(cells, objective),
        ]
    if pictures:
        blocks.append("### The front between latency and energy")
        blocks.append(
            "Each dot is one price of a joule, up to 10 s, over what free joules give (1, 1); changing traces."
        )
        blocks += [f"![{name}]({pictures_at}{name})" for name in pictures]
    intro = (
        "Made by `hybrid bench`; the summary is in [benchmarks.md](benchmarks.md). Bars in the last column, in order: "
        "see there; ✗ is followed by the figure that was measured."
    )
    details = ["# Every cell of the matrix", intro]
    for objective in matrix.objectives:
        details += [f"## `{objective}`", SAID[objective], tables.every_cell(cells, objective)]
        details += ["Missed bars, the worst first:", tables.missed(cells, objective)]
    return Pages(summary="\n\n".join(filter(None, blocks)), every_cell="\n\n".join(details) + "\n", pictures=pictures)


def fronts(cells: Sequence[CellFigures], most: int = 6) -> dict[str, str]:
    """One picture a link, a line a model (on the matrix's first device that has one), over its own first point."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for cell in cells:
        if cell.front:
            _, free_s, free_j = cell.front[0]
            line = [(latency_s / free_s, joules / free_j) for _, latency_s, joules in cell.front]
            found.setdefault(f"{cell.link} {cell.device}", {}).setdefault(cell.model, line)
    # A front is worth a picture where prices change something.
    spreads = {
        name: max(max(y for _, y in line) / min(y for _, y in line) for line in lines.values())
        for name, lines in found.items()
    }
    chosen = sorted(sorted(spreads, key=lambda name: -spreads[name])[:most])
    return {
        f"front-{name.replace(' ', '-')}.svg": plots.lines(
            f"{name}: energy against latency",
            "mean latency / that of free joules",
            "modelled joules / those of free joules",
            found[name],
            marks=True,
        )
        for name in chosen
    }


def _models(parts: Sequence[ModelParts], cells: Sequence[CellFigures]) -> str:
    rows = []
    for one in parts:
        local = sorted(
            {(cell.device, cell.local_s) for cell in cells if cell.model == one.name}, key=lambda pair: pair[1]
        )
        if not local:
            continue
        offload = one.cuts[0].codecs
        encoded = ", ".join(
            f"{part.codec} {sum(part.n_bytes) / len(part.n_bytes) / 1e3:.1f} kB ({_drop(part.drop)})"
            for part in offload
        )
        rows.append(
            (
                one.name,
                one.title,
                tables.milliseconds(one.whole_s),
                ", ".join(f"{device} {tables.milliseconds(seconds)}" for device, seconds in local),
                str(len(one.cuts) - 1),
                encoded,
                f"{one.metric} on {one.n_samples}: {one.data}",
            )
        )
    headings = (
        "model",
        "what",
        "here (ms)",
        "on the device (ms)",
        "cuts",
        "input as (accuracy drop at most)",
        "calibrated by",
    )
    return tables.markdown(headings, rows)


def _drop(drop: float | None) -> str:
    if drop is None:
        return "not calibrated"
    return f"{drop:.1%}" if drop else "none"


def _how(matrix: Matrix, cells: Sequence[CellFigures]) -> str:
    speeds = sorted(cell.requests_a_second for cell in cells)
    middle = speeds[len(speeds) // 2] if speeds else 0.0
    return (
        f"{len(cells)} cells on the virtual clock, {matrix.duration_s:g} s each, seed {matrix.seed}, "
        f"congestion control {matrix.congestion}; a codec is permitted where the calibrated drop is at most "
        f"{matrix.max_accuracy_drop:g}. Heads, tails, codecs and bytes were measured here with onnxruntime (one "
        f"thread) on real inputs; the device's seconds are these times its factor. The simulation did {middle:,.0f} "
        "requests of ours in a second of processor time (median). What it models of link, device and gateway: "
        "[simulation.md](simulation.md); every cell: [matrix.md](matrix.md)."
    )
