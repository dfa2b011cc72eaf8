"""Rows whose faults tests inject at every place there is: they are run here, and what passed is written down.

python -m benchmarks.reliability.cited_rows
"""

import re
import subprocess
import sys

from benchmarks.reliability.table import Finding, keep
from benchmarks.report import ROOT

ROWS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("R8", "outbox: power cut at 400 moments (SQLite on a disk that tears what was not synced), damage, full disks",
     "P3, P4: acknowledged is stored, the file is sound or set aside",
     ("tests/outbox/test_power_cuts.py", "tests/outbox/test_damage.py", "tests/outbox/test_full_disk.py")),
    ("R9", "installation: power cut at every disk operation, process killed at any write",
     "P2: exactly one whole verified version answers", ("tests/install/test_power_cuts.py",
     "tests/install/test_real_kills.py")),
    ("R10", "1,000 flipped bits and 100 truncations of installed and arriving files; extra files, links",
     "P2: never opened, set aside, fetched again, reported", ("tests/install/test_damage.py",)),
    ("R17", "device slows down by its heat", "the plan follows within three requests",
     ("tests/schedule/test_scheduler.py", "-k", "throttles")),
    ("R18", "accelerator fails at opening, at a run, flaps, computes something else",
     "P1, P5: the CPU answers, it is told, and the accelerator is tried again", ("tests/tflite/test_accelerators.py",)),
    ("R14", "head and tail of two versions; slots, requests and artifacts with another digest",
     "refused, never composed", ("tests/install/test_damage.py", "-k", "never_meet")),
)  # fmt: skip
_PASSED = re.compile(r"(\d+) passed")


def main() -> int:
    """Run the tests of each row."""
    findings = []
    for row, fault, promise, words in ROWS:
        command = ["pytest", "-q", "-p", "no:randomly", *words]
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
        )
        passed = _PASSED.search(done.stdout)
        n_passed = int(passed.group(1)) if passed else 0
        findings.append(
            Finding(
                row=row,
                fault=f"tests: {fault}",
                promise=promise,
                result=f"{n_passed} tests passed" if done.returncode == 0 else done.stdout.strip().splitlines()[-1],
                held=done.returncode == 0,
                times=n_passed,
                seed="in the tests",
                command=f"python -m {' '.join(command)}",
            )
        )
        print(f"{row} {findings[-1].verdict}: {findings[-1].result}", file=sys.stderr, flush=True)
    keep("cited_rows", findings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
