"""Brings every fault about, and writes docs/reliability.md: what `make faults` does.

python -m benchmarks.reliability.run [--only box_rows] [--write]    # --write: the page alone, of what is kept
"""

import argparse
import subprocess
import sys

from benchmarks.reliability.prose import sections
from benchmarks.reliability.table import kept, write_page
from benchmarks.report import ROOT

SCRIPTS = (
    "simulated_rows",
    "box_rows",
    "clock_rows",
    "fleet_rows",
    "overload_rows",
    "session_rows",
    "recorded_rows",
    "cited_rows",
)


def main() -> int:
    """Run the scripts, one after the other, and write the page; 1 where one failed or a promise was not held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=SCRIPTS, action="append")
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    failed = []
    for name in () if chosen.write else chosen.only or SCRIPTS:
        print(f"== {name}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.reliability.{name}"], cwd=ROOT, check=False)
        if done.returncode:
            failed.append(name)
    findings = kept()
    write_page(findings, sections())
    missed = [finding.row for finding in findings if finding.held is False]
    if failed or missed:
        print(f"scripts that failed: {failed or 'none'}; rows not held: {missed or 'none'}", file=sys.stderr)
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
