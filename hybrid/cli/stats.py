"""`hybrid stats`: what a decision log says in sum: how good predictions were, where requests ran, what hedges cost."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid.cli.output import note, result
from hybrid.cli.table import table

if TYPE_CHECKING:
    from hybrid.schedule.table import Table
    from hybrid.session.decision_log import RequestRecord

app = typer.Typer()

HELP = """What the decisions of a log have come to: latency, prediction error, placements, hedges, bytes.

The log is written by sessions of programs that run with HYBRID_DECISION_LOG=PATH.

\b
Examples:
  hybrid stats decisions.jsonl
  hybrid stats decisions.jsonl --json
"""

HEADINGS = ("planned", "requests", "share", "p50", "p95", "error", "answered as planned")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The requests of one planned placement, or all of them.

    Attributes:
        planned: placement that the scheduler chose.
        n: requests.
        share_ratio: of all requests.
        p50_s: median of the seconds from call to answer.
        p95_s: their 95th percentile.
        error_ratio: median of |predicted - measured| / measured where nothing fell back; None where none did.
        kept_ratio: share that was answered where it was planned.
    """

    planned: str
    n: int
    share_ratio: float
    p50_s: float
    p95_s: float
    error_ratio: float | None
    kept_ratio: float


@app.command(help=HELP)
def stats(
    log: Annotated[Path, typer.Argument(help="A file that HYBRID_DECISION_LOG named.", metavar="LOG")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Sum up a decision log."""
    from hybrid.session.decision_log import read_log

    requests, tables = read_log(log)
    planned = [_planned(record, tables) for record in requests]
    kinds = sorted(set(planned))
    rows = [_row(kind, [r for r, p in zip(requests, planned, strict=True) if p == kind], requests) for kind in kinds]
    if requests:
        rows.append(_row("all", requests, requests))
    sums = sums_of(requests)
    result({"placements": rows, **sums}, text_of(rows, sums), json=json)
    if not json and requests:
        note(f"next: {shlex.join(['hybrid', 'why', str(log), '--request', str(requests[-1].n)])}")


def _planned(record: "RequestRecord", tables: "dict[str, Table]") -> str:
    """The placement that was decided on; the one that answered, where the log cannot tell."""
    inputs = record.decision.inputs
    table = tables.get(inputs.table) if inputs is not None else None
    prospects = table.prospects if table is not None else ()
    if record.decision.index < len(prospects):
        return prospects[record.decision.index].placement
    return record.report.placement


def _row(planned: str, those: "Sequence[RequestRecord]", requests: "Sequence[RequestRecord]") -> Row:
    taken_s = sorted(record.report.total_s for record in those)
    errors = [
        abs(record.report.predicted_s - record.report.total_s) / record.report.total_s
        for record in those
        if record.report.predicted_s and record.report.fallback is None and record.report.total_s > 0
    ]
    return Row(
        planned=planned,
        n=len(those),
        share_ratio=len(those) / len(requests),
        p50_s=median(taken_s),
        p95_s=taken_s[min(len(taken_s) - 1, int(0.95 * len(taken_s)))],
        error_ratio=median(errors) if errors else None,
        kept_ratio=sum(planned in ("all", record.report.placement) for record in those) / len(those),
    )


def sums_of(requests: "Sequence[RequestRecord]") -> dict[str, object]:
    """Counts and sums over all requests."""
    reports = [record.report for record in requests]
    hedged = [report for report in reports if report.hedge_s is not None]
    return {
        "n": len(reports),
        "answered": Counter(report.placement for report in reports),
        "n_switches": sum(record.decision.is_switch for record in requests),
        "n_hedged": len(hedged),
        "n_hedges_won": sum(report.placement == "local" for report in hedged),
        "bytes_up": sum(report.bytes_up for report in reports),
        "bytes_down": sum(report.bytes_down for report in reports),
        "wasted_bytes": sum(report.wasted_bytes for report in reports),
        "wasted_s": sum(report.wasted_s for report in reports),
        "energy_j": sum(record.decision.energy_j for record in requests),
        "fallbacks": Counter(report.fallback.partition(":")[0] for report in reports if report.fallback),
    }


def text_of(rows: Sequence[Row], sums: dict[str, object]) -> str:
    """The table of placements and the sums, for people."""
    if not rows:
        return "no request is in this log yet"
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    fallbacks = ", ".join(f"{code} {n}" for code, n in sums["fallbacks"].most_common())  # type: ignore[attr-defined]
    return "\n".join([
        *table(cells),
        "",
        f"hedges: {sums['n_hedged']} begun, {sums['n_hedges_won']} won by the device",
        f"changes of plan: {sums['n_switches']}",
        f"bytes: {sums['bytes_up']} up, {sums['bytes_down']} down, {sums['wasted_bytes']} of the first for nothing",
        f"computing for nothing: {sums['wasted_s']:.3f} s; energy: {sums['energy_j']:.1f} J (modelled)",
        f"fallbacks: {fallbacks or 'none'}",
    ])  # fmt: skip


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.planned,
        str(row.n),
        f"{row.share_ratio:.0%}",
        f"{1e3 * row.p50_s:.1f} ms",
        f"{1e3 * row.p95_s:.1f} ms",
        "-" if row.error_ratio is None else f"{row.error_ratio:.1%}",
        "" if row.planned == "all" else f"{row.kept_ratio:.0%}",
    )
