"""The doctor finds what is wrong with a box, says what to do, and changes nothing."""

import asyncio
import hashlib
import json
import signal
import sqlite3
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.install.records import Failure, Held, Slots, Wanted
from edge_agent.install.shelf import Shelf
from edge_agent.living import belonging, looks, thermal
from edge_agent.living.crash_guard import CrashGuard
from edge_agent.living.patient import Patient, admitted
from edge_agent.trust.identity import BoxKey, Enrolment
from edge_agent.trust.machine import Machine
from edge_agent.trust.record_file import RecordFiles
from hybrid.cli.doctor.check import Check
from tests.enrolled_box import enrolled_box, make_token
from tests.live_gateway import LiveGateway


def prints(folder: Path) -> dict[str, str]:
    """Every file of a folder by what is in it."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", "") and "outbox" not in path.parts
    }


@pytest.fixture
async def data(tmp_path: Path, gateway: LiveGateway) -> Path:
    """The folder of an enrolled box."""
    from edge_agent.trust.machine import this_machine

    async with enrolled_box(tmp_path / "agent", gateway, machine=this_machine(), tags={"site": "a"}):
        pass
    return tmp_path / "agent"


def box(data: Path) -> Patient:
    return admitted(data, None, {})


def seen(check: Check, status: str, *words: str) -> None:
    assert check.status == status, check
    assert all(word in f"{check.seen} {check.fix}" for word in words), check
    assert bool(check.fix) == (status != "PASS")


async def test_a_sound_box_passes_and_nothing_on_it_changes(data, gateway, run_hybrid, start_agent):
    agent = start_agent("--gateway", "auto")
    agent.hear("READY=1")
    done = run_hybrid("agent", "doctor", "--data", str(data), "--json")
    told = json.loads(done.stdout)["data"]
    status = {one["name"]: one["status"] for one in told["checks"]}
    assert done.returncode == 0, told
    assert told["counts"]["FAIL"] == 0
    assert {name for name, one in status.items() if one == "PASS"} >= {
        "folder", "disk", "clock", "identity", "enrolment", "gateway", "models", "outbox", "heat", "accelerator",
    }  # fmt: skip
    by_name = {one["name"]: one for one in told["checks"]}
    assert "proved who it is" in by_name["gateway"]["seen"]
    assert "site=a" in by_name["enrolment"]["seen"]
    assert "root" in by_name["trust"]["seen"]
    key = (data / "identity" / "box.key").read_text()
    assert not any(line in done.stdout for line in key.splitlines()[2:5])
    assert agent.stop() == 0
    before = prints(data)
    done = run_hybrid("agent", "doctor", "--data", str(data))
    assert prints(data) == before
    assert "no agent runs with this folder" in done.stdout
    assert done.returncode == 0


def test_a_folder_that_is_not_there(tmp_path, run_hybrid):
    done = run_hybrid("agent", "doctor", "--data", str(tmp_path / "none"))
    assert done.returncode == 1
    assert "is not there" in done.stdout
    assert "next: mend what FAILs" in done.stderr
    assert not (tmp_path / "none").exists()


async def test_what_can_be_wrong_with_the_identity(data):
    seen(belonging.identity(box(data)), "PASS")
    path = data / "identity" / "box.key"
    path.chmod(0o644)
    seen(belonging.identity(box(data)), "FAIL", "read by others", "chmod 0600")
    path.chmod(0o600)
    files = RecordFiles(data / "identity", RealDisk())
    whole, spare = path.read_bytes(), path.with_name("box.key.spare").read_bytes()
    path.write_bytes(b"\0" * 50)
    seen(belonging.identity(box(data)), "PASS")  # the twin is whole
    path.with_name("box.key.spare").write_bytes(b"\0" * 50)
    seen(belonging.identity(box(data)), "FAIL", "lost or damaged", "--anew")
    path.write_bytes(whole)
    path.with_name("box.key.spare").write_bytes(spare)
    installation = json.loads(box(data).content("installation.json") or b"")
    installation["machine"] = {"serial": "another", "addresses": ["b8:27:eb:00:00:02"], "machine_id": "x" * 32}
    files.store("installation.json", json.dumps(installation).encode())
    seen(belonging.identity(box(data)), "WARN", "another machine")
    files.store("box.key", BoxKey.fresh().pem)
    seen(belonging.enrolment(box(data)), "FAIL", "two different boxes")


async def test_a_gateway_that_is_away_or_another_one(data, gateway, tmp_path):
    seen(await asyncio.to_thread(belonging.gateway, box(data)), "PASS", "proved who it is")
    files = RecordFiles(data / "identity", RealDisk())
    found = box(data).enrolment
    assert found is not None
    files.store("enrolment.json", _changed(found, url="http://127.0.0.1:9"))
    seen(await asyncio.to_thread(belonging.gateway, box(data)), "WARN", "127.0.0.1:9")
    files.store("enrolment.json", _changed(found, authority_sha256="0" * 64))
    seen(await asyncio.to_thread(belonging.gateway, box(data)), "FAIL", "not the gateway that this box belongs to")
    files.store("enrolment.json", _changed(found, root_sha256="1" * 64))
    seen(belonging.trust(box(data)), "WARN", "no trust bundle came yet")
    files.store("trust.json", b"nonsense")
    seen(belonging.trust(box(data)), "FAIL", "does not check out")
    files.remove("enrolment.json")
    seen(belonging.enrolment(box(data)), "WARN", "belongs to no fleet", "hybrid agent enroll")


def _changed(enrolment: Enrolment, **fields: str) -> bytes:
    import msgspec

    return msgspec.json.encode(msgspec.structs.replace(enrolment, **fields))


def test_what_can_be_wrong_with_models_and_queue(tmp_path, monkeypatch):
    data = tmp_path
    seen(looks.models(box(data)), "PASS", "none is assigned")
    (data / "models" / "net" / "a").mkdir(parents=True)
    (data / "models" / "net" / "slots.json").write_bytes(b"\0\0")
    seen(looks.models(box(data)), "FAIL", "net", "cannot be read")
    shelf = Shelf(RealDisk(), data, lambda: 0.0)
    shelf.save(Slots(name="net"))
    seen(looks.models(box(data)), "PASS", "none is assigned now")  # of a removed model its record stays
    held = Held(artifact_digest="0" * 64, version="3", sequence=3, is_good=True)
    shelf.save(Slots(name="net", a=held, answers="a", phase="committed"))
    seen(looks.models(box(data)), "FAIL", "of the version that answers is missing")
    monkeypatch.setattr(looks, "_missing", lambda slot: "")
    seen(looks.models(box(data)), "PASS", "net:3 (committed)")
    full = Failure(code="disk_full", detail="9 bytes are to come, 1 is free", at_s=0.0)
    wanted = Wanted(artifact_digest="1" * 64, version="4")
    shelf.save(Slots(name="net", a=held, answers="a", wanted=wanted, phase="deferred", failure=full))
    seen(looks.models(box(data)), "WARN", "net:4 is put off: disk_full", "make room")
    shelf.save(Slots(name="net", wanted=wanted, phase="deferred", failure=full))
    seen(looks.models(box(data)), "FAIL", "no version answers", "make room")
    seen(looks.outbox(box(data)), "PASS", "nothing was queued")
    (data / "outbox").mkdir()
    (data / "outbox" / "outbox.db").write_bytes(b"\0" * 5000)
    seen(looks.outbox(box(data)), "WARN", "damaged", "sets the damaged file aside")
    (data / "outbox" / "outbox.db").unlink()
    with sqlite3.connect(data / "outbox" / "outbox.db") as database:
        database.execute("CREATE TABLE items (n_bytes INTEGER)")
        database.execute("INSERT INTO items VALUES (1500000)")
    seen(looks.outbox(box(data)), "PASS", "1 item(s), 1.5 MB")
    (data / "outbox" / "outbox.db.corrupt-1").write_bytes(b"")
    seen(looks.outbox(box(data)), "WARN", "set aside")


def test_refused_settings_a_crash_loop_and_files_of_another_user(tmp_path):
    (tmp_path / "agent.toml").write_text("meterd = 'yes'")
    patient = admitted(tmp_path, tmp_path / "agent.toml", {})
    seen(looks.service(patient), "FAIL", "meterd")
    for _ in range(4):
        CrashGuard(tmp_path, RealDisk()).begin()
    seen(looks.service(box(tmp_path)), "WARN", "last 4 starts ended early")
    assert CrashGuard(tmp_path, RealDisk()).early() == 4
    tmp_path.chmod(0o755)
    seen(looks.folder(box(tmp_path)), "WARN", "read by others", "chmod 0700")
    tmp_path.chmod(0o700)
    seen(looks.folder(box(tmp_path)), "PASS")


@pytest.mark.root
def test_a_command_that_was_run_as_root(tmp_path):
    import os

    (tmp_path / "identity").mkdir(mode=0o700)
    os.chown(tmp_path, 12345, 12345)
    seen(looks.folder(box(tmp_path)), "FAIL", "another user", "chown -R --reference")


def test_an_agent_that_is_frozen(tmp_path, start_agent):
    agent = start_agent()
    agent.hear("READY=1")
    agent.process.send_signal(signal.SIGSTOP)
    try:
        seen(looks.service(box(agent.data)), "FAIL", "does not answer")
    finally:
        agent.process.send_signal(signal.SIGCONT)


def test_heat_is_read_from_the_hottest_zone_against_its_own_limit(tmp_path):
    for index, (milli, kind, limit) in enumerate(
        [(45000, "critical", 60000), (70000, "hot", 105000), (-274000, "hot", 1)]
    ):
        zone = tmp_path / f"thermal_zone{index}"
        zone.mkdir()
        (zone / "temp").write_text(f"{milli}\n")
        (zone / "trip_point_0_type").write_text(f"{kind}\n")
        (zone / "trip_point_0_temp").write_text(f"{limit}\n")
    policy = tmp_path / "cpufreq" / "policy0"
    policy.mkdir(parents=True)
    (policy / "scaling_max_freq").write_text("600000")
    (policy / "cpuinfo_max_freq").write_text("1500000")
    found = thermal.look(tmp_path, tmp_path)
    assert (found.celsius, found.limit_celsius, found.clock_ratio) == (45.0, 60.0, 0.4)
    assert thermal.look(tmp_path / "none", tmp_path / "none") == thermal.Heat()
    assert Machine().is_another(Machine()) is False


async def test_a_box_that_waits_for_a_person(tmp_path, gateway, start_agent):
    from edge_agent.trust.enrolling import enroll
    from tests.enrolled_box import access_of

    token = await make_token(gateway, approve=True)
    access = access_of(tmp_path / "agent")
    await enroll(access.identity, token, time=access.time, name="waiting")
    await access.link.close()
    agent = start_agent("--gateway", "auto")
    agent.hear("READY=1")
    async with asyncio.timeout(15):
        while (check := await asyncio.to_thread(lambda: belonging.enrolment(box(agent.data)))).status == "PASS":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    seen(check, "FAIL", "waiting", "hybrid fleet boxes admit")


def test_the_machines_own_doctor_knows_an_agent_on_its_port_and_its_certificate(start_agent, monkeypatch):
    from hybrid.cli.doctor import here

    agent = start_agent("--host", "0.0.0.0", "--no-announce")
    agent.hear("READY=1")
    port = int(json.loads((agent.data / "agent.json").read_text())["url"].rpartition(":")[2])
    monkeypatch.setattr(here, "_PORTS", {port: "the agent"})
    check = here.ports()
    seen(check, "PASS", f"the agent serves on {port}")
    found = box(agent.data)
    assert found.status is not None, found.silence
