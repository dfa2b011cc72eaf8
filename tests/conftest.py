"""Fixtures that every part of the tests may ask for; each part keeps its own beside its tests."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

ROOT = Path(__file__).resolve().parent.parent


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A marker names what a test needs; where that is missing, the test is skipped and says so."""
    if item.get_closest_marker("torch") and find_spec("torch") is None:
        pytest.skip("needs torch")
    if item.get_closest_marker("root") and (not hasattr(os, "geteuid") or os.geteuid() != 0):
        pytest.skip("needs root")
    if item.get_closest_marker("gpu"):
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("needs a CUDA device and onnxruntime-gpu")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def hybrid_command() -> Path:
    """The installed command `hybrid` of the environment that runs the tests."""
    return Path(sys.executable).parent / "hybrid"


@pytest.fixture(scope="session")
def kserve_python() -> Path:
    """The interpreter of the environment that holds KServe's own client, whose pins do not agree with ours."""
    python = ROOT / ".venv-kserve" / "bin" / "python"
    assert python.exists(), f"{python} is missing: `make .venv-kserve/installed` makes it, as `make test` does"
    return python


@pytest.fixture
def run_hybrid(hybrid_command: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `hybrid WORDS...` in an empty folder and returns how it ended."""

    def run(*words: str, timeout_s: float = 60, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [str(hybrid_command), *words]
        environment = os.environ | settings
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment, cwd=tmp_path, check=False
        )

    return run


@pytest.fixture
def hybrid_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `run_hybrid`, inside this process: a second sooner, for all that needs no process of its own."""
    from hybrid.cli.main import main

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in settings.items():
                patch.setenv(name, value)
            capsys.readouterr()
            returncode = main(list(words))
            told, said = capsys.readouterr()
        return subprocess.CompletedProcess(words, returncode, told, said)

    return run


@pytest.fixture
def blocking_calls_fail() -> Iterator[None]:
    """Makes a call that would block the event loop an error, for tests in which a loop of ours runs."""
    with blockbuster_ctx():
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_outside_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Settings of the person who runs the tests must not reach them, nor their caches be touched."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("HYBRID_")]:
            patch.delenv(name)
        patch.setenv("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HYBRID_CONFIG", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(autouse=True)
def _logger_as_it_was() -> Iterator[None]:
    """A command that runs in this process sets the library's logger up: the next test finds it as it was."""
    logger = logging.getLogger("hybrid")
    level, handlers = logger.level, list(logger.handlers)
    yield
    logger.setLevel(level)
    logger.handlers[:] = handlers
