"""The benchmarks of codecs run: their quick paths, which publish nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("script", "rows"), [("codecs_at_cuts", 15), ("codecs_in_graph", 2)])
def test_the_quick_path_measures(script: str, rows: int) -> None:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == rows
