"""`hybrid cascade`, as a user would call it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.cascade.made import classifier, points

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_command_writes_an_artifact(run_hybrid: Run, tmp_path: Path) -> None:
    classifier(tmp_path / "s.onnx", used=4)
    classifier(tmp_path / "l.onnx", used=12)
    x, labels = points(900, 1)
    np.savez(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "y.npy", labels)
    words = ["cascade", "s.onnx", "l.onnx", "--data", "x.npz", "--labels", "y.npy", "--name", "points", "--out", "made"]
    done = run_hybrid(*words, "--max-drop", "0.05", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["data"]
    assert told["rule"]["measured"]["drop_high"] <= 0.05
    assert told["rule"]["measured"]["n"] == 600
    assert not told["never_answers"]
    assert (tmp_path / "made" / "manifest.json").exists()
    again = run_hybrid(*words)
    assert again.returncode != 0
    assert "not empty" in again.stderr
    people = run_hybrid(*words[:-1], "other", "--max-drop", "0.05")
    assert people.returncode == 0, people.stderr
    assert "large alone" in people.stdout
    assert "next: hybrid models push other" in people.stderr
