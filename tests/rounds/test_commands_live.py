"""The commands against a gateway's rounds over HTTP, with boxes that send what they like."""

import asyncio
import io
import json
import re
import threading
from contextlib import redirect_stdout

import numpy as np
import pytest
from aiohttp import web

from cloud_gateway.fleet.commands.asking import Asker
from cloud_gateway.rounds.admin_routes import add_admin_routes
from cloud_gateway.rounds.messages import CampaignView, PromoteWish
from hybrid.cli.main import main
from hybrid.errors import BadMessage, DiskFull, ExitCode
from hybrid.hosting.front_door import IDENTITY
from hybrid.hosting.identity import ANYONE
from hybrid.serving.body_budget import BodyBudget
from hybrid.transport.rounds_paths import CAMPAIGNS_PATH
from tests.rounds.lab import Box, Lab, running, until

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


class Gateway(threading.Thread):
    """A lab's rounds behind their routes, on a port of this machine. Attributes: url; notes, who did what."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self._folder, self._ready, self.notes = folder, threading.Event(), []
        self.start()
        assert self._ready.wait(20.0)

    def run(self):
        asyncio.run(self._serve())

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        self.lab = Lab(self._folder)

        @web.middleware
        async def admitted(request, handler):
            request[IDENTITY] = ANYONE
            return await handler(request)

        app = web.Application(middlewares=[admitted])
        add_admin_routes(app, self.lab.rounds, bodies=BodyBudget(1 << 30), note=lambda *note: self.notes.append(note))
        async with running(self.lab):
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            self._ready.set()
            await self._over.wait()
            await runner.cleanup()
        self.lab.close()

    def do(self, work):
        """Run a coroutine beside it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20.0)

    def stop(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(10.0)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    live = Gateway(tmp_path_factory.mktemp("rounds"))
    yield live
    live.stop()


@pytest.fixture
def say(gateway, capsys):
    """A command; its JSON, or its text."""

    def said(*words, exit_code=ExitCode.OK, as_json=True):
        told = main(["rounds", *words, "--gateway", gateway.url, *(["--json"] if as_json else [])])
        output = capsys.readouterr()
        assert told == exit_code, output.err
        if not as_json:
            return output.out
        return [json.loads(line) for line in output.out.splitlines()] if words[0] == "watch" else json.loads(output.out)

    return said


async def round_of(lab, campaign):
    for number in range(4):
        answer = await Box(lab, number).once(campaign)
        assert answer is not None
        assert answer.state == "accepted"


def test_a_campaign_from_create_to_report(gateway, say, tmp_path):
    np.save(tmp_path / "test.npy", np.random.default_rng(0).random((30, 64), np.float32))
    (tmp_path / "labels.txt").write_text("\n".join(str(at % 10) for at in range(30)))
    np.savez(tmp_path / "test.npz", image=np.load(tmp_path / "test.npy"), labels=np.arange(30) % 10)
    files = ["--evaluate", str(tmp_path / "test.npz")]
    begun = say("create", "digits:1", "--goal", "4", "--rounds", "2", "--promote", "none", "--up", "float32", *files)
    campaign = begun["data"]["id"]
    assert begun["data"]["state"] == "running"
    assert begun["data"]["base_accuracy"] is not None
    assert gateway.notes[-1][1] == "campaign_created"
    assert "0 of 2" in say("ls", as_json=False)

    watched = threading.Thread(target=lambda: lines.extend(say("watch", campaign)))
    lines = []
    watched.start()
    gateway.do(_until_watched(gateway.lab, campaign))
    gateway.do(round_of(gateway.lab, campaign))
    gateway.do(_until_step(gateway.lab, campaign, 1))
    gateway.do(
        _until_watched(gateway.lab, campaign)
    )  # it has told all that there was, and is silent until there is more
    with redirect_stdout(io.StringIO()) as listed:
        assert main(["rounds", "ls", "--gateway", gateway.url]) == ExitCode.OK
    assert re.search(r"running +1 of 2 +\d+\.\d%", listed.getvalue()), "also while a round is open"
    gateway.do(round_of(gateway.lab, campaign))
    gateway.do(_until_step(gateway.lab, campaign, 2))
    watched.join(60.0)
    assert lines[-1]["state"] == "completed"
    assert len({line["serial"] for line in lines}) == len(lines) > 2

    shown = say("show", campaign, as_json=False)
    assert "completed, step 2 of 2" in shown
    report = say("report", campaign, "--boxes", "--round", "1", as_json=False)
    for words in ("of 4 boxes", "box-3", "round 1:", "counted", "77.0 kB"):
        assert words in report, words
    told = say("report", campaign)["data"]
    assert [each["n_counted"] for each in told["campaign"]["rounds"]] == [4, 4]
    assert told["n_bytes_up"] == 2 * 4 * 4 * 4810
    assert say("report", campaign, "--round", "9", exit_code=ExitCode.USAGE)["error"]["code"] == "usage"


def test_what_was_learned_becomes_a_version_when_it_is_asked_for(gateway, say):
    order = [
        "--goal",
        "4",
        "--rounds",
        "1",
        "--promote",
        "none",
        "--no-cohort-evaluation",
        "--tolerance",
        "100",
        "--up",
        "float32",
    ]
    campaign = say("create", "digits:1", *order)["data"]["id"]
    gateway.do(round_of(gateway.lab, campaign))
    gateway.do(_until_step(gateway.lab, campaign, 1))
    with pytest.raises(BadMessage, match="candidate or rollout"):
        Asker(gateway.url, None).post(f"{CAMPAIGNS_PATH}/{campaign}/promote", PromoteWish(policy="none"), CampaignView)
    told = say("promote", campaign, "--step", "1")["data"]["promotions"][-1]
    assert told["step"] == 1
    watched = say("watch", campaign)[-1]["promotions"][-1]
    assert (watched["state"], watched["version"][:12]) == ("candidate", "digits:1.r1-")
    text = say("show", campaign, as_json=False)
    assert f"step 1: candidate {watched['version']}" in text
    key = say("key")["data"]
    assert len(bytes.fromhex(key["public_key"])) == 32
    assert say("key", as_json=False).strip() == key["public_key"]


async def _until_watched(lab, campaign):
    """Somebody has been told all that there is of a campaign that nothing changes now, and waits for more."""
    await until(lambda: campaign in lab.rounds.public._watchers and not lab.desk.courses[campaign].closing, 20.0)


async def _until_step(lab, campaign, step):
    async with asyncio.timeout(10.0):
        while (await lab.shown(campaign)).step < step:  # noqa: ASYNC110 (nobody's event)
            await asyncio.sleep(0.01)


def test_labels_that_are_too_few_are_told_with_the_flag_to_look_at(say, tmp_path):
    np.savez(tmp_path / "test.npz", image=np.zeros((12, 64), np.float32))
    (tmp_path / "labels.txt").write_text("3\n4\n")
    files = ["--evaluate", str(tmp_path / "test.npz"), "--labels", str(tmp_path / "labels.txt")]
    told = say("create", "digits:1", "--goal", "2", *files, exit_code=ExitCode.FAILED)["error"]
    assert "--labels" in told["do"]
    told = say("create", "digits:1", "--goal", "2", *files[:2], exit_code=ExitCode.FAILED)["error"]
    assert "--labels" in told["what"]


def test_an_npy_of_the_models_only_input_takes_its_name_from_the_golden_ones(say, tmp_path, monkeypatch):
    from cloud_gateway.rounds.commands import campaigns

    monkeypatch.setattr(campaigns, "input_name", lambda *_: "image")
    np.save(tmp_path / "test.npy", np.random.default_rng(0).random((12, 64), np.float32))
    (tmp_path / "labels.txt").write_text("\n".join("3" for _ in range(12)))
    files = ["--evaluate", str(tmp_path / "test.npy"), "--labels", str(tmp_path / "labels.txt")]
    begun = say("create", "digits:1", "--goal", "2", *files)["data"]
    assert len(begun["evaluation"]) == 64
    assert say("stop", begun["id"])["data"]["state"] == "stopped"


def test_pause_resume_and_stop(gateway, say):
    campaign = say("create", "digits:1", "--goal", "4", "--rounds", "5")["data"]["id"]
    assert say("pause", campaign)["data"]["state"] == "paused"
    assert say("pause", campaign, exit_code=ExitCode.REFUSED)["error"]["code"] == "conflict"
    assert say("resume", campaign)["data"]["state"] == "running"
    assert f"campaign {campaign} of digits:1 (original): stopped" in say("stop", campaign, as_json=False)
    assert say("show", campaign)["data"]["state"] == "stopped"
    assert [note[1] for note in gateway.notes][-3:] == ["campaign_pause", "campaign_resume", "campaign_stop"]


def test_an_order_that_could_not_be_noted_is_told_as_done(gateway, say, monkeypatch):
    campaign = say("create", "digits:1", "--goal", "4", "--rounds", "5")["data"]["id"]

    class Full(list):
        def append(self, note):
            raise DiskFull("no room")

    monkeypatch.setattr(gateway, "notes", Full())
    assert say("stop", campaign)["data"]["state"] == "stopped"


@pytest.mark.parametrize(("words", "exit_code", "code"), [
    (("create", "digits:1", "--goal", "99"), "FAILED", "campaign_impossible"),
    (("create", "nosuch", "--goal", "2"), "NOT_FOUND", "not_found"),
    (("create", "digits:1", "--noise", "0.5", "--clip", "1", "--max-epsilon", "2"), "REFUSED", "privacy_spent"),
    (("create", "digits:1", "--noise", "1"), "FAILED", "campaign_impossible"),
    (("create", "digits:1", "--target", "0.9"), "USAGE", "usage"),
    (("create", "digits:1", "--evaluate", "no.npz"), "NOT_FOUND", "not_found"),
    (("show", "nosuch"), "NOT_FOUND", "not_found"),
    (("watch", "nosuch"), "NOT_FOUND", "not_found"),
    (("report", "nosuch"), "NOT_FOUND", "not_found"),
    (("stop", "nosuch"), "NOT_FOUND", "not_found"),
    (("promote", "nosuch", "--as", "none"), "USAGE", "usage"),
], ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")  # fmt: skip
def test_what_cannot_be_is_refused_with_its_code(say, words, exit_code, code):
    told = say(*words, exit_code=ExitCode[exit_code])
    told = told[-1] if isinstance(told, list) else told
    assert told["error"]["code"] == code
