"""A real agent and a real gateway: what came home answers with this box's own layers, also after a kill."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.enrolled_box import ask, enrolled_box, make_token
from tests.learning.nets import N_CLASSES, artifact_in, rows
from tests.learning.test_live import CAMPAIGNS, bring, learning, until
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

TURN = 1
TERMS = {"trial": {"n_good": 1, "most_s": 1.0}}


def right(agent: LiveAgent, n: int = 40) -> tuple[float, str]:
    """How many requests are answered right by this box's names of classes, and by which model."""
    inputs, classes = rows(n, 55)
    tensor = {"name": "x", "shape": list(inputs.shape), "datatype": "FP32", "data": inputs.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    call = urllib.request.Request(f"{agent.url}/v2/models/net/infer", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(call, timeout=10) as answer:
        told, digest = json.load(answer), answer.headers["Hybrid-Model-Digest"]
        assert answer.headers["Hybrid-Placement"] == "local"
    scores = np.array(told["outputs"][0]["data"]).reshape(n, N_CLASSES)
    return float((scores.argmax(1) == (classes + TURN) % N_CLASSES).mean()), digest


def phase(agent: LiveAgent) -> str:
    return agent.status()["parts"]["install"]["models"][0]["phase"]


def personal(agent: LiveAgent) -> dict[str, Any]:
    found = learning(agent)["personal"]
    return found[0] if found else {}


def plans(folder: Path) -> list[list[str]]:
    """What is personal, by each installed version that says so."""
    manifests = [json.loads(path.read_bytes()) for path in folder.rglob("manifest.json")]
    steps = [manifest["lineage"][-1] for manifest in manifests if manifest["lineage"]]
    return [step["training"]["personal"] for step in steps if "training" in step]


@pytest.mark.slow
def test_from_a_campaign_to_answers(tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "made")
    with LiveGateway(tmp_path / "gateway") as gateway:
        gateway.push(artifact.folder, "net")

        async def call(method: str, path: str, body: object = None) -> Any:
            return await ask(gateway, method, path, body)

        async def enrol() -> None:
            async with enrolled_box(tmp_path / "box", gateway, token=await make_token(gateway)):
                pass
            await call("POST", "/v2/hybrid/fleet/assignments", {"model": "net", "terms": TERMS})

        asyncio.run(enrol())
        with LiveAgent(tmp_path / "box", {}, gateway="auto") as agent:
            until(lambda: agent.status()["models"])
            until(lambda: phase(agent) == "committed")
            bring(agent, 60, seed=3, turn=TURN)
            order = {
                "model": "net", "version": "", "variant": "", "goal": 1, "least": 1, "rounds": 2,
                "promotion": {"policy": "candidate", "cohort_evaluation": False},
                "training": {"learning_rate": 0.3, "personal": ["head"]},
            }  # fmt: skip
            campaign = asyncio.run(call("POST", CAMPAIGNS, {"order": order}))["id"]
            versions = "/v2/hybrid/models/net"

            def newest() -> str:
                return asyncio.run(call("GET", versions))["versions"][-1]["version"]

            until(lambda: campaign in newest())
            wanted = {"model": "net", "version": newest(), "terms": TERMS}
            asyncio.run(call("POST", "/v2/hybrid/fleet/assignments", wanted))
            until(lambda: agent.model("net")["version"] == wanted["version"])
            digest = agent.model("net")["model_digest"]
            assert plans(tmp_path / "box") == [["head"]], (
                "boxes that took no part are told how to fit layers of their own"
            )
            until(lambda: personal(agent).get("answers"))
            share, own = right(agent)
            assert share > 0.9
            assert own != digest
            told = personal(agent)
            assert (told["campaign"], told["step"]) == (campaign, 2)
            assert told["n_right"] > told["n_plain_right"]
            assert agent.model("net")["model_digest"] == digest, "what is told elsewhere is the version's"
            agent.kill()
            agent.start()
            until(lambda: personal(agent).get("answers"))
            assert right(agent) == (share, own), "the very same after a kill"
            assert learning(agent)["n_judged"] == 0
            gone = urllib.request.Request(f"{agent.url}/v2/hybrid/agent/rounds/net/personal", method="DELETE")
            with urllib.request.urlopen(gone, timeout=10) as answer:
                assert json.load(answer) == {"forgotten": [campaign]}
            share, plain = right(agent)
            assert share < 0.7
            assert plain == digest
            assert not [one for one in agent.status()["problems"] if one["code"].startswith("personal")]
