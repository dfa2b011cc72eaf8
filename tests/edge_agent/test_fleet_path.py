"""The whole way of a box: enrolled, given a model, changed under load, killed, and started without a network."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton

import hybrid
from tests import small_models
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

FEEDS = {"x": np.random.default_rng(9).standard_normal((1, 64)).astype(np.float32)}


class Client:
    """A program on the box that never stops asking."""

    def __init__(self, url: str) -> None:
        self.answers: list[np.ndarray] = []
        self.errors: list[str] = []
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with triton.InferenceServerClient(self._url.removeprefix("http://")) as client:
            while not self._stop.is_set():
                tensor = triton.InferInput("x", [1, 64], "FP32")
                tensor.set_data_from_numpy(FEEDS["x"])
                try:
                    self.answers.append(client.infer("mlp", [tensor]).as_numpy("y"))
                except Exception as exc:  # noqa: BLE001 (whatever it is, it is no answer)
                    self.errors.append(str(exc))
                time.sleep(0.002)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10)


def _until(condition: Callable[[], bool], patience_s: float = 40.0) -> None:
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about in time"
        time.sleep(0.05)


def test_from_enrolment_over_a_change_under_load_to_a_restart_without_a_network(
    tmp_path: Path, run_hybrid: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    models, wanted = [], []
    for seed in range(2):
        (tmp_path / str(seed)).mkdir()
        models.append(small_models.mlp(tmp_path / str(seed) / "mlp.onnx", seed=seed))
        wanted.append(ort.InferenceSession(str(models[seed])).run(None, FEEDS)[0])
    data = tmp_path / "box"
    with LiveGateway(tmp_path / "gateway") as gateway:
        admin = {"HYBRID_GATEWAY": gateway.url, "HYBRID_TOKEN": gateway.token}

        def told(*words: str) -> Any:
            done = run_hybrid(*words, "--json", **admin)
            assert done.returncode == 0, done.stdout + done.stderr
            return json.loads(done.stdout)["data"]

        gateway.push(models[0], "mlp")
        assert run_hybrid(
            "agent", "enroll", told("fleet", "token", "create", "--no-root")["token"], "--data", str(data)
        )
        with LiveAgent(data, {}, gateway="auto") as agent:
            told("fleet", "assign", "mlp:1", "--tags", "all", "--trial-runs", "3", "--priority", "7")
            _until(lambda: bool(agent.status()["models"]))
            client = Client(agent.url)
            try:
                _until(lambda: agent.status()["parts"]["install"]["models"][0]["phase"] == "committed")
                assert agent.model("mlp")["priority"] == 7
                assert agent.model("mlp")["samples"] == "keep"
                gateway.push(models[1], "mlp")
                told("fleet", "assign", "mlp:2", "--tags", "all", "--trial-runs", "3", "--priority", "7")
                _until(lambda: agent.model("mlp")["version"] == "2")
                _until(lambda: agent.status()["parts"]["install"]["models"][0]["phase"] == "committed")
            finally:
                client.stop()
            assert client.errors == []
            with hybrid.InferenceSession("mlp", gateway=agent.url) as named:  # the box hands it on
                np.testing.assert_allclose(named.run(None, FEEDS)[0], wanted[1], atol=1e-5)
            kinds = [
                next((n for n in (0, 1) if np.allclose(answer, wanted[n], atol=1e-5)), -1) for answer in client.answers
            ]
            assert -1 not in kinds, "an answer of neither version"
            assert kinds == sorted(kinds), "the old version answered after the new one"
            assert set(kinds) == {0, 1}
            agent.kill()
            gateway.kill()
            began_s = time.monotonic()
            agent.start()
            assert agent.status()["ready"], agent.status()["problems"]
            assert time.monotonic() - began_s < 20
            again = Client(agent.url)
            try:
                _until(lambda: len(again.answers) + len(again.errors) > 5)
            finally:
                again.stop()
            assert again.errors == []
            np.testing.assert_allclose(again.answers[-1], wanted[1], atol=1e-5)
