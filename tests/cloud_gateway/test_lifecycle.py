"""A gateway's life: starts without configuration, tells the truth about its health, drains, refuses what is unsafe."""

import asyncio
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import small_models
from tests.live_gateway import HYBRID, LiveGateway
from tests.serving_push import push

LONG = 10**9
"""Iterations of the loop model that would take hours."""


def get(gateway: LiveGateway, path: str) -> tuple[int, dict[str, object]]:
    request = urllib.request.Request(gateway.url + path, headers={"Authorization": f"Bearer {gateway.token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def post(gateway: LiveGateway, path: str, body: object, *, timeout_s: float = 30) -> tuple[int, dict[str, object]]:
    headers = {"Authorization": f"Bearer {gateway.token}"}
    request = urllib.request.Request(gateway.url + path, data=json.dumps(body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def loop_call(n: int) -> dict[str, object]:
    x = np.eye(128, dtype=np.float32).ravel().tolist()
    return {
        "inputs": [
            {"name": "n", "shape": [], "datatype": "INT64", "data": [n]},
            {"name": "x", "shape": [128, 128], "datatype": "FP32", "data": x},
        ]
    }


def metric(gateway: LiveGateway, name: str) -> float:
    request = urllib.request.Request(gateway.url + "/metrics", headers={"Authorization": f"Bearer {gateway.token}"})
    with urllib.request.urlopen(request, timeout=10) as reply:
        for line in reply.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise AssertionError(f"no metric {name}")


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path / "data", "--drain-s", "10") as running:
        yield running


def ends(gateway: LiveGateway, timeout_s: float) -> int:
    process = gateway._process
    assert process is not None
    return process.wait(timeout_s)


def refusal(tmp_path: Path, *flags: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(HYBRID), "gateway", "serve", "--data", str(tmp_path / "other"), *flags]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HYBRID_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=kept | settings, check=False)


def test_the_first_start_needs_nothing_and_leaves_a_private_token(gateway: LiveGateway) -> None:
    assert stat.S_IMODE((gateway.data / "admin.token").stat().st_mode) == 0o600
    assert stat.S_IMODE(gateway.data.stat().st_mode) == 0o700
    assert gateway.token.startswith("hyb_")
    until(lambda: get(gateway, "/v2/health/ready") == (200, {"live": True, "ready": True}))
    status, metadata = get(gateway, "/v2")
    assert (status, metadata["name"]) == (200, "hybrid")
    assert "system_shared_memory" not in metadata["extensions"]  # type: ignore[operator]
    assert gateway.token not in gateway.log


def test_models_and_their_load_state_survive_a_kill(gateway: LiveGateway, tmp_path: Path) -> None:
    for name in ("kept", "dropped"):
        push(gateway.url, small_models.mlp(tmp_path / f"{name}.onnx"), name, token=gateway.token)
    assert post(gateway, "/v2/repository/models/dropped/unload", {})[0] == 200
    gateway.kill()
    gateway.start()
    until(lambda: get(gateway, "/v2/health/ready")[0] == 200)
    states = {entry["name"]: entry["state"] for entry in post(gateway, "/v2/repository/index", {})[1]}  # type: ignore[index]
    assert states == {"kept": "READY", "dropped": "UNAVAILABLE"}
    x = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
    assert post(gateway, "/v2/models/kept/infer", x)[0] == 200
    assert post(gateway, "/v2/models/dropped/infer", x)[0] == 404
    assert get(gateway, "/v2/models/dropped/ready")[0] == 503


def test_it_is_not_ready_while_a_model_loads(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.heavy(tmp_path / "heavy.onnx"), "heavy", token=gateway.token)
    gateway.kill()
    gateway.start()
    seen = [get(gateway, "/v2/health/ready")]
    while seen[-1][0] != 200:
        assert seen[-1] == (503, {"live": True, "ready": False})
        assert get(gateway, "/v2/health/live")[0] == 200
        seen.append(get(gateway, "/v2/health/ready"))
    assert len(seen) > 1
    assert get(gateway, "/v2/models/heavy/ready")[0] == 200


def test_a_new_version_takes_over_and_the_old_one_still_answers(gateway: LiveGateway, tmp_path: Path) -> None:
    x = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
    answers = []
    for seed in (1, 2):
        push(gateway.url, small_models.mlp(tmp_path / f"m{seed}.onnx", seed), "m", token=gateway.token)
        until(lambda: get(gateway, f"/v2/models/m/versions/{seed}/ready")[0] == 200)  # noqa: B023 (called at once)
        status, reply = post(gateway, "/v2/models/m/infer", x)
        assert (status, reply["model_version"]) == (200, str(seed))
        answers.append(reply["outputs"])
    assert answers[0] != answers[1]
    assert post(gateway, "/v2/models/m/versions/1/infer", x)[1]["outputs"] == answers[0]
    assert get(gateway, "/v2/models/m")[1]["versions"] == ["1", "2"]


def test_a_broken_new_version_leaves_the_old_one_serving(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.mlp(tmp_path / "good.onnx"), "m", token=gateway.token)
    import onnx
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("NoSuchOperator", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=small_models.OPSET, ir_version=small_models.IR_VERSION)
    onnx.save(model, str(tmp_path / "bad.onnx"))
    push(gateway.url, tmp_path / "bad.onnx", "m", token=gateway.token)
    index = post(gateway, "/v2/repository/index", {})
    until(lambda: "NoSuchOperator" in json.dumps(post(gateway, "/v2/repository/index", {})[1]))
    assert index[0] == 200
    x = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
    status, reply = post(gateway, "/v2/models/m/infer", x)
    assert (status, reply["model_version"]) == (200, "1")
    assert get(gateway, "/v2/health/ready")[0] == 200


def test_sigterm_lets_running_requests_end(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.loop(tmp_path / "loop.onnx"), "loop", token=gateway.token)
    token = gateway.token
    found: list[tuple[int, dict[str, object]]] = []
    # A keep-alive connection from before the drain still gets health and a clear refusal.
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as stream:
        stream.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
        assert stream.recv(4096).startswith(b"HTTP/1.1 200")
        asking = threading.Thread(
            target=lambda: found.append(post(gateway, "/v2/models/loop/infer", loop_call(20_000)))
        )
        asking.start()
        until(lambda: metric(gateway, "hybrid_engine_running") == 1)
        gateway.signal(signal.SIGTERM)
        until(lambda: "service.draining" in gateway.log or _says_not_ready(stream))
        stream.sendall(f"GET /v2 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        refused = stream.recv(4096)
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"shutting down" in refused
    asking.join(20)
    assert found
    assert found[0][0] == 200
    assert ends(gateway, 10) == 0


def _says_not_ready(stream: socket.socket) -> bool:
    stream.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
    return stream.recv(4096).startswith(b"HTTP/1.1 503")


def test_a_second_signal_hurries(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.loop(tmp_path / "loop.onnx"), "loop", token=gateway.token)

    def ask() -> None:
        try:
            post(gateway, "/v2/models/loop/infer", loop_call(LONG))
        except OSError:
            return

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: metric(gateway, "hybrid_engine_running") == 1)
    gateway.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        ends(gateway, 0.5)
    started_s = time.monotonic()
    gateway.signal(signal.SIGTERM)
    assert ends(gateway, 8) == 0
    assert time.monotonic() - started_s < 8
    asking.join(10)


def test_a_client_that_leaves_ends_its_run(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.loop(tmp_path / "loop.onnx"), "loop", token=gateway.token)
    body = json.dumps(loop_call(LONG)).encode()
    head = f"POST /v2/models/loop/infer HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {gateway.token}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as stream:
        stream.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: metric(gateway, "hybrid_engine_running") == 1)
    until(lambda: metric(gateway, "hybrid_engine_running") == 0)


def test_one_gateway_holds_a_data_folder(gateway: LiveGateway, tmp_path: Path) -> None:
    done = refusal(tmp_path, "--port", "0", "--data", str(gateway.data))
    assert done.returncode == 6
    assert "held by another gateway" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_port_in_use_is_one_clear_error(gateway: LiveGateway, tmp_path: Path) -> None:
    done = refusal(tmp_path, "--port", str(gateway.port))
    assert done.returncode == 6
    assert f"port {gateway.port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--no-auth", "--host", "0.0.0.0"), "--no-auth"),
        (("--allow-shared-memory", "--host", "0.0.0.0"), "--allow-shared-memory"),
        (("--tls-cert", "c.pem"), "--tls-key"),
        (("--port", "70000"), "70000"),
        (("--event-loop", "trio"), "trio"),
        (("--max-body-bytes", "0"), "max_body_bytes"),
    ],
)
def test_unsafe_and_senseless_settings_are_wrong_usage(tmp_path: Path, flags: tuple[str, ...], said: str) -> None:
    done = refusal(tmp_path, *flags)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_missing_certificate_is_one_clear_error(tmp_path: Path) -> None:
    done = refusal(tmp_path, "--port", "0", "--tls-cert", "/nowhere/c.pem", "--tls-key", "/nowhere/k.pem")
    assert done.returncode == 1
    assert "/nowhere/c.pem" in done.stderr
    assert "Traceback" not in done.stderr


def test_off_loopback_it_speaks_tls_and_proves_itself(tmp_path: Path) -> None:
    from hybrid.transport.model_push import PushOptions
    from hybrid.transport.model_push import push as push_model
    from hybrid.transport.registry_client import RegistryClient
    from hybrid.transport.trust import Trust

    with LiveGateway(tmp_path / "data", "--host", "0.0.0.0", "--no-announce") as running:
        assert running.url.startswith("https://")
        url = f"https://127.0.0.1:{running.port}"
        with pytest.raises(urllib.error.URLError) as caught:
            urllib.request.urlopen(url + "/v2/health/live", timeout=5)
        assert isinstance(caught.value.reason, ssl.SSLCertVerificationError)

        async def send() -> str:
            async with RegistryClient(url, running.token, trust=Trust()) as client:
                path = small_models.mlp(tmp_path / "m.onnx")
                return (await push_model(client, path, "m", PushOptions())).version.name

        assert asyncio.run(send()) == "m"


def test_settings_come_from_flag_over_variable_over_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text('host = "0.0.0.0"\nport = 99999\nno_auth = true\n')
    done = refusal(tmp_path, "--config", str(file))
    assert "--no-auth on 0.0.0.0" in done.stderr
    done = refusal(tmp_path, "--config", str(file), HYBRID_GATEWAY_HOST="127.0.0.1")
    assert "port 99999" in done.stderr
    done = refusal(tmp_path, "--config", str(file), "--port", "88888", HYBRID_GATEWAY_HOST="127.0.0.1")
    assert "port 88888" in done.stderr
    file.write_text("colour = 1\n")
    done = refusal(tmp_path, "--config", str(file))
    assert done.returncode == 2
    assert "colour" in done.stderr


def test_metrics_count_what_happened(gateway: LiveGateway, tmp_path: Path) -> None:
    push(gateway.url, small_models.mlp(tmp_path / "m.onnx"), "m", token=gateway.token)
    x = {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": [0.5] * 64}]}
    for _ in range(3):
        assert post(gateway, "/v2/models/m/infer", x)[0] == 200
    assert post(gateway, "/v2/models/m/infer", {})[0] == 400
    labels = '{model="m",outcome="%s",version="1"}'
    assert metric(gateway, "hybrid_inferences_total" + labels % "success") == 3
    assert metric(gateway, "hybrid_inferences_total" + labels % "fail") == 1
    assert metric(gateway, 'hybrid_http_requests_total{status="400"}') == 1
    assert metric(gateway, "hybrid_ready") == 1
    assert metric(gateway, "hybrid_engine_sessions") == 1
    assert metric(gateway, 'hybrid_http_request_duration_seconds_bucket{le="+Inf"}') >= 4


@pytest.mark.parametrize(
    ("role", "path", "status"),
    [
        ("device", "/v2/repository/models/m/unload", 403),
        ("publisher", "/v2/repository/models/m/unload", 403),
        ("device", "/v2/logging", 403),
        ("device", "/v2/repository/index", 200),
    ],
)
def test_rights_are_asked_for(tmp_path: Path, role: str, path: str, status: int) -> None:
    with LiveGateway(tmp_path / "data") as running:
        command = [
            str(HYBRID),
            "gateway",
            "token",
            "create",
            "--role",
            role,
            "--name",
            "t",
            "--data",
            str(running.data),
        ]
        token = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()

        def answer() -> int:
            request = urllib.request.Request(
                running.url + path, data=b"{}", headers={"Authorization": f"Bearer {token}"}
            )
            try:
                with urllib.request.urlopen(request, timeout=5) as reply:
                    return int(reply.status)
            except urllib.error.HTTPError as error:
                with error:
                    assert json.load(error)["error"]
                    return error.code

        until(lambda: answer() != 401)  # the gateway looks at the token file twice a second
        assert answer() == status
