"""A gateway of its own for the tests that need one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import zoo
from tests.live_gateway import LiveGateway


@pytest.fixture
def own_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveGateway]:
    """A gateway that holds the angle classifier; graphs are prepared anew."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    with LiveGateway(tmp_path / "data", "--no-announce") as running:
        running.push(zoo.path("ppocr_cls"), "cls")
        yield running
