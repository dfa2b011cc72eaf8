"""The report as one page for a browser, made from its JSON alone; it loads nothing and runs nothing."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from hybrid.compress.report.chart import chart
from hybrid.compress.report.report import Candidate, Drop, Report, Seconds, Shown, SplitTold

UNSEEN = "–"
"""What was not measured."""

METRICS = {
    "accuracy": "A drop is the share of right answers before, less that after.",
    "agreement": "There were no labels: a drop is the share of samples whose most likely class is another one.",
    "fidelity": "A drop is the share of samples with an output that moved by more than the tolerance.",
}


def page(report: Report) -> str:
    """The whole page as HTML text."""
    title = escape(f"{report.model}, compressed for {report.device.words}")
    style = files("hybrid.compress.report").joinpath("page.css").read_text("utf-8")
    picture = chart(report.candidates, report.wanted.max_drop)
    body = [
        f"<h1>{title}</h1>",
        _asked(report),
        _won(report),
        _baseline(report),
        _section("Every candidate: time and drop", f'<div class="wide">{picture}</div>', _LEGEND) if picture else "",
        _candidates(report),
        _splits(report.splits),
        _refused(report),
        _bars("Which operators int8 hurts", [(each.node, each.distance, f"{each.distance:.3g}") for each in
              report.sensitivities], "How far the outputs move where this operator alone is int8 (relative distance)."),
        _bars("The staircase of channel counts", [(width, seconds, _seconds(seconds)) for width, seconds in
              (report.staircase or {}).items()], "Seconds of a stack of convolutions with so many channels here."),
        _shown(report.shown),
        _circumstances(report),
    ]  # fmt: skip
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{style}</style></head><body>{''.join(body)}</body></html>\n"
    )


_LEGEND = (
    "Left is faster, up is nearer to the original (the ring); the larger a dot, the more bytes. All dots are of one "
    "kind: drops on the choosing part with their 95 % intervals, times when each was tried; what the last judgement "
    "found on other samples stands in the table. What lost more than the axis shows "
    "lies at its lower edge. Green was shipped, blue lies on the Pareto front of drop, time and "
    "bytes."
)


def _section(title: str, content: str, remark: str = "") -> str:
    said = f'<p class="soft">{escape(remark)}</p>' if remark else ""
    return f"<h2>{escape(title)}</h2>{said}{content}"


def _asked(report: Report) -> str:
    wanted, data = report.wanted, report.data
    aim = {"latency": "the least time", "bytes": "the fewest bytes", "energy": "the least energy"}[wanted.objective]
    return (
        f'<p class="soft">Asked for {aim} with a drop of at most {_points(wanted.max_drop)}, the upper end of '
        f"its 95 % interval included. Samples: {data.n_calibrate} to calibrate with, {data.n_choose} to choose by, "
        f"{data.n_judge} that only the final judgement saw. {METRICS[data.metric]}</p>"
    )


def _won(report: Report) -> str:
    shipped = [each for each in report.candidates if each.status == "shipped"]
    if not shipped:
        return '<p class="won"><b>Nothing was shipped:</b> no candidate kept every rule. The table says why.</p>'
    said = [f"<b>{escape(each.id)}</b> ({escape(each.text)}): {_gains(each)}" for each in shipped]
    return f'<p class="won">Shipped: {"; ".join(said)}.</p>'


def _gains(candidate: Candidate) -> str:
    parts = []
    if candidate.seconds_ratio:
        parts.append(f"{1 / candidate.seconds_ratio:.2f} × as fast")
    if candidate.bytes_ratio:
        parts.append(_size(candidate.bytes_ratio))
    drop = candidate.judged or candidate.chosen_by
    if drop is not None:
        parts.append(f"drop {_drop(drop)}")
    return ", ".join(parts)


def _size(ratio: float) -> str:
    return f"{1 / ratio:.1f} × smaller" if ratio <= 1 else f"{ratio:.1f} × larger"


def _baseline(report: Report) -> str:
    base = report.baseline
    cards = [
        ("p50 on the device", _seconds(base.seconds.p50_s) if base.seconds else UNSEEN),
        ("p95 on the device", _seconds(base.seconds.p95_s) if base.seconds else UNSEEN),
        ("bytes", _bytes(base.n_bytes)),
        ("peak memory", _bytes(base.memory_bytes)),
        ("energy a run, modelled", _energy(base.energy_j)),
    ]
    if base.accuracy is not None:
        cards.append(("accuracy", f"{100 * base.accuracy:.2f} %"))
    shown = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in cards)
    return _section("The original", f'<div class="cards">{shown}</div>')


_HEADINGS = (
    "candidate", "status", "what it is, and why it was kept or not", "drop in points", "McNemar p", "p50", "p95",
    "as fast", "bytes", "of the original's", "memory", "energy",
)  # fmt: skip


def _candidates(report: Report) -> str:
    table = _table(_HEADINGS, map(_row, report.candidates))
    if not report.candidates:
        table = "<p>None: no way of compressing this model could be tried. What was refused is said below.</p>"
    return _section("What was tried", table, "Energy is modelled from the device's description; all else was measured.")


def _table(headings: Sequence[str], rows: Iterable[str]) -> str:
    """A table of entries; its second and third columns are words, all others figures."""
    head = "".join(f'<th scope="col"{" class=text" if name in headings[1:3] else ""}>{name}</th>' for name in headings)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _line(name: str, status: str, cells: Sequence[str]) -> str:
    """An entry of a table, coloured by what became of it."""
    kind = escape(status.replace(" ", "-"))
    return f'<tr class="{kind}"><td><code>{escape(name)}</code></td>{"".join(cells)}</tr>'


def _row(each: Candidate) -> str:
    drop = each.judged or each.chosen_by
    said = [escape(each.reason), *(escape(note) for note in each.notes)]
    said = said if each.text == each.id else [escape(each.text), *said]
    said += [f"runtimes: {escape(', '.join(each.runtimes))}"] if each.runtimes else []
    cells = [
        f'<td class="text status">{escape(each.status)}</td>',
        f'<td class="text said">{"<br>".join(said)}</td>',
        f"<td>{_interval(drop, is_judged=each.judged is not None) if drop else UNSEEN}</td>",
        f"<td>{_p(drop)}</td>",
        *(f"<td>{text}</td>" for text in _times(each.seconds)),
        f"<td>{f'{1 / each.seconds_ratio:.2f} ×' if each.seconds_ratio else UNSEEN}</td>",
        f"<td>{_bytes(each.n_bytes)}</td>",
        f"<td>{f'{each.bytes_ratio:.0%}' if each.bytes_ratio else UNSEEN}</td>",
        f"<td>{_bytes(each.memory_bytes)}</td>",
        f"<td>{_energy(each.energy_j)}</td>",
    ]
    return _line(each.id, each.status, cells)


_SPLIT_HEADINGS = (
    "way", "status", "what it is, and why it was kept or not", "drop in points", "bytes sent", "head", "encoding",
    "network", "gateway", "request", "energy",
)  # fmt: skip


def _splits(every: Sequence[SplitTold]) -> str:
    if not every:
        return ""
    table = _table(_SPLIT_HEADINGS, map(_split_row, every))
    said = (
        "Seconds of a request over the link are predicted from heads timed on the device, tails timed here and the "
        "bytes that cross; drops were measured, energy is modelled."
    )
    return _section("Dividing requests", table, said)


def _split_row(each: SplitTold) -> str:
    where = f"{escape(each.head)} head, cut {escape(each.cut)} at {escape(each.at)}" if each.cut else ""
    said = [where, escape(each.reason), *map(escape, each.notes)]
    seconds = (each.head_s, each.encode_s, each.network_s, each.gateway_s, each.total_s)
    cells = [
        f'<td class="text status">{escape(each.status)}</td>',
        f'<td class="text said">{"<br>".join(line for line in said if line)}</td>',
        f"<td>{_interval(each, is_judged=each.is_judged) if each.n else UNSEEN}</td>",
        f"<td>{UNSEEN if each.n_bytes is None else f'{each.n_bytes:.0f}'}</td>",
        *(f"<td>{UNSEEN if value is None else _seconds(value)}</td>" for value in seconds),
        f"<td>{_energy(each.energy_j)}</td>",
    ]
    return _line(each.id, each.status, cells)


def _refused(report: Report) -> str:
    if not report.refused:
        return ""
    rows = "".join(
        f'<tr><td class="text">{escape(each.what)}</td><td class="text">{escape(each.why)}</td></tr>'
        for each in report.refused
    )
    return _section("What could not be tried", f'<div class="wide"><table>{rows}</table></div>')


def _bars(title: str, entries: Sequence[tuple[str, float, str]], remark: str) -> str:
    if not entries:
        return ""
    most = max((value for _, value, _ in entries), default=0.0) or 1.0
    rows = "".join(
        f'<span>{escape(name)}</span><i style="width:{100 * value / most:.1f}%"></i><span>{escape(told)}</span>'
        for name, value, told in entries
    )
    return _section(title, f'<div class="bars">{rows}</div>', remark)


def _shown(samples: Sequence[Shown]) -> str:
    if not samples:
        return ""
    parts: list[str] = []
    for each in samples:
        label = f", right is class {each.label}" if each.label is not None else ""
        n_values = max((len(values) for values in each.outputs.values()), default=0)
        head = "".join(f'<th scope="col">{number}</th>' for number in range(n_values))
        rows = "".join(
            f"<tr><td><code>{escape(name)}</code></td>{''.join(_value(value, values) for value in values)}</tr>"
            for name, values in each.outputs.items()
        )
        parts.append(
            f"<details{' open' if not parts else ''}><summary>Sample {each.sample}{label}</summary>"
            f'<div class="wide"><table><tr><th scope="col">model</th>{head}</tr>{rows}</table></div></details>'
        )
    return _section(
        "Outputs side by side", "".join(parts), "First values of the output that is judged; bold is the largest."
    )


def _value(value: float, values: Sequence[float]) -> str:
    told = f"{value:.3g}"
    return f"<td><b>{told}</b></td>" if value == max(values) else f"<td>{told}</td>"


def _circumstances(report: Report) -> str:
    device, wanted = report.device, report.wanted
    threads = "one thread" if device.threads == 1 else f"{device.threads} threads"
    where = device.words if device.words == device.kind else f"{device.name}, {device.kind}"
    times = "" if device.factor == 1 else f"; {device.factor:.3g} × this machine's seconds"
    lines = [
        f"Device: {where}, {threads}{times}.",
        *device.remarks,
        *report.remarks,
        report.power,
        f"Seed {wanted.seed}, budget {wanted.budget_s / 60:.3g} minutes"
        + (f", training by {wanted.train_script}" if wanted.train_script else "")
        + (f", link {wanted.link}" if wanted.link else "")
        + ".",
        f"Model digest {report.model_digest}, data digest {report.data.digest}.",
        ", ".join(f"{name} {value}" for name, value in report.environment.items()) + ".",
        f"Made {datetime.fromtimestamp(report.made_s, UTC):%Y-%m-%d %H:%M} UTC.",
    ]
    return _section("Circumstances", "".join(f"<p>{escape(line)}</p>" for line in lines if line))


def _points(share: float) -> str:
    return "1 point" if share == 0.01 else f"{100 * share:.3g} points"


def _drop(drop: Drop) -> str:
    return f"{100 * drop.drop:.2f} ({100 * drop.low:.2f} to {100 * drop.high:.2f})"


def _interval(drop: Drop | SplitTold, *, is_judged: bool) -> str:
    """In a narrow cell: the drop, its interval, and where it is from."""
    low, high = f"{100 * drop.low:.2f}", f"{100 * drop.high:.2f}"
    part = "" if is_judged else "<br>choosing part"
    return f'{100 * drop.drop:.2f}<br><span class="soft">{low} to {high}{part}</span>'


def _p(drop: Drop | None) -> str:
    if drop is None:
        return UNSEEN
    return "&lt; 0.001" if drop.p_value < 0.001 else f"{drop.p_value:.3f}"


def _times(seconds: Seconds | None) -> tuple[str, str]:
    if seconds is None:
        return UNSEEN, UNSEEN
    return _seconds(seconds.p50_s), _seconds(seconds.p95_s)


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} µs"


def _bytes(n_bytes: int | None) -> str:
    if not n_bytes:
        return UNSEEN
    return f"{n_bytes / 1e6:.3g} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:.3g} kB"


def _energy(joules: float | None) -> str:
    if joules is None:
        return UNSEEN
    if joules >= 0.1:
        return f"{joules:.3g} J"
    return f"{1e3 * joules:.3g} mJ" if joules >= 1e-4 else f"{1e6 * joules:.3g} µJ"
