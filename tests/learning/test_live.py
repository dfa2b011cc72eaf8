"""Real agents and a real gateway: labelled over HTTP, learned together, agent and gateway killed in the middle."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests.enrolled_box import ask, enrolled_box, make_token
from tests.learning.nets import N_CLASSES, artifact_in, rows
from tests.live_agent import LiveAgent
from tests.live_gateway import LiveGateway

CAMPAIGNS = "/v2/hybrid/rounds/campaigns"
N_BOXES, N_ROUNDS = 2, 5


def bring(agent: LiveAgent, n: int, seed: int, turn: int = 0) -> list[str]:
    """Labelled samples, as a program on the box brings them; a class may be called by another's name (`turn`)."""
    inputs, classes = rows(n, seed)
    classes = (classes + turn) % N_CLASSES
    found = []
    for row, right in zip(inputs, classes, strict=True):
        tensor = {"name": "x", "shape": [1, len(row)], "datatype": "FP32", "data": row.tolist()}
        body = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Hybrid-Label": json.dumps({"class": int(right)}), "Content-Type": "application/json"}
        call = urllib.request.Request(f"{agent.url}/v2/hybrid/agent/samples/models/net", body, headers)
        with urllib.request.urlopen(call, timeout=10) as answer:
            found.append(json.load(answer)["id"])
    return found


def until(fact: Callable[[], Any], within_s: float = 40.0) -> None:
    end_s = time.monotonic() + within_s
    while not fact():
        assert time.monotonic() < end_s, "it did not come about in time"
        time.sleep(0.05)


def said(work: Any) -> Any:
    return asyncio.run(work)


def learning(agent: LiveAgent) -> dict[str, Any]:
    return agent.status()["parts"]["learning"]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    """No update that the gateway accepted is lost or counted twice, whoever dies when."""
    rng = Random(7)
    artifact = artifact_in(tmp_path / "made")
    with LiveGateway(tmp_path / "gateway") as gateway:
        gateway.push(artifact.folder, "net")

        async def enrol() -> None:
            token = await make_token(gateway, count=N_BOXES)
            for n in range(N_BOXES):
                async with enrolled_box(tmp_path / f"box{n}", gateway, token=token):
                    pass
            await ask(gateway, "POST", "/v2/hybrid/fleet/assignments", {"model": "net"})

        said(enrol())
        with ExitStack() as stack:
            boxes = [stack.enter_context(LiveAgent(tmp_path / f"box{n}", {}, gateway="auto")) for n in range(N_BOXES)]
            until(lambda: all(agent.status()["models"] for agent in boxes))
            for n, agent in enumerate(boxes):
                bring(agent, 40, seed=n)
            order = {
                "model": "net", "version": "", "variant": "", "goal": N_BOXES, "least": N_BOXES, "rounds": N_ROUNDS,
                "promotion": {"policy": "none"}, "training": {"learning_rate": 0.3},
            }  # fmt: skip
            campaign = said(ask(gateway, "POST", CAMPAIGNS, {"order": order}))["id"]
            for kill in range(4):
                time.sleep(rng.uniform(0.0, 0.6))
                victim = gateway if kill == 2 else boxes[kill % N_BOXES]
                victim.kill()
                victim.start()
            try:
                until(lambda: said(ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}"))["state"] == "completed", 40.0)
            except AssertionError:
                pytest.fail(f"{[learning(agent) for agent in boxes]} {boxes[0].log[-3000:]}")
            report = said(ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}/report"))
            assert [box["n_counted"] for box in report["boxes"]] == [N_ROUNDS] * N_BOXES
            until(lambda: all(not learning(agent)["waiting_bytes"] for agent in boxes))
            for agent in boxes:
                (mine,) = learning(agent)["campaigns"]
                assert mine["n_accepted"] + mine["n_lost"] >= N_ROUNDS
                assert mine["n_accepted"] == N_ROUNDS
                assert mine["loss_after"] < 0.5
                assert "learning_begun_anew" not in {one["code"] for one in agent.status()["problems"]}
