"""`hybrid agent serve` as a process: what any client sees, with no network, no gateway, no fleet."""

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton

import hybrid
from hybrid.serving.computing import Asked
from tests import small_models, zoo
from tests.live_agent import LiveAgent

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    (folder / "mlp").mkdir()
    return {"mlp": small_models.mlp(folder / "mlp" / "mlp.onnx"), "cls": zoo.path("ppocr_cls")}


@pytest.fixture(scope="module")
def agent(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveAgent]:
    with LiveAgent(tmp_path_factory.mktemp("agent") / "data", files) as agent:
        yield agent


def _post(url: str, body: dict, **headers: str) -> tuple[int, dict, dict[str, str]]:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    call = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **named})
    try:
        with urllib.request.urlopen(call, timeout=20) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), dict(error.headers)


def _body(**parameters: object) -> dict:
    x = [[0.5] * 64]
    return {"inputs": [{"name": "x", "shape": [1, 64], "datatype": "FP32", "data": x}], "parameters": parameters}


@pytest.mark.parametrize("name", ["mlp", "cls"])
def test_the_service_answers_bit_for_bit_what_an_embedded_session_computes(
    agent: LiveAgent, files: dict[str, Path], name: str
) -> None:
    feeds = {"x": np.ones((3, 64), np.float32) / 7} if name == "mlp" else zoo.feeds("ppocr_cls")
    with hybrid.InferenceSession(files[name], gateway=None) as embedded:
        wanted = embedded.run(None, feeds)
        outputs = [node.name for node in embedded.get_outputs()]
    assert all(
        np.array_equal(a, b) for a, b in zip(wanted, ort.InferenceSession(files[name]).run(None, feeds), strict=True)
    )
    with triton.InferenceServerClient(agent.url.removeprefix("http://")) as client:
        tensors = []
        for key, array in feeds.items():
            tensors.append(triton.InferInput(key, list(array.shape), "FP32"))
            tensors[-1].set_data_from_numpy(array)
        found = client.infer(name, tensors)
    for key, array in zip(outputs, wanted, strict=True):
        assert np.array_equal(found.as_numpy(key), array)
        assert found.as_numpy(key).dtype == array.dtype


def test_an_answer_says_where_it_was_computed_and_by_which_digest(agent: LiveAgent) -> None:
    status, reply, headers = _post(f"{agent.url}/v2/models/mlp/infer", _body())
    assert status == 200
    digest = agent.model("mlp")["model_digest"]
    assert reply["parameters"] == {"hybrid_placement": "local", "hybrid_model_digest": digest}
    assert headers["Hybrid-Placement"] == "local"
    assert headers["Hybrid-Model-Digest"] == digest


def test_a_deadline_that_cannot_be_kept_is_a_typed_error(agent: LiveAgent) -> None:
    status, reply, _ = _post(f"{agent.url}/v2/models/mlp/infer", _body(hybrid_deadline_s=1e-7))
    assert (status, reply["code"]) == (504, "deadline_passed")
    status, reply, _ = _post(f"{agent.url}/v2/models/mlp/infer", _body(), Hybrid_Deadline_S="1e-7")
    assert (status, reply["code"]) == (504, "deadline_passed")
    assert _post(f"{agent.url}/v2/models/mlp/infer", _body(timeout=5_000_000))[0] == 200


@pytest.mark.parametrize(
    ("headers", "parameters"),
    [
        ({"Hybrid_Priority": "10"}, {}),
        ({"Hybrid_Priority": "-1"}, {}),
        ({}, {"hybrid_priority": 12}),
        ({"Hybrid_Deadline_S": "soon"}, {}),
        ({"Hybrid_Deadline_S": "0"}, {}),
        ({"Hybrid_Deadline_S": "nan"}, {}),
    ],
)
def test_a_priority_or_deadline_that_is_none_is_refused(
    agent: LiveAgent, headers: dict[str, str], parameters: dict[str, object]
) -> None:
    status, reply, _ = _post(f"{agent.url}/v2/models/mlp/infer", _body(**parameters), **headers)
    assert status == 400
    assert "must" in reply["error"]


@pytest.mark.parametrize("headers", [{"Hybrid_Priority": "9"}, {}])
def test_priorities_are_taken_in_our_words_and_in_tritons(agent: LiveAgent, headers: dict[str, str]) -> None:
    parameters = {} if headers else {"priority": 1, "timeout": 0}
    assert _post(f"{agent.url}/v2/models/mlp/infer", _body(**parameters), **headers)[0] == 200


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Host": "evil.example"}])
def test_what_a_web_page_sends_is_refused(agent: LiveAgent, headers: dict[str, str]) -> None:
    status, reply, _ = _post(f"{agent.url}/v2/models/mlp/infer", _body(), **headers)
    assert (status, reply["code"]) == (403, "forbidden")


def test_status_tells_people_and_programs_the_same(agent: LiveAgent, run_hybrid: Run) -> None:
    _post(f"{agent.url}/v2/models/mlp/infer", _body())
    shown = run_hybrid("agent", "status", "--data", str(agent.data))
    assert shown.returncode == 0
    told = json.loads(run_hybrid("agent", "status", "--data", str(agent.data), "--json").stdout)
    assert told["ok"]
    assert {model["name"] for model in told["data"]["models"]} == {"mlp", "cls"}
    assert told["data"]["ready"] is True
    assert f"ready at {agent.url}" in shown.stdout
    for word in ("MODEL", "mlp", "outbox", "gateway", "in no fleet", "vault_key_on_disk", "do:"):
        assert word in shown.stdout


def test_metrics_count_answers_by_place(agent: LiveAgent) -> None:
    before = agent.model("mlp")["n_good"]
    _post(f"{agent.url}/v2/models/mlp/infer", _body())
    assert agent.model("mlp")["n_good"] == before + 1
    with urllib.request.urlopen(f"{agent.url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert f'hybrid_agent_answers_total{{model="mlp",placement="local"}} {before + 1}.0' in text
    assert 'hybrid_agent_problem{blocks="no",code="vault_key_on_disk"} 1.0' in text


def test_a_second_agent_on_the_same_folder_says_who_holds_it(agent: LiveAgent, run_hybrid: Run) -> None:
    done = run_hybrid("agent", "serve", "--port", "0", "--data", str(agent.data), "--gateway", "none")
    assert done.returncode != 0
    assert "held by another agent" in done.stderr


def test_status_without_an_agent_says_how_to_start_one(tmp_path: Path, run_hybrid: Run) -> None:
    nowhere = run_hybrid("agent", "status", "--data", str(tmp_path / "no"))
    assert nowhere.returncode == 3
    assert "hybrid agent serve" in nowhere.stderr
    (tmp_path / "data").mkdir()
    stopped = run_hybrid("agent", "status", "--data", str(tmp_path / "data"), "--json")
    assert json.loads(stopped.stdout)["error"]["code"] == "not_found"


def test_health_tells_the_truth_of_a_model_that_cannot_be_opened(files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    with LiveAgent(tmp_path / "data", {"mlp": files["mlp"], "bad": broken}) as agent:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{agent.url}/v2/health/ready", timeout=10)
        assert caught.value.code == 503
        caught.value.close()
        assert [problem["code"] for problem in agent.status()["problems"] if problem["blocks"]] == ["model_invalid"]
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body())[0] == 200


def test_it_starts_with_nothing_and_takes_settings_anew_on_hangup(files: dict[str, Path], tmp_path: Path) -> None:
    config = tmp_path / "agent.toml"
    config.write_text('log_level = "info"\n')
    with LiveAgent(tmp_path / "data", {}, "--config", str(config)) as agent:
        assert agent.status()["models"] == []
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body())[0] == 404
        config.write_text(f'model = "mlp={files["mlp"]}"\nmax_connections = 7\n')
        agent.signal(signal.SIGHUP)
        deadline_s = time.monotonic() + 10
        while not agent.status()["models"] and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body())[0] == 200
        waiting = [problem["what"] for problem in agent.status()["problems"] if problem["code"] == "restart_needed"]
        assert "max_connections" in waiting[0]
        config.write_text("nonsense = 1\n")
        agent.signal(signal.SIGHUP)
        while time.monotonic() < deadline_s:
            if any(problem["code"] == "settings_refused" for problem in agent.status()["problems"]):
                break
            time.sleep(0.05)
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body())[0] == 200
        assert any("nonsense" in problem["what"] for problem in agent.status()["problems"])


def test_it_needs_no_network_at_all(files: dict[str, Path], tmp_path: Path, hybrid_command: Path) -> None:
    """In a network namespace of its own, where there is loopback and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    serve = f'"{hybrid_command}" agent serve --port 8710 --data "{tmp_path / "data"}"'
    inside = (
        f'ip link set lo up; {serve} --model "mlp={files["mlp"]}" & pid=$!; '
        "for i in $(seq 100); do curl -sf http://127.0.0.1:8710/v2/health/ready && break; sleep 0.1; done; "
        f"curl -s -d '{json.dumps(_body())}' http://127.0.0.1:8710/v2/models/mlp/infer; kill $pid; wait $pid"
    )
    done = subprocess.run(
        ["unshare", "-n", "bash", "-c", inside], capture_output=True, text=True, timeout=60, check=False
    )
    assert '"hybrid_placement":"local"' in done.stdout, done.stderr
    assert "ready http://127.0.0.1:8710" in done.stdout


def test_tokens_may_be_asked_for_on_loopback_too(files: dict[str, Path], tmp_path: Path) -> None:
    with LiveAgent(tmp_path / "data", {"mlp": files["mlp"]}, "--require-tokens") as agent:
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body())[0] == 401
        assert _post(f"{agent.url}/v2/models/mlp/infer", _body(), Authorization=f"Bearer {agent.token}")[0] == 200


def test_a_devices_token_sees_no_status_and_raises_no_priority(
    files: dict[str, Path], tmp_path: Path, run_hybrid: Run
) -> None:
    assert Asked(priority=9, may_raise=False).priority_beside(4) == 4
    assert Asked(priority=1, may_raise=False).priority_beside(4) == 1
    assert Asked(priority=9).priority_beside(4) == 9
    with LiveAgent(tmp_path / "data", {"mlp": files["mlp"]}, "--require-tokens") as agent:
        made = run_hybrid("agent", "token", "create", "--name", "camera", "--data", str(agent.data))
        bearer = f"Bearer {made.stdout.strip()}"
        end_s = time.monotonic() + 5
        while _post(f"{agent.url}/v2/models/mlp/infer", _body(), Authorization=bearer)[0] == 401:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        raised = _post(f"{agent.url}/v2/models/mlp/infer", _body(), Authorization=bearer, Hybrid_Priority="9")
        assert raised[0] == 200
        call = urllib.request.Request(f"{agent.url}/v2/hybrid/agent/status", headers={"Authorization": bearer})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(call, timeout=10)
        assert caught.value.code == 403
        caught.value.close()


def test_on_every_address_it_speaks_tls_and_asks_for_tokens(
    files: dict[str, Path], tmp_path: Path, run_hybrid: Run
) -> None:
    data = tmp_path / "data"
    with LiveAgent(data, {"mlp": files["mlp"]}, "--host", "0.0.0.0", "--no-announce") as agent:
        assert agent.url.startswith("https://0.0.0.0:")
        url = f"https://127.0.0.1:{agent.port}"
        with hybrid.InferenceSession(
            files["mlp"], gateway=url, token=agent.token, options=hybrid.Options(placement="offload")
        ) as session:
            feeds = {"x": np.ones((1, 64), np.float32)}
            assert session.prepare(feeds, 30)
            session.run(None, feeds)
            assert session.report.placement == "offload"
        shown = run_hybrid("agent", "status", "--data", str(data))
        assert "ready at https" in shown.stdout


def test_damaged_tokens_and_keys_do_not_keep_it_from_starting(files: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    flags = ("--host", "0.0.0.0", "--no-announce")
    with LiveAgent(data, {"mlp": files["mlp"]}, *flags) as agent:
        token = agent.token
    for damaged in (data / "tokens.sqlite", data / "tls" / "key.pem"):
        damaged.write_bytes(bytes(damaged.stat().st_size))
    with LiveAgent(data, {"mlp": files["mlp"]}, *flags) as agent:
        assert agent.token == token
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        call = urllib.request.Request(
            f"https://127.0.0.1:{agent.port}/v2/hybrid/agent/status", headers={"Authorization": f"Bearer {token}"}
        )
        with urllib.request.urlopen(call, timeout=10, context=context) as answer:
            told = json.load(answer)
    assert told["ready"]
    assert sum(problem["code"] == "corrupt_content" for problem in told["problems"]) == 2
    assert len(list(data.glob("*.corrupt-*"))) == 2


def test_what_runs_at_sigterm_is_answered_and_new_work_is_refused(files: dict[str, Path], tmp_path: Path) -> None:
    feeds = zoo.feeds("ppocr_det")

    def ask(url: str) -> str:
        with triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=60) as client:
            tensors = [triton.InferInput(name, list(array.shape), "FP32") for name, array in feeds.items()]
            for tensor, array in zip(tensors, feeds.values(), strict=True):
                tensor.set_data_from_numpy(array)
            try:
                client.infer("det", tensors)
            except triton.InferenceServerException as exc:
                return str(exc)
            return "answered"

    with LiveAgent(tmp_path / "data", {"det": zoo.path("ppocr_det")}) as agent, ThreadPoolExecutor(6) as pool:
        running = [pool.submit(ask, agent.url) for _ in range(6)]
        end_s = time.monotonic() + 20
        while (engine := agent.status()["engine"])["n_running"] + engine["n_waiting"] < 3:
            assert time.monotonic() < end_s
        agent.signal(signal.SIGTERM)
        ends = [future.result() for future in running]
        assert ends.count("answered") >= 3
        assert all(end == "answered" or "shutting down" in end or "503" in end for end in ends)
        assert agent._process is not None
        assert agent._process.wait(15) == 0
