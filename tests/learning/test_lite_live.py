"""A real box whose body LiteRT computes: it answers, learns, and another answers what was learned."""

import json
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from tests.enrolled_box import ask, enrolled_box, make_token
from tests.federated.lite_making import N_INPUTS, body_file, model_file, rows
from tests.learning.test_live import CAMPAIGNS, bring, learning, said, until
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway


def answered(agent: LiveGateway, x: np.ndarray) -> dict[str, np.ndarray]:
    tensor = {"name": "x", "shape": [1, N_INPUTS], "datatype": "FP32", "data": x.ravel().tolist()}
    call = urllib.request.Request(
        f"{agent.url}/v2/models/net/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {agent.token}"},
    )
    with urllib.request.urlopen(call, timeout=10) as answer:
        found = json.load(answer)["outputs"]
    return {one["name"]: np.array(one["data"], np.float32).reshape(one["shape"]) for one in found}


def version_of(agent: LiveAgent) -> str:
    models = agent.status()["models"]
    return str(models[0]["version"]) if models else ""


def home(gateway: LiveGateway, campaign: str) -> dict[str, Any]:
    """The campaign's promotion, once it is decided."""
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        view = said(ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}"))
        if view["promotions"] and view["promotions"][0]["state"] in ("candidate", "refused"):
            return dict(view["promotions"][0])
        time.sleep(0.05)
    pytest.fail(f"nothing came home: {view}")


@pytest.mark.slow
def test_it_answers_learns_and_answers_what_was_learned(tmp_path: Path, hybrid_here: Any) -> None:
    model, body = model_file(tmp_path / "net.onnx"), body_file(tmp_path / "b.tflite")
    inputs, classes = rows(20, 12)
    with LiveGateway(tmp_path / "gateway") as gateway, ExitStack() as stack:
        words = ("--name", "net", "--head", "mixed", "--lite-body", str(body), "--golden", "random")
        pushed = hybrid_here(
            "models", "push", str(model), *words, HYBRID_GATEWAY=gateway.url, HYBRID_TOKEN=gateway.token
        )
        assert pushed.returncode == 0, pushed.stderr
        assert "the body is body.tflite (native)" in pushed.stderr

        async def enrol() -> None:
            token = await make_token(gateway, count=2)
            for name in ("one", "two"):
                async with enrolled_box(tmp_path / name, gateway, token=token):
                    pass
            await ask(gateway, "POST", "/v2/hybrid/fleet/assignments", {"model": "net"})

        said(enrol())
        one = stack.enter_context(LiveAgent(tmp_path / "one", {}, gateway="auto"))
        until(lambda: version_of(one) == "1")
        (wanted,) = onnxruntime.InferenceSession(model).run(["scores"], {"x": inputs[:1]})
        before = answered(one, inputs[:1])
        for found in (before, answered(gateway, inputs[:1])):
            np.testing.assert_allclose(found["scores"], wanted, atol=1e-5)

        bring(one, 40, seed=1)
        order = {
            "model": "net", "version": "", "variant": "", "goal": 1, "least": 1, "rounds": 1,
            "promotion": {"policy": "candidate", "cohort_evaluation": False}, "training": {"learning_rate": 0.3},
        }  # fmt: skip
        campaign = said(ask(gateway, "POST", CAMPAIGNS, {"order": order}))["id"]
        until(lambda: said(ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}"))["state"] == "completed")
        (mine,) = learning(one)["campaigns"]
        assert mine["n_accepted"] == 1
        promotion = home(gateway, campaign)
        assert promotion["state"] == "candidate", promotion
        version = promotion["version"].partition(":")[2]

        said(ask(gateway, "POST", "/v2/hybrid/fleet/assignments", {"model": "net", "version": version}))
        two = stack.enter_context(LiveAgent(tmp_path / "two", {}, gateway="auto"))
        until(lambda: version_of(two) == version)
        right = [
            int(answered(two, row[None])["scores"].argmax()) == one for row, one in zip(inputs, classes, strict=True)
        ]
        assert sum(right) >= 19
        assert np.abs(answered(two, inputs[:1])["scores"] - wanted).max() > 0.1
