"""`hybrid devices`: what it prints and how it ends."""

import json
from types import SimpleNamespace

import pytest

from hybrid.cli.main import main
from hybrid.errors import ExitCode


@pytest.fixture
def run_hybrid(tmp_path, monkeypatch, capsys):
    """Runs `hybrid WORDS...` in this process and an empty folder; how it ended and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*words: str) -> SimpleNamespace:
        exit_code = main(list(words))
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=exit_code, stdout=printed.out, stderr=printed.err)

    return run


def test_the_catalog_as_tables(run_hybrid):
    done = run_hybrid("devices")
    assert done.returncode == ExitCode.OK, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split()[:4] == ["machine", "what", "it", "is"]
    assert any(line.startswith("rpi-4b ") and " 7.1 " in line for line in lines)
    assert any(line.startswith("lte ") and " 70 ms " in line for line in lines)
    assert done.stderr.startswith("next: hybrid devices show")


def test_json_holds_every_figure_and_its_source(run_hybrid):
    answer = json.loads(run_hybrid("devices", "--json").stdout)
    assert answer["ok"] is True
    machines = {one["name"]: one for one in answer["data"]["devices"]}
    assert machines["rpi-4b"]["slowdown_ratio"] == 7.1
    assert machines["rpi-4b"]["sources"][0]["url"].startswith("https://")
    links = {one["name"]: one for one in answer["data"]["links"]}
    assert links["3g"]["states"][0] == {"name": "outage", "share_ratio": 0.048, "mean_s": 2.6}


@pytest.mark.parametrize(("name", "said"), [("rpi-5", "slowdown_ratio   2.8  [1]"), ("satellite", "states.outage")])
def test_one_with_the_source_of_every_figure(run_hybrid, name, said):
    done = run_hybrid("devices", "show", name)
    assert done.returncode == ExitCode.OK, done.stderr
    assert said in done.stdout
    figures = [line for line in done.stdout.split("\n\n")[1].splitlines() if not line.startswith("kind")]
    assert all("  [" in line for line in figures), "each has its source's number"
    assert "an estimate" in done.stdout
    assert json.loads(run_hybrid("devices", "show", name, "--json").stdout)["data"]["name"] == name


def test_files_of_ones_own(run_hybrid, tmp_path):
    from importlib.resources import files

    for folder, name in (("devices", "rpi-4b"), ("links", "lte")):
        text = files("devices.catalog").joinpath(folder, f"{name}.toml").read_text()
        (tmp_path / "own.toml").write_text(text)
        done = run_hybrid("devices", "show", "own.toml", "--json")
        assert json.loads(done.stdout)["data"]["name"] == "own"
    (tmp_path / "own.toml").write_text("n_cores = 1\n")
    done = run_hybrid("devices", "show", "own.toml")
    assert "error[catalog_invalid]: own: missing" in done.stderr
    assert done.returncode == ExitCode.FAILED


def test_an_unknown_name(run_hybrid):
    done = run_hybrid("devices", "show", "rpi-99")
    assert done.returncode != ExitCode.OK
    assert "error[catalog_unknown]" in done.stderr
    assert "rpi-4b" in done.stderr
