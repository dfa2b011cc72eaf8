"""make as a newcomer meets it: what it lists, and what it says where no Python fits."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import side_by_side

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make reads, in a folder of its own without environments."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def make(folder: Path, *words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "PYTHON"
    }
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [shutil.which("make"), *words], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


def test_without_a_target_it_lists_what_there_is(checkout: Path) -> None:
    done = make(checkout)
    assert done.returncode == 0
    listed = {line.split()[1] for line in done.stdout.splitlines()}
    assert {"test", "demo", "lint", "bench", "clean", "help"} <= listed


def test_an_interpreter_that_does_not_fit_is_refused_at_once(checkout: Path) -> None:
    done = make(checkout, "demo", "PYTHON=/nowhere/python")
    assert done.returncode != 0
    assert "PYTHON=/nowhere/python does not run" in done.stderr
    assert not (checkout / ".venv-demo").exists()


def test_without_any_python_it_says_what_to_install(checkout: Path) -> None:
    tools = checkout / "tools"
    tools.mkdir()
    for name in ("sh", "echo", "test", "awk"):
        (tools / name).symlink_to(shutil.which(name))
    done = make(checkout, "demo", path=str(tools))
    assert done.returncode != 0
    assert "No Python 3.11, 3.12 or 3.13" in done.stderr


@pytest.mark.parametrize("name", ["test", "demo", "kserve"])
def test_every_pin_is_exact(name: str) -> None:
    lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("#")[0].strip() for line in lines]
    assert all("==" in pin for pin in pins if pin)
    assert len(set(pins)) > 20


def test_the_pins_cover_what_the_project_asks_for() -> None:
    """A dependency that was added without `python requirements/write.py` would be missing in a fresh environment."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = {
        "demo": project["dependencies"] + extras["gateway"] + extras["demo"],
        "test": project["dependencies"] + extras["gateway"] + extras["agent"] + extras["dev"],
    }
    for name, texts in wanted.items():
        lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        pinned = dict(line.partition("#")[0].strip().split("==") for line in lines if "==" in line)
        for requirement in map(Requirement, texts):
            if requirement.name != "hybrid-split":
                version = pinned[canonicalize_name(requirement.name)]
                assert requirement.specifier.contains(version), (name, str(requirement))


def test_every_test_has_its_place_in_one_of_two_processes() -> None:
    first, second = side_by_side.commands([], 2)
    left_out = [word.removeprefix("--ignore=") for word in first if word.startswith("--ignore=")]
    assert left_out == second[-len(left_out) :]
    assert set(left_out) == set(side_by_side.COMPUTING)
    assert side_by_side.commands([], 1) == [[sys.executable, "-m", "pytest"]]
    assert side_by_side.commands(["-k", "wire"], 2) == [[sys.executable, "-m", "pytest", "-k", "wire"]]


@pytest.mark.parametrize(("codes", "code"), [((0, 0), 0), ((0, 5), 0), ((1, 0), 1), ((0, 2), 2), ((5, 5), 5)])
def test_whoever_fails_of_the_two_is_heard(
    codes: tuple[int, int], code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scripts = [[sys.executable, "-c", f"print('said by {number}'); exit({one})"] for number, one in enumerate(codes)]
    monkeypatch.setattr(side_by_side, "commands", lambda words, n_cores: scripts)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert side_by_side.main([]) == code
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capfd.readouterr().out
    assert told.index("said by 0") < told.index("said by 1")
