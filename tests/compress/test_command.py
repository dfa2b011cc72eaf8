"""`hybrid compress`: flags, the table, exit codes, Ctrl-C, and going on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hybrid.artifact.folder import open_folder
from hybrid.cli.main import main
from hybrid.compress import Job, run
from hybrid.compress.journal import Journal, Kept
from hybrid.errors import ExitCode
from tests.compress.conftest import BySize


@pytest.fixture(autouse=True)
def _by_size(by_size, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command's own timer is a clock: here it is not looked at."""
    from hybrid.compress import run

    usual = run.compress
    monkeypatch.setattr(run, "compress", lambda job, watch: usual(job, watch, timer=by_size))


@pytest.fixture
def words(net: Path, data: Path) -> list[str]:
    return ["compress", str(net), "--data", str(data / "x.npz"), "--labels", str(data / "y.npy"), "--max-drop", "0.05"]


def test_a_model_is_compressed_and_the_table_tells_of_it(hybrid_here, words, tmp_path):
    done = hybrid_here(*words, "--out", "small", "--sign", "own")
    assert done.returncode == ExitCode.OK, done.stderr
    assert [variant.id for variant in open_folder(tmp_path / "small").manifest.variants] == ["original", "int8"]
    head, original, first = done.stdout.splitlines()[:3]
    assert head.split()[:4] == ["candidate", "status", "drop", "at"]
    assert original.startswith("original")
    assert "shipped" in first
    assert "small.report.html" in done.stdout
    assert "next: hybrid models push small --name net" in done.stderr


def test_programs_get_the_whole_report(hybrid_here, words):
    done = hybrid_here(*words, "--out", "small", "--json")
    told = json.loads(done.stdout)["data"]
    assert told["report"]["shipped"] == ["int8"]
    assert told["artifact_digest"]
    assert Path(told["report_paths"][0]).name == "small.report.json"


def test_nothing_won_has_an_exit_code_of_its_own_and_a_report(hybrid_here, words, monkeypatch, tmp_path):
    monkeypatch.setattr(BySize, "__call__", lambda self, models, feeds: [_timing(1.0) for _ in models])
    for more in ((), ("--json",)):
        done = hybrid_here(*words, "--out", "small", *more)
        assert done.returncode == ExitCode.NOTHING_WON == 7
        assert ("--objective bytes, if smaller is enough" in done.stderr) is ("--json" not in more)
        assert "--budget" not in done.stderr
    assert not (tmp_path / "small").exists()
    assert json.loads((tmp_path / "small.report.json").read_bytes())["shipped"] == []


def _timing(seconds: float):
    from compression.measuring import Timing

    return Timing(p50_s=seconds, p95_s=seconds, low_s=seconds, n=9)


@pytest.mark.parametrize(
    ("more", "code", "exit_code"),
    [
        (["--max-drop", "0.001"], "data_unfit", ExitCode.FAILED),
        (["--labels", "nothing.npy"], "not_found", ExitCode.NOT_FOUND),
        (["--train-script", "nothing.py:f"], "training_set_invalid", ExitCode.FAILED),
        (["--pixels", "nosuch"], "bad_message", ExitCode.FAILED),
        (["--link", "nosuch"], "catalog_unknown", ExitCode.NOT_FOUND),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(hybrid_here, words, tmp_path, more, code, exit_code):
    pytest.importorskip("torch")
    done = hybrid_here(*words, "--out", "small", "--json", *more)
    assert done.returncode == exit_code, done.stdout
    assert json.loads(done.stdout)["error"]["code"] == code
    assert list(tmp_path.glob("small*")) == []


def test_an_unknown_device_is_not_found(hybrid_here, words, monkeypatch):
    monkeypatch.undo()
    done = hybrid_here(*words, "--out", "small", "--device", "abacus", "--json")
    assert done.returncode == ExitCode.NOT_FOUND
    assert "abacus" in json.loads(done.stdout)["error"]["what"]


def test_help_has_examples(capsys):
    assert main(["compress", "--help"]) == ExitCode.OK
    said = capsys.readouterr().out
    for word in ("--train-script", "--max-drop", "--objective", "--budget", "hybrid models push small", "Exit code 7"):
        assert word in said


@pytest.mark.slow
def test_ctrl_c_leaves_what_was_finished_and_says_how_to_go_on(hybrid_command, wide, data, tmp_path, monkeypatch):
    """The real command with its own clock; another call finds what it has made."""
    words = [
        str(hybrid_command), "compress", str(wide), "--data", str(data / "x.npz"), "--labels", str(data / "y.npy"),
        "--max-drop", "0.05", "--out", "small", "--threads", "1",
    ]  # fmt: skip
    work = tmp_path / "small.work"
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ) as child:
        until_s = time.monotonic() + 30
        while not list(work.glob("[!.]*/model.onnx")):
            assert time.monotonic() < until_s
            time.sleep(0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=20)
    assert child.returncode == ExitCode.INTERRUPTED, said
    assert "the same command goes on" in said
    assert not (tmp_path / "small").exists()
    n_done = len(list(work.glob("[!.]*/entry.json")))
    found: list[object] = []
    usual = Journal.find

    def find(self: Journal, key: object) -> Kept | None:
        kept = usual(self, key)
        found.extend([key] if kept is not None else [])
        if found:
            raise KeyboardInterrupt
        return kept

    monkeypatch.setattr(Journal, "find", find)
    job = Job(model=wide, data=data / "x.npz", labels=data / "y.npy", out=tmp_path / "small", max_drop=0.05)
    with pytest.raises(KeyboardInterrupt):
        run.compress(job, None)
    assert n_done >= len(found) == 1, "what the first call has made is found by the second"
