"""One gateway for all foreign clients, with small models, shared memory and no tokens, as those clients expect."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import small_models
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


@pytest.fixture(scope="session")
def open_gateway(tmp_path_factory: pytest.TempPathFactory, model_files: dict[str, Path]) -> Iterator[LiveGateway]:
    """A gateway on loopback without authentication and with shared memory."""
    data = tmp_path_factory.mktemp("gateway") / "data"
    with LiveGateway(data, "--no-auth", "--allow-shared-memory") as gateway:
        for name, path in model_files.items():
            push(gateway.url, path, name)
        yield gateway
