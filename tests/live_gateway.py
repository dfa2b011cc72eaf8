"""A real gateway process for tests and benchmarks: started, pushed to, killed, frozen, started again on its port."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pytest

from hybrid.cli.main import main

if TYPE_CHECKING:
    from devices.lab.lab import Place

HYBRID = Path(sys.executable).parent / "hybrid"
READY_TIMEOUT_S = 30.0


class LiveGateway:
    """`hybrid gateway serve` on loopback, or at the gateway's end of a lab, with its own data folder.

    Args:
        data: the folder; kept between `kill` and `start`.
        flags: further flags of `gateway serve`.
        place: where in a lab it runs; None for loopback.
    """

    service = "gateway"

    def __init__(self, data: Path, *flags: str, place: "Place | None" = None) -> None:
        self.data = data
        self._flags = flags if place is None else ("--host", place.address, *flags)
        self._place = place
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._log = (data.parent / f"{data.name}.log").open("a")
        try:
            self.start()
        except BaseException:
            self._log.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        self._log.close()

    @property
    def port(self) -> int:
        """The port that it serves on."""
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def token(self) -> str:
        """The administrator's token; empty where the gateway asks for none."""
        path = self.data / "admin.token"
        return path.read_text().strip() if path.exists() else ""

    @property
    def log(self) -> str:
        """What it wrote to stderr so far."""
        return Path(self._log.name).read_text()

    def start(self) -> None:
        """Starts it, on the same port as before, and waits for its ready line."""
        port = self.port if self.url else 0
        command = [str(HYBRID), self.service, "serve", "--port", str(port), "--data", str(self.data), *self._flags]
        self._process = subprocess.Popen(self._placed(command), stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready http"):
            self.stop()
            pytest.fail(f"the {self.service} did not start: {line!r}\n{self.log}")
        self.url = line.split()[1]

    def push(self, model: Path, name: str) -> None:
        """Pushes a model with the command: in this process where it may wait, which spares the start of another."""
        words = ["models", "push", str(model), "--name", name, "--gateway", self.url]
        if self._place is None and asyncio._get_running_loop() is None:
            told = io.StringIO()
            with redirect_stdout(told), redirect_stderr(told), pytest.MonkeyPatch.context() as patch:
                patch.setenv("HYBRID_TOKEN", self.token)
                code = main(words)
            assert code == 0, told.getvalue()
            return
        done = subprocess.run(
            self._placed([str(HYBRID), *words]),
            capture_output=True,
            text=True,
            env=dict(os.environ) | {"HYBRID_TOKEN": self.token},
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal: SIGKILL, SIGSTOP, SIGCONT, SIGTERM."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        """Ends it in order, or at once when it does not."""
        assert self._process is not None
        if self._process.poll() is None:
            self.signal(signal.SIGCONT)
            self._process.terminate()
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _placed(self, command: list[str]) -> list[str]:
        return command if self._place is None else self._place.command(command)
