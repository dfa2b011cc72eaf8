"""How a compression reads for people: its table of candidates, what was shipped, and where it lies."""

from typing import TYPE_CHECKING, Final

from hybrid.cli.table import fits, table, wrapped

if TYPE_CHECKING:
    from hybrid.compress.report.report import Candidate, Report, SplitTold
    from hybrid.compress.run import Result

HEADINGS: Final = ("candidate", "status", "drop", "at most", "p", "time", "bytes", "p50 ms", "p95 ms", "MB", "why")
_NARROW: Final = ("candidate", "status", "at most", "time", "bytes")
_MOST_WHY: Final = 72


def text(found: "Result") -> str:
    """The table, what its numbers mean, and where everything lies."""
    report = found.report
    rows = [HEADINGS, _original(report), *(_row(candidate) for candidate in report.candidates)]
    p = "p: McNemar's test; "
    if not fits(rows):
        p = ""
        rows = [tuple(row[HEADINGS.index(heading)] for heading in _NARROW) for row in rows]
    data, device = report.data, report.device
    where = device.words if device.words == device.kind else f"{device.name} ({device.kind})"
    threads = "one thread" if device.threads == 1 else f"{device.threads} threads"
    words = (
        f"drop: {data.metric} lost on {data.n_judge} samples that nothing else has seen (where a candidate was not "
        f"judged: on the {data.n_choose} of the choice); at most: upper end of its 95 % interval; {p}"
        f"time and bytes: share of the original's, on {where}, {threads}."
    )
    place = [f"artifact  {found.artifact.folder}"] if found.artifact is not None else []
    papers = [f"report    {path}" for path in found.report_paths]
    return "\n".join([*table(rows), "", *wrapped(words), "", *_divided(report), *place, *papers])


def _divided(report: "Report") -> list[str]:
    """A line for each way of dividing requests that was shipped, or the best of the others where none was."""
    won = [each for each in report.splits if each.status == "shipped"]
    told = [f"divided   {_way(each)}" for each in won]
    if report.splits and not won:
        told.append(f"divided   not worth it over {report.wanted.link}; the best: {_way(report.splits[0])}")
    alone = [each for each in report.splits if each.head == "all"]
    return [*told, *(f"alone     {_way(each)}" for each in alone)]


def _way(each: "SplitTold") -> str:
    drop = f", drop at most {each.high:.2%}" if each.high else ""
    sent = f", {each.n_bytes:.0f} bytes sent" if each.n_bytes is not None else ""
    return f"{each.id}: {_ms(each.total_s)} ms a request{sent}{drop}"


def _original(report: "Report") -> tuple[str, ...]:
    base = report.baseline
    p50, p95 = (base.seconds.p50_s, base.seconds.p95_s) if base.seconds is not None else (None, None)
    return (
        "original",
        "",
        "",
        "",
        "",
        "100%",
        "100%",
        _ms(p50),
        _ms(p95),
        _mb(base.n_bytes),
        f"accuracy {base.accuracy:.2%}" if base.accuracy is not None else "",
    )


def _row(candidate: "Candidate") -> tuple[str, ...]:
    grade, seconds = candidate.judged or candidate.chosen_by, candidate.seconds
    return (
        f"{candidate.id}{candidate.text.removeprefix(candidate.recipe.id)}",  # as reasons name it
        candidate.status,
        f"{grade.drop:.2%}" if grade is not None else "",
        f"{grade.high:.2%}" if grade is not None else "",
        f"{grade.p_value:.2g}" if grade is not None else "",
        f"{candidate.seconds_ratio:.0%}" if candidate.seconds_ratio is not None else "",
        f"{candidate.bytes_ratio:.0%}" if candidate.bytes_ratio is not None else "",
        _ms(seconds.p50_s if seconds is not None else None),
        _ms(seconds.p95_s if seconds is not None else None),
        _mb(candidate.n_bytes),
        candidate.reason if len(candidate.reason) <= _MOST_WHY else f"{candidate.reason[: _MOST_WHY - 1]}…",
    )


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _mb(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1e6:.3g}"
