"""What a benchmark leaves behind: a record with machine and seed, and a table in docs/benchmarks.md."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

One script a claim; `make bench` runs them all and writes the tables below. A ratio is taken within one run, since other
work on the machine moves absolute times; each script says how it measures. Raw records: `benchmarks/results/*.json`.
"""


def this_machine() -> dict[str, str]:
    """What must be known to read the numbers: cores, system, versions."""
    versions = {name: version(name) for name in ("onnxruntime", "numpy", "aiohttp", "onnx")}
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A limit that a measured number is held against."""

    name: str
    measured: float
    limit: float
    unit: str = ""

    @property
    def held(self) -> bool:
        """Whether the number is within its limit."""
        return self.measured <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run of one benchmark.

    Attributes:
        name: the script's name; names the result file and the section.
        claim: the sentence that it shows or refutes.
        method: how it was measured: repetitions, what is compared, what is excluded.
        seed: of all random numbers.
        columns: headings of the table.
        rows: cells as numbers or text, numbers with their unit in the heading.
        bars: limits that are promised.
    """

    name: str
    claim: str
    method: str
    seed: int
    columns: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    bars: Sequence[Bar] = ()
    machine: Mapping[str, str] = field(default_factory=this_machine)
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median and the 5th, 95th and 99th percentile of samples (nearest rank)."""
    ordered = sorted(samples)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))]

    return {"p5": rank(0.05), "p50": statistics.median(ordered), "p95": rank(0.95), "p99": rank(0.99)}


def publish(record: Record) -> int:
    """Write the record and its table, print the table, and return 1 where a bar is missed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(record), indent=1, ensure_ascii=False)
    (RESULTS / f"{record.name}.json").write_text(text + "\n", encoding="utf-8")
    section = _section(record)
    page = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else HEAD
    PAGE.write_text(_placed(page, record.name, section), encoding="utf-8")
    print(section)
    return int(not all(bar.held for bar in record.bars))


def _placed(page: str, name: str, section: str) -> str:
    """The page with the section between its markers; a new one goes to the end."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{section}\n{end}"
    if begin in page and end in page:
        return page[: page.index(begin)] + block + page[page.index(end) + len(end) :]
    return f"{page.rstrip()}\n\n{block}\n"


def _section(record: Record) -> str:
    rows = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in record.rows]
    table = [f"| {' | '.join(record.columns)} |", "|" + "---|" * len(record.columns), *rows]
    bars = [
        f"- {'held' if bar.held else '**missed**'}: {bar.name} {_cell(bar.measured)}{bar.unit} "
        f"(at most {_cell(bar.limit)}{bar.unit})"
        for bar in record.bars
    ]
    where = ", ".join(f"{key} {value}" for key, value in record.machine.items())
    lines = [f"## {record.claim}", "", record.method, "", *table, ""]
    if bars:
        lines += [*bars, ""]
    return "\n".join([*lines, f"`{record.name}.py`, seed {record.seed}, {record.at[:10]}; {where}."])


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit("report.py holds what benchmarks share; run one of its neighbours")
