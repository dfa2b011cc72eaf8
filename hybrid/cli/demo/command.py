"""`hybrid demo`: see a device and a gateway answer together while the link between them changes."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from hybrid.cli import output
from hybrid.errors import ExitCode

app = typer.Typer(rich_markup_mode=None)

_NEXT = "next: open the report; then `hybrid gateway serve` on your own machine, and examples/02_gateway.py against it"


_HELP = """Read text from a photo on an emulated small board, with and without a gateway, over a link that changes.

Starts a gateway and three devices on this machine: one computes everything itself, one sends everything, one decides
for every request. Needs the extra `demo` (a trained text reader and a photo), no network and no rights.

\b
Examples:
  hybrid demo
  hybrid demo --seconds 60 --report /tmp/demo.html
  hybrid demo --json
"""

Seconds = Annotated[float, typer.Option(min=8.0, max=3600.0, help="How long the link's phases take together.")]
Report = Annotated[Path, typer.Option(help="Where to write the HTML report.")]
Json = Annotated[bool, typer.Option("--json", help="Only the figures, as one JSON object.")]


@app.command(help=_HELP)
def demo(seconds: Seconds = 36.0, report: Report = Path("hybrid-demo.html"), json: Json = False) -> int:
    """Plays the demo; the exit code is 0 only where no answer was lost and none was wrong."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _play(seconds, report, json=json)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _play(seconds: float, report: Path, *, json: bool) -> int:
    # What the demo needs (Pillow, the shaped link, onnx) is loaded once the command line has parsed.
    from hybrid.cli.demo import scenario, show

    screen = show.Screen(quiet=json)
    outcome = scenario.play(seconds, tell=output.note, watch=screen.watch)
    show.write_report(outcome, report)
    output.result(show.data(outcome, report), show.summary(outcome, report), json=json)
    if not json:
        output.note(_NEXT)
    return ExitCode.OK if outcome.is_good else ExitCode.FAILED
