"""Settings of this test alone: its own keys, its own cache."""

from pathlib import Path

import pytest

from hybrid.artifact.publishers import create_key, own_key_path, read_key


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own_key() -> bytes:
    """The user's own key, made."""
    create_key(own_key_path())
    return read_key(own_key_path())
