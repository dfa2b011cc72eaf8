"""A box and its gateway as processes: results and deferred requests over kills of both, and the commands."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from tests import small_models
from tests.live_agent import LiveAgent
from tests.live_gateway import HYBRID, LiveGateway
from tests.trust_lab import certificate_in

WITHIN_S = 40.0
ROWS = np.arange(128, dtype=np.float32).reshape(2, 64) / 100


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    folder = tmp_path_factory.mktemp("outbox")
    made = certificate_in(folder / "tls")
    flags = ("--tls-cert", str(made.certificate_path), "--tls-key", str(made.key_path))
    with LiveGateway(folder / "gateway", *flags) as running:
        model = small_models.mlp(folder / "mlp.onnx")
        fleet(running, "models", "push", str(model), "--name", "large")
        yield running


def fleet(gateway: LiveGateway, *words: str) -> Any:
    """A command against the gateway; its JSON."""
    settings = os.environ | {"HYBRID_TOKEN": gateway.token, "HYBRID_GATEWAY": gateway.url}
    done = subprocess.run(
        [str(HYBRID), *words, "--json"], capture_output=True, text=True, timeout=60, env=settings, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout.splitlines()[-1])["data"]


@pytest.fixture(scope="module")
def box(gateway: LiveGateway, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAgent]:
    data = tmp_path_factory.mktemp("box") / "mill-3"
    token = fleet(gateway, "fleet", "token", "create", "--no-root")["token"]
    done = subprocess.run(
        [str(HYBRID), "agent", "enroll", "-", "--data", str(data), "--name", "mill-3", "--gateway", gateway.url],
        input=token, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with LiveAgent(data, {}, gateway=gateway.url) as agent:
        yield agent


def call(agent: LiveAgent, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    request = urllib.request.Request(agent.url + path, body, named, method=method)
    try:
        with urllib.request.urlopen(request, timeout=70) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(fact: Any) -> Any:
    end_s = time.monotonic() + WITHIN_S
    while time.monotonic() < end_s:
        if found := fact():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about")


def body() -> bytes:
    tensor = {"name": "x", "shape": [2, 64], "datatype": "FP32", "data": ROWS.ravel().tolist()}
    return json.dumps({"inputs": [tensor], "id": "mine"}).encode()


def show(agent: LiveAgent) -> Any:
    done = subprocess.run(
        [str(HYBRID), "agent", "outbox", "--data", str(agent.data), "--json"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["data"]


@pytest.mark.slow
def test_deferred_and_results_over_kills_of_both(gateway: LiveGateway, box: LiveAgent, tmp_path: Path) -> None:
    until(lambda: box.status()["parts"]["access"].get("connected"))
    gateway.kill()
    status, told = call(box, "POST", "/v2/models/large/infer", body(), Hybrid_Defer="offline")
    assert status == 202, told
    for n in range(5):
        large = b" " * 300_000 if n == 3 else b""  # travels as a file
        status, kept = call(box, "POST", "/v2/hybrid/agent/results?stream=door", b'{"open": %d}' % n + large)
        assert (status, kept["stream"], kept["seq"]) == (202, "result/door", n)
    assert call(box, "GET", told["href"])[1]["state"] == "queued"
    box.kill()
    stopped = show(box)["outbox"]
    assert (stopped["kinds"]["result"]["n_items"], stopped["kinds"]["deferred"]["n_items"]) == (5, 1)
    gateway.start()
    box.start()
    status, reply = until(lambda: found if (found := call(box, "GET", told["href"] + "?wait_s=5"))[0] == 200 else None)
    assert reply["id"] == "mine"
    (output,) = reply["outputs"]
    session = ort.InferenceSession(gateway.data.parent / "mlp.onnx")
    wanted = session.run(None, {"x": ROWS})[0]
    assert np.allclose(np.reshape(output["data"], output["shape"]), wanted, atol=1e-5)
    until(lambda: not show(box)["outbox"]["n_items"])
    listed = fleet(gateway, "fleet", "results", "ls", "--box", "mill-3")["items"]
    assert [(one["stream"], one["seq"]) for one in listed] == [("result/door", n) for n in range(5)]
    exported = fleet(gateway, "fleet", "results", "export", str(tmp_path / "out"))
    assert (exported["n_written"], exported["n_there"]) == (5, 0)
    files = sorted((tmp_path / "out").glob("*/*.bin"))
    assert [json.loads(file.read_bytes())["open"] for file in files] == list(range(5))
    assert fleet(gateway, "fleet", "results", "rm", "--up-to", str(exported["last"]))["n_removed"] == 5
    assert call(box, "DELETE", told["href"])[0] == 200
    assert call(box, "GET", told["href"])[0] == 404


@pytest.mark.slow
def test_what_is_no_request_is_not_deferred(box: LiveAgent) -> None:
    for broken in (b"", b"[]", b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32"}]}', b'{"inputs": 1}',
                   b'{"inputs": [{"name": "x", "shape": [3], "datatype": "FP32", "data": [1, 2]}]}',
                   b'{"inputs": [{"name": "x", "shape": [99999999999], "datatype": "INT8", "data": [1]}]}',
                   b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP99", "data": [1]}]}'):  # fmt: skip
        status, told = call(box, "POST", "/v2/models/large/infer", broken, Hybrid_Defer="always")
        assert status in (400, 422), (broken, told)
    assert call(box, "POST", "/v2/models/large/infer", body(), Hybrid_Defer="perhaps")[0] == 400
    assert call(box, "GET", "/v2/hybrid/agent/deferred/" + "0" * 32)[0] == 404
    assert call(box, "GET", "/v2/hybrid/agent/deferred/" + "0" * 32 + "?wait_s=x")[0] == 400
