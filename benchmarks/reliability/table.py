"""What became of each fault: kept as JSON, and written as docs/reliability.md."""

import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.report import RESULTS, ROOT, this_machine

KEPT = RESULTS / "reliability"
PAGE = ROOT / "docs" / "reliability.md"

HEAD = """\
# Reliability: which faults were tried, and what came of them

`make faults` brings each of the faults below about and writes this page. Real processes (gateway, agent, programs that
use the library) are killed, frozen, starved and cut off; what takes too many tries for that (power cuts at every
operation, weeks offline) is done to the very same code on simulated disks, links and clocks, where a seed replays a
history exactly. A promise that was not kept stands here as not kept.

Promises: **P1** every request ends in exactly one of result or typed error, before its deadline. **P2** a result says
where it was computed and by which digest. **P3** nothing acknowledged is lost. **P4** nothing is applied twice. **P5**
after the fault, normal service returns without a person. **P6** health tells the truth.
"""


def commit() -> str:
    """Of the checkout; empty outside one."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fault, injected so many times.

    Attributes:
        row: such as `R7`; rows with the same number stand together.
        fault: what was done, and how.
        promise: what should hold: P1 to P6, and the bound where there is one.
        result: what was seen, with figures.
        held: whether it held; None: not injected here, `result` says why.
        times: how often it was injected.
        seed: of all that was random.
        command: that does it again.
    """

    row: str
    fault: str
    promise: str
    result: str
    held: bool | None
    times: int
    seed: int | str
    command: str
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="minutes"))
    commit: str = field(default_factory=commit)

    @property
    def verdict(self) -> str:
        """One word."""
        return {True: "held", False: "**not held**", None: "not injected"}[self.held]


def keep(name: str, findings: Sequence[Finding]) -> None:
    """Keep a script's findings in place of its earlier ones."""
    KEPT.mkdir(parents=True, exist_ok=True)
    kept = {"machine": this_machine(), "findings": [asdict(finding) for finding in findings]}
    (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def kept() -> list[Finding]:
    """All findings, in the order of their rows."""
    found = [
        Finding(**row)
        for path in sorted(KEPT.glob("*.json"))
        for row in json.loads(path.read_text(encoding="utf-8"))["findings"]
    ]
    return sorted(found, key=lambda finding: int(finding.row.removeprefix("R")))


def write_page(findings: Iterable[Finding], sections: Sequence[str], page: Path = PAGE) -> None:
    """Write the page from what is kept."""
    rows = [
        f"| {finding.row} | {finding.fault} | {finding.promise} | {finding.verdict}: {finding.result} "
        f"| {finding.times} | {finding.seed} | `{finding.command}` | {finding.at[:10]} {finding.commit} |"
        for finding in findings
    ]
    machine = ", ".join(
        f"{name} {value}" for name, value in this_machine().items() if name in ("cpu", "cores", "system")
    )
    table = "\n".join(
        (
            "## Faults",
            "",
            f"Machine: {machine}; other programs worked on it meanwhile.",
            "",
            "| row | fault | promise | result | times | seed | command | when |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
        )
    )
    page.write_text("\n\n".join((HEAD.rstrip(), table, *sections)) + "\n", encoding="utf-8")
