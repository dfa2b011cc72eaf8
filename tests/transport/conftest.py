"""A real server process, and clients that are given back."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hybrid.transport.client import GatewayClient, acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """`lone_channel.py` in a process of its own."""

    def __init__(self, *flags: str) -> None:
        self._flags = flags
        self.port = 0
        self.start()

    def start(self) -> None:
        """Starts it, on the same port as before."""
        command = [sys.executable, "-W", "error", "-m", "tests.transport.lone_channel", "--port", str(self.port)]
        self.process = subprocess.Popen([*command, *self._flags], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.thaw()
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
        if self.process.stdout is not None:
            self.process.stdout.close()


@pytest.fixture
def server_of() -> Iterator[Callable[..., ServerProcess]]:
    servers: list[ServerProcess] = []

    def make(*flags: str) -> ServerProcess:
        servers.append(ServerProcess(*flags))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ServerProcess]:
    """One server for tests that do it no harm."""
    server = ServerProcess()
    yield server
    server.close()


@pytest.fixture
def client_of() -> Iterator[Callable[..., GatewayClient]]:
    clients: list[GatewayClient] = []

    def make(url: str, token: str | None = None, trust: Trust | None = None, *, wait: bool = True) -> GatewayClient:
        client = acquire(url, token, trust=trust or Trust())
        clients.append(client)
        if wait:
            assert client.wait_settled(10) == "ready", client.down_reason
        return client

    yield make
    for client in clients:
        release(client)


def ask(model: str, n_bytes: int = 1000) -> InferRequest:
    return InferRequest(model_name=model, inputs=(Tensor.of("x", np.zeros(n_bytes, dtype=np.uint8)),))


def eventually(holds: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    """Whether it comes true in time; for states that another process reaches and does not announce."""
    until_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True


def counts(client: GatewayClient) -> dict[str, int]:
    """What the server says of its slow requests."""
    response = client.infer(InferRequest(model_name="count"), stall_s=5, timeout_s=5).result(10)
    return {tensor.spec.name: int(tensor.to_array()) for tensor in response.outputs}
