"""A real gateway, a real box and the real commands: what people order arrives, and is shown."""

import asyncio
import contextlib
import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from hybrid.cli.main import main
from hybrid.errors import LinkError, NotAdmitted, RefusedError
from hybrid.fleet.messages import Health, Installed, StateCall
from tests.enrolled_box import ask, enrolled_box
from tests.live_gateway import HYBRID, LiveGateway
from tests.small_models import mlp


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """A gateway's folder with two versions of a model."""
    folder = tmp_path_factory.mktemp("pushed")
    with LiveGateway(folder / "gateway") as running:
        for seed in (1, 2):
            model = mlp(folder / f"m{seed}.onnx", seed=seed)
            words = ["push", str(model), "--name", "detector", "--gateway", running.url, "--token", running.token]
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert main(["models", *words]) == 0
    return folder / "gateway"


@pytest.fixture
def gateway(pushed, tmp_path):
    shutil.copytree(pushed, tmp_path / "gateway", ignore=shutil.ignore_patterns("*.lock"))
    with LiveGateway(tmp_path / "gateway", "--drain-s", "2") as running:
        yield running


def fleet(gateway: LiveGateway, *words: str, code: int = 0) -> str:
    """Runs `hybrid fleet WORDS` against the gateway, in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main(["fleet", *words, "--gateway", gateway.url, "--token", gateway.token])
    assert ended == code, err.getvalue()
    return out.getvalue() if code == 0 else err.getvalue()


def process(gateway: LiveGateway, *words: str) -> str:
    """The same in a process of its own."""
    settings = dict(os.environ) | {"HYBRID_TOKEN": gateway.token, "HYBRID_GATEWAY": gateway.url}
    done = subprocess.run(
        [str(HYBRID), "fleet", *words], capture_output=True, text=True, env=settings, timeout=60, check=True
    )
    return done.stdout


async def fleet_json(gateway, *words):
    return json.loads(await asyncio.to_thread(fleet, gateway, *words, "--json"))["data"]


def call(access, known="", wait_s=0.0, *installed, ready=True, problems=()):
    return StateCall(
        known=known,
        epoch=access.epoch,
        run=access.run_id,
        wait_s=wait_s,
        installed=installed,
        health=Health(ready=ready, problems=problems),
    )


async def test_from_an_order_to_the_box_and_back_to_the_screen(gateway, tmp_path: Path):
    assert "no boxes" in await asyncio.to_thread(process, gateway, "status")
    async with enrolled_box(tmp_path / "box", gateway, tags={"site": "oslo"}) as access:
        empty = await access.calls.state(call(access))
        assert empty.models == ()
        made = await fleet_json(gateway, "assign", "detector:1", "--tags", "site=oslo", "--samples", "upload")
        first = await access.calls.state(call(access, empty.generation, 30.0))
        assert [(m.name, m.version, m.samples) for m in first.models] == [("detector", "1", "upload")]
        assert first.models[0].artifact_digest == made["artifact_digest"]
        told = Installed(name="detector", version="1", artifact_digest=made["artifact_digest"], n_good=500, p50_s=0.01)

        waiting = asyncio.create_task(access.calls.state(call(access, first.generation, 30.0, told)))
        await asyncio.sleep(0.2)
        begun = await fleet_json(gateway, "rollout", "start", "detector:2", "--tags", "site=oslo", "--soak-s", "0")
        second = await asyncio.wait_for(waiting, 10.0)
        assert (second.models[0].version, second.models[0].rollout) == ("2", begun["plan"]["id"])
        failed = Installed(
            name="detector",
            version="1",
            artifact_digest=made["artifact_digest"],
            wanted_digest=second.models[0].artifact_digest,
            rollout=second.models[0].rollout,
            phase="rolled_back",
            code="golden_differs",
        )
        back = await asyncio.wait_for(access.calls.state(call(access, second.generation, 30.0, failed)), 20.0)
        assert back.models == first.models

        shown = await asyncio.to_thread(fleet, gateway, "rollout", "show", begun["plan"]["id"], "--boxes")
        assert "halted: of 1 box 1 failed" in shown
        assert "golden_differs" in shown
        assert "halted" in await asyncio.to_thread(fleet, gateway, "rollout", "ls")
        status = await asyncio.to_thread(fleet, gateway, "status")
        assert "1 box: 1 ready" in status
        assert "golden_differs" in status
        alarms = await fleet_json(gateway, "alarms", "ls")
        assert [alarm["kind"] for alarm in alarms["alarms"]] == ["rollout_halted"]
        metrics = await _metrics(gateway)
        assert 'hybrid_fleet_boxes{admission="admitted"} 1.0' in metrics
        assert 'hybrid_fleet_rollouts{state="halted"} 1.0' in metrics
        assert "hybrid_fleet_alarms 1.0" in metrics


async def _metrics(gateway) -> str:
    import aiohttp

    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {gateway.token}"}) as session,
        session.get(f"{gateway.url}/metrics") as response,
    ):
        return await response.text()


async def test_tags_move_a_box_while_it_waits(gateway, tmp_path: Path):
    await fleet_json(gateway, "assign", "detector:1", "--tags", "all")
    await fleet_json(gateway, "assign", "detector:2", "--tags", "line=9")
    async with enrolled_box(tmp_path / "box", gateway) as access:
        first = await access.calls.state(call(access))
        assert first.models[0].version == "1"
        waiting = asyncio.create_task(access.calls.state(call(access, first.generation, 30.0)))
        await asyncio.sleep(0.2)
        assert "line=9" in await asyncio.to_thread(fleet, gateway, "tag", "box", "line=9")
        second = await asyncio.wait_for(waiting, 10.0)
        assert (second.models[0].version, second.tags) == ("2", {"line": "9"})
        row = await fleet_json(gateway, "tag", "box", "line=")
        assert row["tags"] == {}
        lines = (await asyncio.to_thread(fleet, gateway, "assignments")).splitlines()
        assert [line.split()[:3] for line in lines[1:]] == [["detector:1", "all", "1"], ["detector:2", "line=9", "0"]]
        await asyncio.to_thread(fleet, gateway, "unassign", "detector", "--tags", "all")
        assert (await access.calls.state(call(access))).models == ()


async def test_a_revoked_box_is_told_so_while_it_waits(gateway, tmp_path: Path):
    async with enrolled_box(tmp_path / "box", gateway) as access:
        first = await access.calls.state(call(access))
        waiting = asyncio.create_task(access.calls.state(call(access, first.generation, 30.0)))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(fleet, gateway, "boxes", "revoke", "box", "--reason", "stolen")
        with pytest.raises((NotAdmitted, RefusedError)):
            await asyncio.wait_for(waiting, 10.0)
        assert (await fleet_json(gateway, "status"))["states"] == {"revoked": 1}


async def test_a_gateway_that_stops_lets_waiting_boxes_go_and_knows_them_again(gateway, tmp_path: Path):
    await fleet_json(gateway, "assign", "detector:1", "--tags", "all")
    async with enrolled_box(tmp_path / "box", gateway) as access:
        first = await access.calls.state(call(access))
        waiting = asyncio.create_task(access.calls.state(call(access, first.generation, 60.0)))
        await asyncio.sleep(0.2)
        begun_s = time.monotonic()
        await asyncio.to_thread(gateway.stop)
        assert (await asyncio.wait_for(waiting, 5.0)).generation == first.generation
        assert time.monotonic() - begun_s < 5.0
        with pytest.raises(LinkError):
            await access.calls.state(call(access, first.generation, 1.0))
        await asyncio.to_thread(gateway.start)
        await access.link.renew()
        again = await access.calls.state(call(access, first.generation, 0.1))
        assert again.generation == first.generation


async def test_orders_need_an_administrator_and_sense(gateway, tmp_path: Path):
    async with enrolled_box(tmp_path / "box", gateway) as access:
        for path in ("assignments", "rollouts", "status"):
            with pytest.raises(RefusedError):
                async with access.link.call("GET", f"/v2/hybrid/fleet/{path}"):
                    pass
    assert "no boxes" not in await asyncio.to_thread(fleet, gateway, "status", "--all")
    for words, said in (
        (("assign", "detector:77", "--tags", "all"), "detector:77"),
        (("assign", "detector", "--tags", "a"), "no tag"),
        (("assign", "detector", "--tags", "all", "--samples", "some"), "none of off, keep, upload"),
        (("assign", "detector", "--tags", "all", "--priority", "12"), "none of 0 to 9"),
        (("assign", "detector", "--tags", "all", "--trial-runs", "0"), "trial.n_good is 0"),
        (("assign", "detector", "--tags", "all", "--trial-s", "0"), "trial.most_s is 0"),
        (("unassign", "detector", "--tags", "all"), "no assignment"),
        (("rollout", "start", "detector", "--tags", "site=nowhere"), "no admitted box"),
        (("rollout", "start", "detector", "--tags", "all", "--stages", "50,20"), "must rise"),
        (("rollout", "show", "nosuch"), "no rollout"),
        (("rollout", "pause", "nosuch"), "no rollout"),
        (("tag", "nosuch", "a=b"), "nosuch"),
        (("tag", "box", "ab"), "no tag"),
    ):
        code = {
            "no tag": 2,
            "none of off, keep, upload": 2,
            "none of 0 to 9": 2,
            "must rise": 2,
            "trial.n_good is 0": 1,
            "trial.most_s is 0": 1,
        }.get(said, 3)
        assert said in await asyncio.to_thread(fleet, gateway, *words, code=code)
    assert "no rollouts" in await asyncio.to_thread(fleet, gateway, "rollout", "ls")
    assert "nothing is assigned" in await asyncio.to_thread(fleet, gateway, "assignments")
    told = await ask(gateway, "GET", "/v2/hybrid/fleet/status?tags=site=oslo")
    assert told["n_boxes"] == 0


ODD = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"{}",
    b"\xff\xfe",
    b"9" * 5000,
    b"[" * 5000,
    b'{"model": 5}',
    b'{"model": "../x"}',
    b'{"model": "detector", "selector": {"a b": "c"}}',
    b'{"model": "detector", "selector": {"": ""}}',
    b'{"model": "detector", "selector": []}',
    b'{"model": "detector", "terms": {"priority": 99}}',
    b'{"model": "detector", "terms": {"report_within_s": -1}}',
    b'{"model": "detector", "terms": {"samples": "all"}}',
    b'{"model": "detector", "terms": {"rollback": ["eA==", 5]}}',
    b'{"model": "detector", "version": "a b"}',
    b'{"model": "absent", "stages": [0.5, 0.1]}',
    b'{"model": "absent", "stages": [1e999]}',
    b'{"model": "absent", "soak_s": 1e99}',
    b'{"model": "absent", "soak_s": "x"}',
    b'{"model": "absent", "max_failed_ratio": 7}',
    b'{"model": "absent", "tolerance": {"latency_ratio": -1}}',
    b'{"put": {"a": "b c"}}',
    b'{"drop": "a"}',
    b'{"known": 5}',
    b'{"known": "", "epoch": "", "run": "", "wait_s": 1e400}',
)


async def test_odd_bodies_are_refused_and_break_nothing(gateway, tmp_path: Path):
    import aiohttp

    async with enrolled_box(tmp_path / "box", gateway) as access:
        bearer = {"Authorization": f"Bearer {gateway.token}"}
        box = {"Authorization": f"Bearer {access.token_source.text}"}
        root = f"{gateway.url}/v2/hybrid/fleet"
        async with aiohttp.ClientSession() as session:
            for path, headers in (
                ("assignments", bearer),
                ("assignments/end", bearer),
                ("rollouts", bearer),
                ("rollouts/nosuch/explode", bearer),
                ("boxes/box/tags", bearer),
                ("state", box),
                ("rollouts", box),
                ("state", bearer),
            ):
                for body in ODD:
                    async with session.post(f"{root}/{path}", data=body, headers=headers) as response:
                        told = await response.json()
                        refused = 400 <= response.status < 500
                        changes_nothing = path == "boxes/box/tags" and response.status == 200
                        assert refused or changes_nothing, (path, body, told)
                        assert refused is False or {"error", "code"} <= set(told)
            for query in ("limit=x", "limit=-1", "tags=a", "boxes=some", "tags=%00=1", "limit=" + "9" * 400):
                async with session.get(f"{root}/status?{query}", headers=bearer) as response:
                    assert response.status in {200, 400}
        assert (await access.calls.state(call(access))).models == ()
        assert (await fleet_json(gateway, "assignments"))["assignments"] == []
