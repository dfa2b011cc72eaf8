"""A real agent under load: what fails on trial is gone within seconds, and its requests are the only ones lost."""

import hashlib
import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.disk import RealDisk
from edge_agent.trust.identity import BoxIdentity, Enrolment
from edge_agent.trust.machine import this_machine
from hybrid.artifact.bundle import pack_bundle
from hybrid.artifact.folder import from_onnx
from hybrid.artifact.signature import public_key_of, sign
from tests.install.box_lab import Fleet
from tests.live_agent import LiveAgent


def model(path: Path, gain: float, *, breaks: bool = False) -> Path:
    """y = gain * x for any number of rows; where it `breaks`, for one row only: others are an engine's error."""
    nodes = [helper.make_node("Mul", ["x", "gain"], ["z"])]
    shape = [numpy_helper.from_array(np.array([1, 4], np.int64), "shape")] if breaks else []
    nodes.append(
        helper.make_node("Reshape", ["z", "shape"], ["y"]) if breaks else helper.make_node("Identity", ["z"], ["y"])
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array(gain, np.float32), "gain"), *shape],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


class Load(threading.Thread):
    """One request after the other: the first value of each answer, or its status."""

    def __init__(self, url: str, n_rows: int) -> None:
        super().__init__(daemon=True)
        self.url = f"{url}/v2/models/net/infer"
        data = [1.0] * (4 * n_rows)
        self.body = json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [n_rows, 4], "data": data}]}
        ).encode()
        self.answers: list[float] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.005):
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, data=self.body), timeout=20) as answer:
                    self.answers.append(json.load(answer)["outputs"][0]["data"][0])
            except urllib.error.HTTPError as exc:
                self.answers.append(-exc.code)


def until(what, within_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def rooted_box(tmp_path: Path, fleet: Fleet) -> Path:
    """A box that was enrolled somewhere, and whose gateway is gone for good."""
    data = tmp_path / "box"
    identity = BoxIdentity(data, RealDisk(), this_machine())
    root = hashlib.sha256(public_key_of(fleet.root)).hexdigest()
    enrolment = Enrolment(url="", authority_sha256="0" * 64, box_id="0" * 32, root_sha256=root)
    identity.enrolled(enrolment, fleet.bundle())
    return data


@pytest.mark.slow
def test_a_version_that_fails_on_trial_is_gone_and_nothing_else_is_lost(
    tmp_path: Path, fleet: Fleet, hybrid_here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The box has a root and no network: versions come as files, signed by a publisher."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    data = rooted_box(tmp_path, fleet)
    for number, breaks in ((1, False), (2, True)):
        made = from_onnx(
            model(tmp_path / str(number) / "m.onnx", number, breaks=breaks), "net", str(number), sequence=number
        )
        signed = made.signed(sign(made.manifest_bytes, fleet.publisher))
        pack_bundle(signed, fleet.bundle(), tmp_path / f"{number}.hybrid")

    def bring(number: int) -> dict:
        done = hybrid_here("agent", "import", str(tmp_path / f"{number}.hybrid"), "--data", str(data), "--json")
        assert done.returncode == 0, done
        return json.loads(done.stdout)["data"]

    bring(1)
    with LiveAgent(data, {}) as agent:

        def phase() -> str:
            return agent.status()["parts"]["install"]["models"][0]["phase"]

        until(lambda: any(m["name"] == "net" for m in agent.status()["models"]))
        one, two = Load(agent.url, 1), Load(agent.url, 2)
        one.start()
        until(lambda: phase() == "committed")
        bring(2)
        two.start()
        until(lambda: phase() == "rolled_back")
        until(lambda: two.answers[-1:] == [1.0])
        for load in (one, two):
            load.stopped.set()
            load.join(5.0)
        assert set(one.answers) == {1.0, 2.0}, "a request was lost that had nothing to do with it"
        assert {answer for answer in two.answers if answer > 0} == {1.0}
        failed = [answer for answer in two.answers if answer < 0]
        assert failed
        told = agent.status()["parts"]["install"]["models"][0]
        assert (told["version"], told["n_errors"]) == ("1", 0)
