"""The demo's report: one HTML file with everything in it, for light and dark, for a desk and a phone; no script."""

import base64
from html import escape
from pathlib import Path
from string import Template
from typing import Final

from hybrid.cli.demo import chart, table
from hybrid.cli.demo.link import Phase
from hybrid.cli.demo.scenario import PACE, TIMEOUT_S, Outcome

_PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="color-scheme" content="light dark">
<title>hybrid demo: one model, two places</title>
<style>$style</style>
</head>
<body>
<main>
<h1>One model, two places</h1>
<p class="lead">$lead</p>
<p class="verdict $mood"><strong>$word</strong> $verdict</p>
<h2>Every answer, over time</h2>
<ul class="legend">$legend</ul>
<figure>
<div class="wide">$wide</div>
<div class="narrow">$narrow</div>
<figcaption>Up is slower; the axis is logarithmic. A cross is a question without an answer after $timeout s.
The strip below shows where hybrid computed: on the device, at the gateway, or one model here and one
there.</figcaption>
</figure>
<h2>In figures</h2>
<table><caption>Milliseconds from question to answer; the median of each phase, then of the whole run.</caption>
$table</table>
<h2>What was read</h2>
<div class="page"><img alt="A photograph of a printed page" src="data:image/png;base64,$photo">
<ol>$lines</ol></div>
<h2>How it was done</h2>
<ul class="how">
<li>Each question: find the lines of text on the photo (PP-OCRv6 detector), read one of them (PP-OCRv6 recogniser).</li>
<li>Three devices, each a process of its own and each <em>emulated</em>: $pace times slower than the machine that ran
the demo. The gateway is a process at that machine's full speed.</li>
<li>Cloud only and hybrid each have a link of their own to the gateway; both follow this course: $course.</li>
<li>Device only never uses a link. Cloud only must use it and gives a question up after $timeout s. Hybrid decides for
every request, and takes the device's own answer where the link fails.</li>
<li>An answer is wrong when its text is not what the device alone reads in the same line.</li>
</ul>
</main>
</body>
</html>
"""
)

_STYLE: Final = """
:root{--ground:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d0d7de;--device:#6a5200;--cloud:#b3261e;--hybrid:#0550ae;
--good:#e8f5ec;--poor:#fdf1d6;--dead:#f8dcdc;--lane-device:#efe3b8;--lane-gateway:#cfe2ff;--lane-both:#dcd3f5}
@media (prefers-color-scheme:dark){:root{--ground:#14181d;--ink:#e6edf3;--soft:#9ba7b4;--rule:#363d47;--device:#e0bf52;
--cloud:#ff8d85;--hybrid:#79b8ff;--good:#15291d;--poor:#332a12;--dead:#3a1a1c;--lane-device:#4a3f16;
--lane-gateway:#17395f;--lane-both:#3a2d61}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:1.8rem;line-height:1.2;margin:0 0 8px}h2{font-size:1.2rem;margin:32px 0 8px}
.lead{margin:0 0 16px;max-width:70ch}
.verdict{border-left:5px solid var(--hybrid);padding:8px 14px;margin:0;max-width:70ch}
.verdict.bad{border-color:var(--cloud)}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 20px;padding:0;margin:0 0 4px}
.legend li{display:flex;align-items:center;gap:8px}
.swatch{width:34px;height:14px;flex:none}
figure{margin:0}figure svg{display:block;width:100%;height:auto}
figcaption,caption{color:var(--soft);font-size:.9rem;text-align:left;max-width:75ch}
caption{margin-bottom:6px}
.narrow{display:none}
.line{fill:none;stroke-width:1.6}.line.hybrid{stroke-width:2.2}
.line.device{stroke:var(--device);stroke-dasharray:6 3}.line.cloud{stroke:var(--cloud);stroke-dasharray:2 3}
.line.hybrid{stroke:var(--hybrid)}
.mark.device{fill:var(--device)}.mark.cloud{fill:var(--cloud)}.mark.hybrid{fill:var(--hybrid)}
.cross{fill:none;stroke-width:2}.cross.cloud{stroke:var(--cloud)}.cross.hybrid{stroke:var(--hybrid)}
.cross.device{stroke:var(--device)}
.phase.good{fill:var(--good)}.phase.poor{fill:var(--poor)}.phase.dead{fill:var(--dead)}
.grid{stroke:var(--rule);stroke-width:1}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}
svg .name,svg .says,svg .in{text-anchor:middle}svg .name{font-weight:600}
svg .tick,svg .says{fill:var(--soft);font-size:12px}svg .in{font-size:12px}
.lane.device{fill:var(--lane-device)}.lane.gateway{fill:var(--lane-gateway)}.lane.both{fill:var(--lane-both)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;border-bottom:1px solid var(--rule);text-align:right;font-weight:400}
thead th{font-weight:600;vertical-align:bottom}td{white-space:nowrap}th:first-child{text-align:left}
td:last-child,thead th:last-child{color:var(--hybrid);font-weight:600}
.page{display:flex;flex-wrap:wrap;gap:16px 28px;align-items:flex-start}
.page img{width:384px;max-width:100%;height:auto;border:1px solid var(--rule)}
.page ol{margin:0;padding-left:1.4em;flex:1 1 300px}.page li,.how li{overflow-wrap:anywhere}
.how{padding-left:1.2em;max-width:75ch}.how li{margin-bottom:6px}
@media (max-width:640px){.wide{display:none}.narrow{display:block}main{padding:16px 12px 32px}
th,td{padding:6px 4px;font-size:.88rem}}
"""


def page(outcome: Outcome, photo: Path) -> str:
    """The whole report as HTML.

    Args:
        outcome: what happened.
        photo: the page that was read, a PNG.
    """
    header, *rows = table.rows(outcome.policies, outcome.phases)
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join(_row(row) for row in rows)
    good = outcome.is_good
    n_wrong = sum(one.n_wrong for one in outcome.policies)
    return _PAGE.substitute(
        style=_STYLE,
        lead=escape(_lead(outcome)),
        mood="good" if good else "bad",
        word="No answer lost, none wrong." if good else "Something went wrong.",
        verdict=escape("" if good else f"{outcome.n_lost} answers were lost and {n_wrong} were wrong."),
        legend="".join(f"<li>{chart.swatch(policy)}{name}</li>" for policy, name in chart.NAMES.items()),
        wide=chart.chart(outcome.samples, outcome.phases, width=960, height=430),
        narrow=chart.chart(outcome.samples, outcome.phases, width=366, height=380),
        table=f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>",
        photo=base64.b64encode(photo.read_bytes()).decode(),
        lines="".join(f"<li>{escape(line)}</li>" for line in outcome.lines),
        pace=f"{PACE:g}",
        timeout=f"{TIMEOUT_S:g}",
        course=escape("; ".join(_course(phase) for phase in outcome.phases)),
    )


def _row(row: tuple[str, ...]) -> str:
    first, *rest = row
    return f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'


def _lead(outcome: Outcome) -> str:
    by_policy = {one.policy: one for one in outcome.policies}
    device, cloud, hybrid = by_policy["device"], by_policy["cloud"], by_policy["hybrid"]
    return (
        f"Three devices read the same photo for {outcome.phases[-1].ends_s:.0f} seconds while the link to their "
        f"gateway gets worse, dies and comes back. The device alone takes {table.milliseconds(device.p50_s)}, whatever "
        f"the link. "
        f"Cloud only left {cloud.n_failed} questions without an answer, its longest silence "
        f"{cloud.longest_gap_s:.1f} s. Hybrid gave {hybrid.n_answers} answers, its longest silence "
        f"{hybrid.longest_gap_s:.1f} s."
    )


def _course(phase: Phase) -> str:
    return f"{phase.name} ({phase.says}) for {phase.ends_s - phase.begins_s:.0f} s"
