"""Settings of this test alone: its own keys, its own cache."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hybrid.artifact.publishers import create_key, own_key_path, read_key
from tests import zoo
from tests.live_gateway import LiveGateway


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """One for all tests of this folder; it holds `efficientnet`."""
    with LiveGateway(tmp_path_factory.mktemp("calibrated") / "data", "--no-announce") as running:
        running.push(zoo.path("efficientnet"), "efficientnet")
        yield running


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own_key() -> bytes:
    """The user's own key, made."""
    create_key(own_key_path())
    return read_key(own_key_path())
