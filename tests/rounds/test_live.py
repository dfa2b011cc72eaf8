"""A real gateway over TLS, enrolled boxes, an administrator: learned, killed in the middle, gone on with, told."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from cloud_gateway.fleet.commands.asking import Asker
from cloud_gateway.rounds.messages import CampaignList
from hybrid.errors import Conflict, LinkError
from hybrid.federated.coding.versions import view_digest
from hybrid.federated.messages import Offer, TaskCall, UpdateCall
from hybrid.transport.rounds_client import RoundsClient
from tests.enrolled_box import ask, enrolled_box, make_token
from tests.live_gateway import LiveGateway
from tests.rounds.lab import MODEL, artifact_in
from tests.trust_lab import certificate_in

CAMPAIGNS = "/v2/hybrid/rounds/campaigns"


@pytest.fixture
def gateway(tmp_path: Path):
    made = certificate_in(tmp_path / "tls")
    flags = ("--tls-cert", str(made.certificate_path), "--tls-key", str(made.key_path))
    with LiveGateway(tmp_path / "gateway", *flags) as running:
        yield running


def offered(digest: str, epoch: str, **more: object) -> TaskCall:
    offer = Offer(model=MODEL, artifact_digest=digest, variant="original", n_samples=20)
    return TaskCall(**({"epoch": epoch, "offers": (offer,)} | more))


def invented(seed: int, epoch: str, task, **more: object) -> UpdateCall:
    vector = np.random.default_rng(seed).normal(size=650).astype("<f4") * np.float32(0.01)
    content = vector.tobytes()
    return UpdateCall(
        epoch=epoch, task=task.id, campaign=task.campaign, step=task.weights.step, form="float32", sha256="",
        n_bytes=len(content), content=content, n_samples=20, **more,
    )  # fmt: skip


async def promoted(gateway: LiveGateway, campaign: str):
    """The first promotion, once it is decided."""
    since = -1
    async with asyncio.timeout(20.0):
        while True:
            view = await ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}?since={since}&wait_s=5")
            since = view["serial"]
            if view["promotions"] and (view["promotions"][0]["state"] in ("rollout", "refused")):
                return view["promotions"][0]


async def told(gateway: LiveGateway, campaign: str) -> None:
    """What an administrator sees of it, stopped and brought home."""
    view = await ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}")
    serial = view["serial"]
    assert view["rounds"][0]["n_counted"] == 2
    watched = await ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}?since={serial}&wait_s=0")
    assert watched["serial"] == serial
    stopped = await ask(gateway, "POST", f"{CAMPAIGNS}/{campaign}/stop", {})
    assert stopped["state"] == "stopped"
    await ask(gateway, "POST", f"{CAMPAIGNS}/{campaign}/promote", {"policy": "rollout"})
    promotion = await promoted(gateway, campaign)
    assert (promotion["state"], promotion["version"]) == ("rollout", f"{MODEL}:1.r1-{campaign}")
    rollouts = await ask(gateway, "GET", "/v2/hybrid/fleet/rollouts")
    assert rollouts["rollouts"][0]["plan"]["id"] == promotion["rollout"]
    assert rollouts["rollouts"][0]["plan"]["stages"] == [0.05, 0.3, 1.0]
    report = await ask(gateway, "GET", f"{CAMPAIGNS}/{campaign}/report")
    assert [box["n_counted"] for box in report["boxes"]] == [1, 1]
    assert report["n_bytes_up"] == 2 * 2600
    key = await ask(gateway, "GET", "/v2/hybrid/rounds/key")
    assert len(bytes.fromhex(key["public_key"])) == 32
    listed = await ask(gateway, "GET", CAMPAIGNS)
    assert [each["id"] for each in listed["campaigns"]] == [campaign]


def asked_often(gateway: LiveGateway) -> None:
    """As one who watches: over one connection that was proved once; a gateway gives ten proofs a second to a source."""
    asker = Asker(gateway.url, gateway.token)
    with asker.connected():
        for _ in range(60):
            assert len(asker.get(CAMPAIGNS, CampaignList).campaigns) == 1
        gateway.kill()
        with pytest.raises(LinkError):
            asker.get(CAMPAIGNS, CampaignList)
        gateway.start()
        assert len(asker.get(CAMPAIGNS, CampaignList).campaigns) == 1


async def test_a_campaign_over_the_wire_and_over_a_kill(gateway: LiveGateway, tmp_path: Path) -> None:
    artifact = artifact_in(tmp_path / "made", learns=("w2", "b2"))
    gateway.push(artifact.folder, MODEL)
    token = await make_token(gateway, count=2)
    async with (
        enrolled_box(tmp_path / "one", gateway, token=token) as one,
        enrolled_box(tmp_path / "two", gateway, token=token) as two,
    ):
        order = {
            "model": MODEL, "version": "", "variant": "", "goal": 2, "rounds": 2,
            "coding": {"up": "float32", "down": "float32"}, "promotion": {"policy": "none", "cohort_evaluation": False},
        }  # fmt: skip
        campaign = (await ask(gateway, "POST", CAMPAIGNS, {"order": order}))["id"]
        clients = [RoundsClient(one.link), RoundsClient(two.link)]
        epochs = [one.identity.epoch, two.identity.epoch]
        tasks = [
            (await client.task(offered(artifact.digest, epoch))).task
            for client, epoch in zip(clients, epochs, strict=True)
        ]
        assert all(task is not None for task in tasks)
        first = invented(1, epochs[0], tasks[0])
        assert (await clients[0].update(first)).state == "accepted"
        await asyncio.to_thread(asked_often, gateway)
        assert (await clients[0].update(first)).state == "accepted"
        with pytest.raises(Conflict):
            await clients[0].update(invented(3, epochs[0], tasks[0]))
        second = invented(2, epochs[1], tasks[1], next=offered(artifact.digest, "", wait_s=20.0))
        answer = await clients[1].update(second)
        assert answer.state == "accepted"
        assert answer.next is not None
        task = answer.next.task
        assert task is not None
        assert task.weights.step == 1
        whole = await clients[1].weights(campaign, 1, -1)
        assert view_digest(np.frombuffer(whole.whole, "<f4")) == task.weights.sha256 == whole.sha256
        await told(gateway, campaign)
        late = invented(4, epochs[1], task)
        assert (await clients[1].update(late)).state == "closed"
        async with one.link.call("GET", "/metrics") as response:
            metrics = await response.text()
        assert 'hybrid_rounds_campaigns{state="stopped"} 1.0' in metrics
        assert "hybrid_rounds_update_calls_total 4.0" in metrics
        async with one.link.call("GET", CAMPAIGNS, fine=(403,)) as response:
            assert response.status == 403
