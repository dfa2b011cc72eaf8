"""A gateway with real models, shared by the tests of sessions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import zoo
from tests.live_gateway import LiveGateway
from tests.session import split_artifacts
from tests.session.split_artifacts import Made

MODELS = ("ppocr_det", "ppocr_rec", "ppocr_cls", "silero", "magika", "minilm")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared graphs are shared by these tests, and not taken from the person who runs them."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path_factory.getbasetemp() / "hybrid-cache"))


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that holds the zoo's models; tests must leave it running."""
    with LiveGateway(tmp_path_factory.mktemp("gateway") / "data", "--no-announce") as running:
        for name in MODELS:
            running.push(zoo.path(name), name.replace("_", "-"))
        yield running


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    """A gateway that a test may kill, with the angle classifier only."""
    with LiveGateway(tmp_path / "data", "--no-announce") as running:
        running.push(zoo.path("ppocr_cls"), "cls")
        yield running


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact with splits; tests must leave its files as they are."""
    folder = tmp_path_factory.mktemp("splits")
    return split_artifacts.make(folder / "net", folder / "cut")


@pytest.fixture(scope="session")
def holder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway that holds that artifact; tests must leave it running."""
    with LiveGateway(tmp_path_factory.mktemp("holder") / "data", "--no-announce", "--no-auth") as running:
        running.push(made.artifact.folder, "net")
        yield running
