"""Every example runs as its first lines say, against a real gateway where it needs one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_gateway import LiveGateway

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("examples") / "gateway") as one:
        yield one


def run(*command: str, **settings: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=100, env=os.environ | settings, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_all_of_them_are_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "01_local.py",
        "02_gateway.py",
        "03_forced_split.py",
    ]


def test_local() -> None:
    assert "output (1, 1, 160, 320), computed local in" in run(str(EXAMPLES / "01_local.py"))


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_gateway(gateway: LiveGateway) -> None:
    """An emulated slow device hands its requests to the gateway, once that has got the model from it."""
    settings = {"HYBRID_GATEWAY": gateway.url, "HYBRID_TOKEN": gateway.token, "HYBRID_PACE": "25"}
    printed = run(str(EXAMPLES / "02_gateway.py"), **settings)
    assert " 0  local" in printed
    assert "->" in printed
    assert printed.count("bytes up") == 20
    assert any("offload" in line or "split" in line for line in printed.splitlines() if "bytes up" in line), printed


@pytest.mark.slow
def test_forced_split(gateway: LiveGateway) -> None:
    example = str(EXAMPLES / "03_forced_split.py")
    settings = {"HYBRID_GATEWAY": gateway.url, "HYBRID_TOKEN": gateway.token}
    model = run(example, "--path").strip()
    run("-m", "hybrid.cli.main", "models", "push", model, "--name", "angle", **settings)
    printed = run(example, **settings)
    assert printed.startswith("cut ")
    assert float(printed.rsplit(maxsplit=1)[-1]) < 1e-4
