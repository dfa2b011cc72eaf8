"""A real fleet on this machine for the rows of faults: one gateway, boxes that are enrolled, a model, a program."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

HYBRID = Path(sys.executable).parent / "hybrid"
MODEL = "tiny"
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


class Box(LiveAgent):
    """An enrolled agent, and a program that uses it over HTTP.

    Attributes:
        acknowledged: words of results that it said are on its disk, in order, by stream.
    """

    def __init__(self, data: Path, *flags: str) -> None:
        self.acknowledged: dict[str, list[str]] = {}
        self._n_words = 0
        super().__init__(data, {}, "--no-announce", *flags, "-v", gateway="auto")

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process is not None
        return self._process.pid

    def ask(self, path: str, body: bytes | None = None, timeout_s: float = 10.0) -> tuple[int, Any]:
        """Status and JSON of a call; a refused connection is status 0."""
        request = urllib.request.Request(self.url + path, data=body)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as exc:
            text = exc.read()
            return exc.code, json.loads(text) if text.startswith(b"{") else text
        except (OSError, ValueError) as exc:
            return 0, str(exc)

    def bring(self, stream: str = "s", n_bytes: int = 200, timeout_s: float = 10.0) -> tuple[int, Any]:
        """A program's result for the gateway; remembered when the box says that it is safe."""
        self._n_words += 1
        word = f"{stream}-{self._n_words:06d}"
        body = word.encode().ljust(n_bytes, b".")
        status, told = self.ask(f"/v2/hybrid/agent/results?stream={stream}", body, timeout_s)
        if status == 202:
            self.acknowledged.setdefault(stream, []).append(word)
        return status, told

    def infer(self) -> bool:
        """Whether the model answers, and rightly."""
        inputs = [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]
        status, told = self.ask(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": inputs}).encode())
        return status == 200 and len(told["outputs"][0]["data"]) > 0

    def is_ready(self) -> bool:
        """What health says."""
        return self.ask("/v2/health/ready")[0] == 200

    def problems(self) -> list[str]:
        """Codes of what is wrong, as it says."""
        status, told = self.ask("/v2/hybrid/agent/status")
        return [problem["code"] for problem in told["problems"]] if status == 200 else [f"status {status}"]

    def phase(self) -> str:
        """Where the installation of the model stands; empty where nothing is known of it."""
        status, told = self.ask("/v2/hybrid/agent/status")
        parts = told["parts"] if status == 200 else {}
        models = parts.get("install", {}).get("models", [])
        return next((model["phase"] for model in models if model["name"] == MODEL), "")

    def version(self) -> str:
        """The version that answers; empty for none."""
        status, told = self.ask("/v2/hybrid/agent/status")
        models = told["models"] if status == 200 else []
        return next((model.get("version", "") for model in models if model["name"] == MODEL), "")

    def start_in_s(self) -> float:
        """Start it again; seconds until it was ready."""
        begun_s = time.monotonic()
        self.start()
        return time.monotonic() - begun_s


class Fleet:
    """A gateway, its administrator's commands, and boxes."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.gateway = LiveGateway(folder / "gateway", "--no-announce", *flags)

    def hybrid(self, *words: str, settings: Mapping[str, str] | None = None) -> str:
        """What the command prints.

        Raises:
            SystemExit: it failed.
        """
        env = (
            os.environ | {"HYBRID_GATEWAY": self.gateway.url, "HYBRID_TOKEN": self.gateway.token} | dict(settings or {})
        )
        done = subprocess.run([HYBRID, *words], capture_output=True, text=True, env=env, timeout=90, check=False)
        if done.returncode:
            raise SystemExit(f"hybrid {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def push(self, version: int) -> None:
        """A version of the model, and its assignment to every box."""
        from tests.small_models import mlp

        path = mlp(self.folder / f"{MODEL}-{version}.onnx", seed=version)
        self.hybrid("models", "push", str(path), "--name", MODEL, "--version", str(version))
        self.hybrid("fleet", "assign", f"{MODEL}:{version}", "--tags", "all")

    def enroll(self, name: str, settings: Mapping[str, str] | None = None) -> Path:
        """The folder of a new box of this fleet."""
        told = json.loads(self.hybrid("fleet", "token", "create", "--no-root", "--json"))
        data = self.folder / name
        self.hybrid("agent", "enroll", told["data"]["token"], "--data", str(data), settings=settings)
        return data

    def stored(self) -> dict[str, list[str]]:
        """Words of results that the gateway holds, by stream, in order."""
        path = self.gateway.data / "fleet" / "ingest.db"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT stream, body, blob FROM item WHERE kind = 'result' ORDER BY id").fetchall()
        found: dict[str, list[str]] = {}
        for stream, body, blob in rows:
            content = bytes(body) if not blob else self._blob(blob)
            found.setdefault(stream.partition("/")[2], []).append(content[:200].rstrip(b".").decode())
        return found

    def _blob(self, sha256: str) -> bytes:
        return next((self.gateway.data / "fleet").rglob(sha256)).read_bytes()

    def close(self) -> None:
        """End the gateway."""
        self.gateway.stop()


def until(true: Callable[[], bool], limit_s: float, every_s: float = 0.1) -> float | None:
    """Seconds until something is so; None where that took longer."""
    begun_s = time.monotonic()
    while time.monotonic() - begun_s < limit_s:
        if true():
            return time.monotonic() - begun_s
        time.sleep(every_s)
    return None


def losses(fleet: Fleet, box: Box, limit_s: float = 90.0) -> tuple[int, int, int]:
    """Acknowledged results that never arrived, those that arrived twice, and streams out of order."""

    def all_there() -> bool:
        stored = fleet.stored()
        return all(set(words) <= set(stored.get(stream, [])) for stream, words in box.acknowledged.items())

    until(all_there, limit_s, 0.5)
    stored = fleet.stored()
    n_lost = sum(len(set(words) - set(stored.get(stream, []))) for stream, words in box.acknowledged.items())
    n_twice = sum(len(words) - len(set(words)) for words in stored.values())
    n_mixed = 0
    for stream, words in box.acknowledged.items():
        known = set(words)
        n_mixed += [word for word in stored.get(stream, []) if word in known] != words
    return n_lost, n_twice, n_mixed


@contextmanager
def faked(when: str) -> Iterator[None]:
    """Programs that start inside believe another calendar; clocks that only run forward are left alone."""
    changes = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": when, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


STOP, CONT = signal.SIGSTOP, signal.SIGCONT
