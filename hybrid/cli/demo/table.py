"""The demo's figures as rows of words: one table for the terminal and for the report, so that they never differ."""

from collections.abc import Sequence

from hybrid.cli.demo.chart import NAMES
from hybrid.cli.demo.figures import PhaseFigures, PolicyFigures
from hybrid.cli.demo.link import Phase
from hybrid.cli.table import columns
from hybrid.cli.table import table as columned


def rows(policies: Sequence[PolicyFigures], phases: Sequence[Phase]) -> list[tuple[str, ...]]:
    """Header and rows: a column a policy, a row a phase with its median, then the totals."""
    table: list[tuple[str, ...]] = [("", *(NAMES[one.policy] for one in policies))]
    seen: set[str] = set()
    for index, phase in enumerate(phases):
        name = f"{phase.name} again" if phase.name in seen else phase.name
        seen.add(phase.name)
        table.append((f"median, link {name}", *(_in_phase(one.phases[index]) for one in policies)))
    table += [
        ("median", *(milliseconds(one.p50_s) for one in policies)),
        ("95th percentile", *(milliseconds(one.p95_s) for one in policies)),
        ("longest wait", *(milliseconds(one.longest_gap_s) for one in policies)),
        ("answers", *(str(one.n_answers) for one in policies)),
        ("no answer", *(str(one.n_failed) for one in policies)),
        ("wrong answers", *(str(one.n_wrong) for one in policies)),
        ("sent", *(f"{one.bytes_up / 1e6:.1f} MB" if one.bytes_up else "nothing" for one in policies)),
    ]
    return table


def text(table: Sequence[tuple[str, ...]]) -> str:
    """The table in plain characters, figures to the right."""
    room = columns()
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in table
    ]
    if room is not None and len(lines[0]) > room:
        return "\n".join(columned([("figure", *table[0][1:]), *table[1:]]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def milliseconds(seconds: float | None) -> str:
    """Rounded to what can be felt: `87 ms`, `1,204 ms`; a dash where there is none."""
    return "–" if seconds is None else f"{1000 * seconds:,.0f} ms"


def _in_phase(one: PhaseFigures) -> str:
    missing = f" ({one.n_failed} none)" if one.n_failed else ""
    return milliseconds(one.p50_s) + missing
