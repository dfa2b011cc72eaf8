"""A box with an agent and a gateway, all real, for the tests of living on a box."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live_gateway import HYBRID, LiveGateway


class LiveAgent:
    """`hybrid agent serve` as systemd would start it: with a socket that hears what it says.

    Attributes:
        data: its folder.
        heard: every datagram so far.
        log: what it wrote to stderr.
    """

    def __init__(
        self, room: Path, *flags: str, watchdog_s: float = 0.0, command: tuple[str, ...] = (), **env: str
    ) -> None:
        self.data = room / "agent"
        self.heard: list[str] = []
        self._address = f"/tmp/hybrid-notify-{os.getpid()}-{time.monotonic_ns()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self._address)
        self._log = (room / "agent.log").open("w+")
        environment = os.environ | {"NOTIFY_SOCKET": self._address} | env
        if watchdog_s:
            environment["WATCHDOG_USEC"] = str(int(watchdog_s * 1e6))
        words = command or (str(HYBRID), "agent", "serve", "--gateway", "none", "--port", "0", "--data", str(self.data))
        self.process = subprocess.Popen([*words, *flags], env=environment, stdout=subprocess.DEVNULL, stderr=self._log)

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text()

    def hear(self, word: str, within_s: float = 30.0) -> str:
        """Wait for a datagram with this word in it."""
        until_s = time.monotonic() + within_s
        while True:
            self._socket.settimeout(max(0.01, until_s - time.monotonic()))
            try:
                text = self._socket.recv(4096).decode()
            except TimeoutError:
                pytest.fail(f"{word} was not heard within {within_s:g} s, but {self.heard[-5:]}\n{self.log[-2000:]}")
            self.heard.append(text)
            if word in text:
                return text

    def stop(self) -> int:
        """SIGTERM, and how it ended."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._socket.close()
        self._log.close()
        Path(self._address).unlink(missing_ok=True)


@pytest.fixture
def start_agent(tmp_path: Path) -> Iterator[object]:
    """Starts agents on this test's box, one after the other."""
    running: list[LiveAgent] = []

    def start(*flags: str, **settings: object) -> LiveAgent:
        running.append(LiveAgent(tmp_path, *flags, **settings))
        return running[-1]

    yield start
    for agent in running:
        agent.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("gateway") / "data") as running:
        yield running
