"""`hybrid why`: a decision of a log made once more, with all that was to be chosen from and what it would have cost."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hybrid.cli.output import note, result
from hybrid.cli.table import table, wrapped
from hybrid.errors import NotFound

if TYPE_CHECKING:
    from hybrid.schedule.explaining import Alternative
    from hybrid.session.alternatives import Replayed
    from hybrid.session.decision_log import RequestRecord

app = typer.Typer()

HELP = """Why a request was computed where it was: its decision replayed, with all alternatives.

The log is written by sessions of programs that run with HYBRID_DECISION_LOG=PATH.

\b
Examples:
  hybrid why decisions.jsonl
  hybrid why decisions.jsonl --request 42
  hybrid why decisions.jsonl --json
"""

HEADINGS = ("", "placement", "cut", "codec", "gateway", "expected", "hedge", "cost", "bytes up", "why")


@app.command(help=HELP)
def why(
    log: Annotated[Path, typer.Argument(help="A file that HYBRID_DECISION_LOG named.", metavar="LOG")],
    request: Annotated[
        int | None, typer.Option("--request", help="Number of the request; the last one unless given.", metavar="N")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout, with all inputs.")] = False,
) -> None:
    """Explain one decision of a log."""
    from hybrid.session.alternatives import replayed
    from hybrid.session.decision_log import read_log

    requests, tables = read_log(log)
    chosen = replayed(_picked(log, requests, request), tables)
    data = {"request": chosen.record, "is_same": chosen.is_same, "alternatives": chosen.alternatives}
    result(data, text_of(chosen), json=json)
    if not json and len(requests) > 1:
        note(f"next: {shlex.join(['hybrid', 'stats', str(log)])}    # of its {len(requests)} requests")


def _picked(log: Path, requests: "list[RequestRecord]", number: int | None) -> "RequestRecord":
    """The request of that number, the last such one where several processes wrote; the last of all without a number."""
    found = [record for record in requests if number in (None, record.n)]
    if not found:
        held = f"it holds {requests[0].n} to {requests[-1].n}" if requests else "it holds none yet"
        raise NotFound(
            f"{log}: no request {number}; {held}" if number is not None else f"{log}: no request yet",
            advice=f"Give a --request that is there: `hybrid stats {shlex.quote(str(log))}` counts them."
            if requests
            else "Let the program run with HYBRID_DECISION_LOG=PATH; each request adds a line.",
            name=str(log),
        )
    return found[-1]


def text_of(chosen: "Replayed") -> str:
    """What was decided, what came of it, and the table of alternatives."""
    record, report = chosen.record, chosen.record.report
    hedged = f", the device beside it from {_ms(report.hedge_s)}" if report.hedge_s is not None else ""
    took = f"answered in {_ms(report.total_s)}, {_ms(report.predicted_s)} were expected{hedged}"
    lines = [f"request {record.n} of process {record.process}: {report.placement} {took}"]
    if report.fallback:
        lines.append(f"instead of the plan: {report.fallback}")
    if chosen.is_same is None:
        return "\n".join([*lines, "the placement was forced: there was nothing to decide"])
    inputs = record.decision.inputs
    if inputs is not None:
        believed = f"the device at {inputs.device_speed_ratio:.2f} x its profiled seconds"
        believed += f", {inputs.n_device_runs} other runs on it" if inputs.n_device_runs else ""
        for belief in inputs.gateways:
            rates = "/".join(f"{bps / 1e6:.1f}" if bps else "?" for bps in (belief.uplink_bps, belief.downlink_bps))
            believed += f"; {belief.url}: {rates} Mbit/s up/down, {_ms(belief.rtt_s)} round trip"
        lines.append(f"believed: {believed}")
    rows = [HEADINGS, *(_row(alternative) for alternative in chosen.alternatives)]
    verdict = (
        "the replay decides the same" if chosen.is_same else "THE REPLAY DECIDES OTHERWISE: another version wrote it"
    )
    told = [part for line in lines for part in wrapped(line)]
    return "\n".join([*told, "", *table(rows), "", verdict])


def _row(alternative: "Alternative") -> tuple[str, ...]:
    prospect = alternative.prospect
    return (
        "*" if alternative.chosen else "",
        prospect.placement + (f" {prospect.variant}" if prospect.variant else ""),
        prospect.cut[:8],
        prospect.codec if prospect.placement != "local" else "",
        prospect.gateway,
        _ms(alternative.predicted_s),
        _ms(alternative.hedge_s),
        _ms(alternative.cost),
        str(prospect.bytes_up) if prospect.placement != "local" else "",
        alternative.reason,
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f} ms"
