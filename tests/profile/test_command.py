"""`hybrid profile` as a newcomer meets it: what is wrong is said with what would be right, and no work is lost."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hybrid.errors import ExitCode
from tests import zoo


@pytest.fixture
def settings(tmp_path):
    return {"HYBRID_CONFIG": str(tmp_path / "config"), "HYBRID_CACHE": str(tmp_path / "cache")}


def test_a_provider_that_is_not_here_is_named_with_those_that_are(hybrid_here, conv, settings):
    done = hybrid_here("profile", str(conv), "--provider", "Nope", "--json", **settings)
    assert done.returncode == ExitCode.USAGE
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage"
    assert "'Nope'" in error["what"]
    assert "CPUExecutionProvider" in error["what"]
    assert not list(Path(settings["HYBRID_CACHE"]).glob("profiles/**/*.json"))


@pytest.mark.parametrize("word", ["profile", "calibrate"])
def test_a_model_that_is_not_there_is_missing_and_not_invalid(hybrid_here, settings, word):
    more = ["--data", "x.npz"] if word == "calibrate" else []
    done = hybrid_here(word, "nowhere.onnx", "--json", *more, **settings)
    assert done.returncode == ExitCode.NOT_FOUND
    assert json.loads(done.stdout)["error"]["code"] == "model_missing"


def test_the_table_says_what_its_columns_are_and_fits_a_narrow_terminal(hybrid_here, conv, settings):
    done = hybrid_here("profile", str(conv), "--budget", "2", COLUMNS="60", **settings)
    assert done.returncode == ExitCode.OK, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:5] == ["part", "head", "ms", "median", "spread"]
    assert lines[1].startswith("whole model")
    assert "the lower quartile of the runs" in done.stdout
    kept = next(line for line in lines if line.startswith("kept: "))
    assert Path(kept.removeprefix("kept: ")).is_file()
    assert all(len(line) <= 60 for line in lines if line != kept)


def test_what_was_timed_before_ctrl_c_is_kept_and_gone_on_with(hybrid_command, run_hybrid, tmp_path, settings):
    """Paced, so that it takes long enough to be interrupted on any machine."""
    words = ["profile", str(zoo.path("ppocr_cls")), "--shape", "1x3x48x192", "--threads", "1"]
    slow = os.environ | settings | {"HYBRID_PACE": "100"}
    child = subprocess.Popen(
        [str(hybrid_command), *words, "--budget", "60"], env=slow, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=tmp_path,
    )  # fmt: skip
    until_s = time.monotonic() + 60
    while not list((tmp_path / "cache" / "profiles").glob("*/*.json")) and time.monotonic() < until_s:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    told, said = child.communicate(timeout=30)
    assert child.returncode == ExitCode.INTERRUPTED
    assert told == ""
    assert "parts were timed and are kept: the same command goes on" in said
    assert "Traceback" not in said
    again = run_hybrid(*words, "--budget", "0.1", "--json", **(settings | {"HYBRID_PACE": "100"}))
    assert json.loads(again.stdout)["data"]["whole"]["from"] == "kept"
