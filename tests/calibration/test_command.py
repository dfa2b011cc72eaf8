"""`hybrid calibrate` and `hybrid keys` as a newcomer meets them."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from hybrid.artifact.digest import model_digest
from hybrid.artifact.publishers import own_key_path
from hybrid.calibration.calibrate import Wish, calibrate, signature_of
from hybrid.calibration.draft import Draft
from hybrid.calibration.record import Cell
from hybrid.calibration.samples import open_samples
from hybrid.calibration.trial import Watch
from hybrid.errors import ExitCode
from tests import small_models, zoo


@pytest.fixture
def settings(tmp_path):
    return {"HYBRID_CONFIG": str(tmp_path / "config"), "HYBRID_CACHE": str(tmp_path / "cache")}


@pytest.fixture
def model(tmp_path) -> Path:
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32))
    return small_models.mlp(tmp_path / "mlp.onnx")


def test_it_says_where_it_lies_whose_word_it_is_and_what_comes_next(model, hybrid_here, settings):
    words = ["calibrate", str(model), "--data", "x.npz", "--codecs", "fp16", "--cuts", "input", "--sign", "own"]
    done = hybrid_here(*words, COLUMNS="60", **settings)
    assert done.returncode == ExitCode.OK, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["cut", "codec", "of", "raw", "drop", "at", "most"]
    kept = next(line.split()[1] for line in lines if line.startswith("kept "))
    said = json.loads(Path(kept).read_bytes())
    assert json.loads(Path(f"{kept}.sig").read_bytes())["key_id"] in done.stdout
    assert str(own_key_path()) in done.stdout
    assert f"next: hybrid keys trust {said['publisher']}" in done.stderr
    assert all(len(line) <= 60 for line in lines if not line.startswith(("kept ", "signed ")))
    assert len(hybrid_here(*words, **settings).stdout.splitlines()[0].split()) == 15  # all columns where there is room


def test_a_gateway_that_is_not_there_is_said_before_the_work(model, hybrid_here, settings):
    words = ["calibrate", str(model), "--data", "x.npz", "--codecs", "fp16", "--sign", "own", "--push", "--json"]
    done = hybrid_here(*words, "--gateway", "http://127.0.0.1:9", **settings)
    assert done.returncode == ExitCode.UNREACHABLE
    assert json.loads(done.stdout)["error"]["code"] == "gateway_unreachable"
    assert not list(Path(settings["HYBRID_CACHE"]).glob("calibrating/*"))


def test_cuts_that_were_measured_before_ctrl_c_are_not_measured_again(hybrid_command, hybrid_here, tmp_path, settings):
    draw = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=draw.standard_normal((40, 3, 48, 192)).astype(np.float32))
    words = ["calibrate", str(zoo.path("ppocr_cls")), "--data", "x.npz", "--codecs", "fp16,q8,q4z", "--sign", "own"]
    child = subprocess.Popen(
        [str(hybrid_command), *words], env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=tmp_path,
    )  # fmt: skip
    until_s = time.monotonic() + 60
    while not list((tmp_path / "cache" / "calibrating").glob("*.json")) and time.monotonic() < until_s:
        time.sleep(0.002)
    child.send_signal(signal.SIGINT)
    told, said = child.communicate(timeout=30)
    assert child.returncode == ExitCode.INTERRUPTED
    assert told == ""
    assert "no calibration was written; cuts that were finished are kept" in said
    assert "Traceback" not in said
    assert not list((tmp_path / "config").glob("attached/**/*.json"))
    done = json.loads(hybrid_here(*words, "--json", **settings).stdout)["data"]
    assert 1 <= done["n_cuts_known"] <= done["n_cuts_whole"] == done["n_cuts"]
    assert {cell["n"] for cell in done["calibrations"][0]["cells"]} == {40}


def test_what_is_gone_on_with_is_what_one_call_would_have_measured(tmp_path):
    path = zoo.path("ppocr_cls")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(1).standard_normal((6, 3, 48, 192)).astype(np.float32))
    samples = open_samples(tmp_path / "x.npz", signature_of(path)[0])
    told: list[tuple[int, int, int]] = []
    watch = Watch(reached=lambda *counts: told.append(counts))

    def drops(**wish):
        found = calibrate(
            path, model_digest(path), samples, Wish(codecs=("fp16", "q4"), **wish),
            cache=tmp_path / "graphs", drafts=tmp_path / "drafts", watch=watch,
        )  # fmt: skip
        return [(cell.cut, cell.codec, cell.n, cell.drop_high, cell.sqnr_db) for cell in found.cells]

    drops(cuts=("input",))
    interior = next(cut for cut, *_ in drops(again=True) if cut)
    (draft,) = (tmp_path / "drafts").glob("*.json")
    known = json.loads(draft.read_bytes())
    n = len(known)
    draft.write_text(json.dumps({cut: cells for cut, cells in known.items() if cut in ("", interior)}))
    assert drops() == drops(again=True)
    assert told == [(1, 1, 0), (n, n, 0), (n, n, 2), (n, n, 0)]


def test_a_draft_holds_for_its_facts_alone_and_a_damaged_one_is_none(tmp_path):
    cell = Cell(cut="", codec="q8", n=9, drop=0.0, drop_low=0.0, drop_high=0.3)
    Draft(tmp_path, ["a", 1]).keep("", [cell])
    assert Draft(tmp_path, ["a", 1]).cells == {"": [cell]}
    assert Draft(tmp_path, ["a", 2]).cells == {}
    assert Draft(tmp_path, ["a", 1], again=True).cells == {}
    (path,) = tmp_path.glob("*.json")
    for damage in (
        b"{",
        b"[]",
        b'{"": [{"cut": "", "codec": "q8", "n": 0, "drop": 0, "drop_low": 0, "drop_high": 1}]}',
    ):
        path.write_bytes(damage)
        assert Draft(tmp_path, ["a", 1]).cells == {}
    Draft(tmp_path / "in the way", ["a"]).keep("", [cell])
    (tmp_path / "file").write_text("in the way")
    Draft(tmp_path / "file", ["a"]).keep("", [cell])


def test_the_drafts_that_are_kept_are_few(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid.calibration.draft._MOST_DRAFTS", 3)
    for number in range(6):
        Draft(tmp_path, [number]).keep("", [])
    assert len(list(tmp_path.glob("*.json"))) == 3
    assert Draft(tmp_path, [5]).cells == {"": []}


def test_the_examples_of_keys_work_as_they_stand(hybrid_here, settings):
    """Word by word; what the shell puts in is what the command inside prints."""

    def told(words: str) -> str:
        done = hybrid_here(*words.split(), **settings)
        assert done.returncode == ExitCode.OK, (words, done.stderr)
        return done.stdout

    for word in ("new", "show", "trust", "ls"):
        examples = re.findall(
            r"^\s+hybrid (keys .*)$", told(f"keys {word} --help").partition("Example")[2], re.MULTILINE
        )
        assert examples
        for example in examples:
            inner = re.search(r"\$\(hybrid (.*)\)", example)
            told(example.replace(inner[0], told(inner[1]).strip()) if inner else example)
    assert len(json.loads(told("keys ls --json"))["data"]["publishers"]) == 3
