"""One gateway and one agent for all foreign clients: small models, shared memory, no tokens, as they expect."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import small_models
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway
from tests.serving_push import push


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of the models that the gateway serves, by name."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "mlp": small_models.mlp(folder / "mlp.onnx"),
        "counted": small_models.mlp(folder / "counted.onnx", seed=1),
        "repository": small_models.mlp(folder / "repository.onnx", seed=2),
        "simple": small_models.add_sub(folder / "simple.onnx"),
    }


@pytest.fixture(scope="session", params=["gateway", "agent"])
def open_gateway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, model_files: dict[str, Path]
) -> Iterator[LiveGateway]:
    """A service on loopback that asks for no tokens and allows shared memory: a gateway, then an agent."""
    data = tmp_path_factory.mktemp(request.param) / "data"
    if request.param == "agent":
        with LiveAgent(data, model_files, "--allow-shared-memory") as agent:
            yield agent
        return
    with LiveGateway(data, "--no-auth", "--allow-shared-memory") as gateway:
        for name, path in model_files.items():
            push(gateway.url, path, name)
        yield gateway
