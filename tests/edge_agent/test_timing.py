"""Models that are only candidates, timed on a box: a real agent, real models."""

import json
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.errors import NotMeasurable
from edge_agent.timing.bench import TimingBench
from hybrid.compress.timing.agent_timer import on_agent
from hybrid.errors import BadMessage, TooLarge
from hybrid.wire.timing_call import FEEDS, PATH, TimingCall, TimingFile, head_of, header_bytes, parse
from tests.live_agent import LiveAgent


def dense(path, width, n_layers):
    rng = np.random.default_rng(0)
    nodes, weights, at = [], [], "x"
    for layer in range(n_layers):
        weights.append(numpy_helper.from_array(rng.normal(size=(width, width)).astype(np.float32) / width, f"w{layer}"))
        out = "y" if layer == n_layers - 1 else f"h{layer}"
        nodes.append(helper.make_node("MatMul", [at, f"w{layer}"], [out]))
        at = out
    shape = [1, width]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("candidates")
    return dense(folder / "light.onnx", 256, 1), dense(folder / "heavy.onnx", 256, 24)


@pytest.fixture(scope="module")
def agent(tmp_path_factory):
    with LiveAgent(tmp_path_factory.mktemp("agent"), {}, "--require-tokens") as running:
        yield running


@pytest.fixture
def box(agent, monkeypatch):
    monkeypatch.setenv("HYBRID_TOKEN", agent.token)
    return on_agent(agent.url, threads=1)


FEED = {"x": np.ones((1, 256), np.float32)}


def leftovers(agent):
    folder = agent.data / "timing"
    return list(folder.iterdir()) if folder.is_dir() else []


def test_candidates_are_timed_beside_one_another_and_nothing_stays(agent, box, models):
    assert box.told.kind == "agent"
    assert box.told.threads == 1
    light, heavy = box(models, FEED)
    assert light.n == heavy.n >= 7
    assert 0 < light.low_s <= light.p50_s <= light.p95_s
    assert heavy.p50_s > 3 * light.p50_s
    assert box.memory_bytes(models[1], FEED) > 24 * 256 * 256 * 4
    assert leftovers(agent) == []
    assert agent.status()["models"] == []


def test_an_agent_whose_folder_was_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert TimingBench(Path("data"))._folder == tmp_path / "data" / "timing", "the worker runs in another folder"


def test_inputs_and_models_that_do_not_fit_are_said_and_cost_nothing(agent, box, models, tmp_path):
    with pytest.raises(NotMeasurable, match=r"cannot be timed here: .*x"):
        box(models, {"x": np.ones((1, 5), np.float32)})
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(NotMeasurable, match="cannot be timed here"):
        box([models[0], broken], FEED)
    assert leftovers(agent) == []
    assert box(models[:1], FEED)[0].n >= 7


def known(url):
    """The box, once its agent has seen a token that another process made."""
    end_s = time.monotonic() + 10
    while True:
        try:
            return on_agent(url)
        except NotMeasurable:
            assert time.monotonic() < end_s
            time.sleep(0.05)


def test_who_may_not_publish_may_not_time(agent, models, monkeypatch):
    monkeypatch.setenv("HYBRID_TOKEN", "")
    with pytest.raises(NotMeasurable, match="token"):
        on_agent(agent.url)
    made = subprocess.run(
        [sys.executable, "-m", "hybrid", "agent", "token", "create", "--name", "camera", "--data", str(agent.data)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    monkeypatch.setenv("HYBRID_TOKEN", made.stdout.strip())
    weak = known(agent.url)
    with pytest.raises(NotMeasurable, match="publish"):
        weak(models, FEED)


def test_a_second_call_waits_for_the_first(box, models):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: box(models[:1], FEED), range(2)))
    assert [len(each) for each in found] == [1, 1]


def test_a_caller_who_leaves_takes_its_files_along(agent, models):
    head = head_of(TimingCall(files=(TimingFile("0.onnx", 10**6), TimingFile(FEEDS, 10))))
    call = urllib.request.Request(f"{agent.url}{PATH}", data=head + b"x" * 100)
    call.add_header("Authorization", f"Bearer {agent.token}")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(call, timeout=20)
    assert "ends before the files" in json.load(refused.value)["error"]
    assert leftovers(agent) == []


def test_nobody_there_is_said():
    with pytest.raises(NotMeasurable, match=r"127\.0\.0\.1:9"):
        on_agent("http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([], BadMessage),
        ([("0.onnx", 1)], BadMessage),
        ([(FEEDS, 1)], BadMessage),
        ([("../0.onnx", 1), (FEEDS, 1)], BadMessage),
        ([("0.py", 1), (FEEDS, 1)], BadMessage),
        ([("0.onnx", 1), ("0.onnx", 1), (FEEDS, 1)], BadMessage),
        ([("0.onnx", -1), (FEEDS, 1)], TooLarge),
        ([("0.onnx", 1 << 40), (FEEDS, 1)], TooLarge),
        ([(f"{n}.onnx", 1) for n in range(70)] + [(FEEDS, 1)], TooLarge),
    ],
)
def test_a_header_that_promises_nonsense_is_refused(files, error):
    header = json.dumps({"files": [{"name": name, "size": size} for name, size in files]}).encode()
    with pytest.raises(error):
        parse(header)


def test_lengths_are_checked_before_anything_is_read():
    with pytest.raises(TooLarge, match="65536"):
        header_bytes(struct.pack(">I", 1 << 31))
    with pytest.raises(BadMessage, match="ends after 2"):
        header_bytes(b"ab")
    with pytest.raises(BadMessage, match="60"):
        head_of(TimingCall(files=(TimingFile("0.onnx", 1), TimingFile(FEEDS, 1)), budget_s=1e9))
