"""`hybrid doctor` on a sound machine, on broken ones, and with gateways that answer or do not."""

import json
import os
import threading
import time

import pytest

from hybrid.cli.doctor import check, here, network
from hybrid.errors import ExitCode
from tests.live_gateway import LiveGateway

NAMES = [
    "python", "packages", "engines", "clock", "disk", "machine", "speed", "slow machines", "slow links", "tcp", "ports",
    "token", "keys", "discovery", "gateway",
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with LiveGateway(tmp_path_factory.mktemp("doctor") / "data") as one:
        yield one


def looked(done) -> dict[str, dict]:
    return {one["name"]: one for one in json.loads(done.stdout)["data"]["checks"]}


def test_a_sound_machine_passes_within_five_seconds(run_hybrid):
    began_s = time.perf_counter()
    done = run_hybrid("doctor", "--gateway", "none")
    assert time.perf_counter() - began_s < 8, "5 s on a machine that does nothing else"
    assert done.returncode == ExitCode.OK, done.stdout
    found = [line for line in done.stdout.splitlines() if line[:4] in {"PASS", "WARN", "FAIL"}]
    assert [line[6:].startswith(name) for line, name in zip(found, NAMES, strict=True)] == [True] * len(NAMES)
    warnings = sum(line.startswith("WARN") for line in found)
    assert done.stdout.count(" fix: ") == warnings, "each with its fix"
    assert all(len(line) <= 120 for line in done.stdout.splitlines())


def test_a_gateway_is_measured_and_its_token_not_shown(run_hybrid, gateway):
    done = run_hybrid("doctor", "--gateway", gateway.url, "--json", HYBRID_TOKEN=gateway.token)
    assert done.returncode == ExitCode.OK, done.stdout
    found = looked(done)
    assert list(found) == NAMES
    facts = found["gateway"]["facts"]
    assert found["gateway"]["status"] == "PASS", found["gateway"]
    assert facts["url"] == gateway.url
    assert 0 < facts["rtt_s"] < 2
    assert facts["uplink_bps"] > 1e5
    assert found["token"]["facts"] == {"is_set": True}
    assert gateway.token.split("_")[2] not in done.stdout + done.stderr
    assert json.loads(done.stdout)["data"]["counts"]["FAIL"] == 0


@pytest.mark.parametrize(
    ("token", "said"), [("", "unauthenticated"), ("hyb_aaaaaaaa_" + "b" * 32, "unauthenticated")], ids=["none", "wrong"]
)
def test_a_gateway_that_refuses_fails_with_its_fix(run_hybrid, gateway, token, said):
    done = run_hybrid("doctor", "--gateway", gateway.url, "--json", HYBRID_TOKEN=token)
    assert done.returncode == 1
    found = looked(done)["gateway"]
    assert (found["status"], found["facts"]["code"]) == ("FAIL", said)
    assert "hybrid gateway token create" in found["fix"]
    assert "b" * 32 not in done.stdout


def test_a_gateway_that_is_not_there_fails(run_hybrid):
    done = run_hybrid("doctor", "--gateway", "http://127.0.0.1:9", "--json")
    assert done.returncode == 1
    assert looked(done)["gateway"]["facts"]["code"] == "gateway_unreachable"
    assert "hybrid explain gateway_unreachable" in looked(done)["gateway"]["fix"]


def test_what_a_user_wrote_into_an_address_is_not_shown():
    found = network.gateway("https://me:secret@gate.example:8700/path?key=hidden", None)
    assert found.status == "FAIL"
    assert "https://gate.example:8700/path" in found.seen
    assert "secret" not in repr(found)
    assert "hidden" not in repr(found)


def test_a_token_that_is_none_fails_and_is_not_shown():
    assert here.token(None).status == "PASS"
    found = here.token("hyb_not-one")
    assert found.status == "FAIL"
    assert "not-one" not in repr(found)
    assert here.token("hyb_aaaaaaaa_" + "b" * 32).status == "PASS"


def test_a_signing_key_that_others_can_read_is_a_warning(monkeypatch, tmp_path):
    from hybrid.artifact.publishers import create_key, own_key_path

    monkeypatch.setenv("HYBRID_CONFIG", str(tmp_path))
    assert "no signing key" in here.keys().seen
    create_key(own_key_path())
    assert here.keys().status == "PASS"
    assert here.keys().facts["own_key"] is True
    if os.name == "posix":
        own_key_path().chmod(0o644)
        assert here.keys().status == "WARN"
        assert "chmod 600" in here.keys().seen


def test_a_machine_that_no_catalog_knows_is_a_warning(monkeypatch):
    monkeypatch.setenv("HYBRID_DEVICE", "rpi-4b")
    assert "`rpi-4b` of the catalog" in here.machine().seen
    monkeypatch.setenv("HYBRID_DEVICE", "rpi-99")
    assert here.machine().status == "WARN"
    assert "rpi-99" in here.machine().seen


def test_a_clock_from_before_this_release_fails(monkeypatch):
    assert here.clock().status == "PASS"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert here.clock().status == "FAIL"
    assert "1970-01-01" in here.clock().seen


def test_a_cache_that_cannot_be_written_fails(monkeypatch, tmp_path):
    assert here.disk().status in {"PASS", "WARN"}
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "file"))
    assert here.disk().status == "FAIL"
    assert "HYBRID_CACHE" in here.disk().fix


def test_a_port_that_another_program_holds_is_a_warning(monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(here, "_PORTS", {other.getsockname()[1]: "the gateway"})
        assert here.ports().status == "WARN"
    assert here.ports().status == "PASS"


def test_the_engine_runs_a_model_and_the_machine_is_named():
    assert here.engines().status == "PASS"
    found = here.machine()
    assert found.facts["usable_cores"] <= os.cpu_count()
    assert "cores=" in found.facts["machine_class"]


def test_looks_that_break_or_hang_hide_nothing_else():
    release = threading.Event()

    def hangs():
        release.wait(30)
        return check.passed("slow", "late")

    def breaks():
        raise ValueError("of some kind")

    began_s = time.perf_counter()
    found = check.run(
        [("slow", hangs), ("broken", breaks), ("fine", lambda: check.passed("fine", "well"))], within_s=0.5
    )
    release.set()
    assert time.perf_counter() - began_s < 5
    assert [one.status for one in found] == ["WARN", "WARN", "PASS"]
    assert "within 0.5 s" in found[0].seen
    assert "ValueError: of some kind" in found[1].seen
    assert found[1].fix
