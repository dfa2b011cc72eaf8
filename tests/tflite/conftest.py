"""A cache of their own, and a gateway that holds TensorFlow Lite models, for the tests of these."""

from collections.abc import Iterator

import pytest

from tests import zoo
from tests.live_gateway import LiveGateway


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path_factory.getbasetemp() / "hybrid-cache"))


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that holds a face detector and a wake word; tests must leave it running."""
    with LiveGateway(tmp_path_factory.mktemp("gateway") / "data", "--no-announce") as running:
        for name in ("face", "wake_word"):
            running.push(zoo.tflite(name), name.replace("_", "-"))
        yield running
