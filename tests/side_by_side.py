"""All tests in two processes: those that only compute on one core, beside those that talk, wait and keep a clock.

python -m tests.side_by_side              # everything
python -m tests.side_by_side -k wire      # with words of pytest's: one process, as `python -m pytest` would
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPUTING = (
    "tests/test_architecture.py", "tests/test_docs.py", "tests/artifact", "tests/bottleneck", "tests/cascade",
    "tests/chunks", "tests/compress", "tests/compression", "tests/cost", "tests/federated", "tests/graph",
    "tests/install", "tests/learning", "tests/outbox", "tests/partition", "tests/pruning", "tests/quantization",
    "tests/reliability", "tests/rollouts", "tests/rounds", "tests/schedule", "tests/simulation", "tests/tflite",
    "tests/tflite_export", "tests/training", "tests/wire",
)  # fmt: skip
"""Rooms without a limit of time that a busy machine could exceed; all others are taken by the first process."""

NOTHING_FOUND = 5


def commands(words: Sequence[str], n_cores: int) -> list[list[str]]:
    """What is to be started; the first one speaks while it runs."""
    pytest = [sys.executable, "-m", "pytest"]
    if words or n_cores < 2:
        return [[*pytest, *words]]
    computing = [path for path in COMPUTING if (ROOT / path).exists()]
    return [[*pytest, *(f"--ignore={path}" for path in computing)], [*pytest, "-q", *computing]]


def main(words: Sequence[str]) -> int:
    """Runs them; the exit code of the first that failed."""
    started = commands(words, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    codes = []
    with tempfile.TemporaryFile("w+", encoding="utf-8") as quiet:
        began_s = time.monotonic()
        running = [
            subprocess.Popen(command, cwd=ROOT, stdout=quiet if number else None, stderr=quiet if number else None)
            for number, command in enumerate(started)
        ]
        try:
            for number, process in enumerate(running):
                codes.append(process.wait())
                if number:
                    quiet.seek(0)
                    print(f"\nbeside them, {' '.join(COMPUTING)}:\n{quiet.read()}", flush=True)
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
    if len(running) > 1:
        print(f"both after {time.monotonic() - began_s:.0f} s")
    return next((code for code in codes if code not in {0, NOTHING_FOUND}), codes[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
