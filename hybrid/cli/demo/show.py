"""What people and programs see of the demo: lines as it goes, a table, a report, figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybrid.cli import output
from hybrid.cli.demo import chart, material, report, table
from hybrid.cli.demo.figures import PolicyFigures, Sample
from hybrid.cli.demo.link import Phase
from hybrid.cli.demo.messages import Policy
from hybrid.cli.demo.scenario import PACE, TIMEOUT_S, Outcome
from hybrid.cli.table import columns
from hybrid.errors import DiskFull

_HEADING: Final = (
    f"{'time':>6}  {'link':<5} {'device only':>12} {'cloud only':>12} {'hybrid':>12}"
    "  where hybrid computed, and what it read"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSeconds:
    """One phase of the link, for programs."""

    phase: str
    begins_s: float
    ends_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What `hybrid demo --json` puts out as its data."""

    pace: float
    timeout_s: float
    setup_s: float
    phases: tuple[PhaseSeconds, ...]
    policies: tuple[PolicyFigures, ...]
    n_lost: int
    n_wrong: int
    lines: tuple[str, ...]
    report: str


class Screen:
    """The lines that are printed while the demo runs: the newest answer of each policy, about once a second."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._has_heading = False

    def watch(self, at_s: float, phase: Phase, newest: dict[Policy, Sample]) -> None:
        """Prints one line; nothing when only figures are wanted.

        Answers to what was asked before the phase began are those of another link: they are not shown in it.
        """
        if self._quiet or not newest:
            return
        if not self._has_heading:
            self._has_heading = True
            self._print(_HEADING)
        asked = {policy: one for policy, one in newest.items() if one.began_s >= phase.begins_s}
        cells = [_cell(asked.get(policy), at_s) for policy in ("device", "cloud", "hybrid")]
        hybrid = asked.get("hybrid")
        told = f"{hybrid.where}: {hybrid.text}" if hybrid else ""
        self._print(f"{at_s:5.1f}s  {phase.name:<5} {cells[0]:>12} {cells[1]:>12} {cells[2]:>12}  {told}")

    @staticmethod
    def _print(line: str) -> None:
        """A line of the terminal, no more: what does not fit is left out."""
        room = columns()
        print(line if room is None or len(line) <= room else line[: room - 1] + "…", flush=True)


def summary(outcome: Outcome, path: Path) -> str:
    """The table, the verdict and where the report is."""
    hybrid = outcome.policies[-1]
    verdict = (
        "no answer lost, none wrong"
        if outcome.is_good
        else f"{outcome.n_lost} answers lost, {hybrid.n_wrong} of hybrid's wrong"
    )
    return "\n".join(
        [
            "",
            table.text(table.rows(outcome.policies, outcome.phases)),
            "",
            f"{chart.NAMES['hybrid']}: {verdict}. Every device is emulated: {PACE:g} x slower than this machine.",
            f"report: {path}",
        ]
    )


def data(outcome: Outcome, path: Path) -> Figures:
    """The figures for programs."""
    return Figures(
        pace=PACE,
        timeout_s=TIMEOUT_S,
        setup_s=outcome.setup_s,
        phases=tuple(
            PhaseSeconds(phase=phase.name, begins_s=phase.begins_s, ends_s=phase.ends_s) for phase in outcome.phases
        ),
        policies=outcome.policies,
        n_lost=outcome.n_lost,
        n_wrong=sum(one.n_wrong for one in outcome.policies),
        lines=outcome.lines,
        report=str(path),
    )


def write_report(outcome: Outcome, path: Path) -> None:
    """Writes the HTML report.

    Raises:
        DiskFull: it could not be written.
    """
    try:
        path.write_text(report.page(outcome, material.photo()), encoding="utf-8")
    except OSError as error:
        raise DiskFull(f"{path}: the report cannot be written ({error}); name another file with --report") from error
    output.note(f"report written to {path}")


def _cell(one: Sample | None, at_s: float) -> str:
    """Milliseconds of an answer; how long nothing came where the newest one is old."""
    if one is None:
        return "…"
    if one.error:
        return "no answer"
    silent_s = at_s - one.ended_s
    return table.milliseconds(one.took_s) if silent_s < 2 * TIMEOUT_S else f"silent {silent_s:.0f} s"
