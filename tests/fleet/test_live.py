"""Boxes and gateways as processes: off for a month, clocks that are wrong, revoked on an open channel, the commands."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hybrid.errors import HybridError, Unauthenticated
from hybrid.transport.client import acquire, release
from hybrid.transport.trust import Trust
from hybrid.wire.message import InferRequest
from hybrid.wire.tensor import Tensor
from tests.enrolled_box import ask, enrolled_box, make_token
from tests.live_gateway import HYBRID, LiveGateway
from tests.trust_lab import certificate_in

needs_faketime = pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the command faketime")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    folder = tmp_path_factory.mktemp("shared")
    made = certificate_in(folder / "tls")
    flags = ("--tls-cert", str(made.certificate_path), "--tls-key", str(made.key_path))
    with LiveGateway(folder / "gateway", *flags) as running:
        yield running


def enroll(data: Path, token: str, *before: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [*before, str(HYBRID), "agent", "enroll", "-", "--data", str(data), "--name", data.name, "--json"]
    return subprocess.run(
        command, input=token, capture_output=True, text=True, timeout=60, env=os.environ | settings, check=False
    )


@needs_faketime
@pytest.mark.parametrize("clock", ["1970-01-02 00:00:00", "2061-05-05 05:05:05"])
async def test_a_box_whose_clock_is_wrong_comes_in(shared: LiveGateway, tmp_path: Path, clock: str) -> None:
    token = await make_token(shared)
    done = enroll(tmp_path / f"box{clock[:4]}", token.text, "faketime", clock, FAKETIME_DONT_FAKE_MONOTONIC="1")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["admission"] == "admitted"


RENEW = """
import asyncio, sys, time
from pathlib import Path
from tests.enrolled_box import access_of
async def main():
    access = access_of(Path(sys.argv[1]))
    await access.link.renew()
    async with access.link.call("GET", "/v2/hybrid/models") as response:
        assert response.status == 200
    await access.link.close()
    print(time.time(), access.time.now_s())
asyncio.run(main())
"""


def faked(moment: str) -> dict[str, str]:
    """What makes a process see another time."""
    library = next(Path("/usr/lib").rglob("libfaketime.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime")
    return {"LD_PRELOAD": str(library), "FAKETIME": moment, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def come_back(data: Path) -> subprocess.CompletedProcess[str]:
    """A box starts in 1970 and asks its gateway for a token."""
    command = ["faketime", "1970-01-01 00:10:00", sys.executable, "-c", RENEW, str(data)]
    settings = os.environ | {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=settings, check=False)


@needs_faketime
async def test_off_for_a_month_with_the_certificate_renewed_meanwhile(tmp_path: Path) -> None:
    """The old certificate has run out, the gateway's token for it too, and the box's own clock starts at 1970."""
    import datetime as dt

    now = dt.datetime.now(dt.UTC)
    old = certificate_in(tmp_path / "tls", not_before=now - dt.timedelta(1), not_after=now + dt.timedelta(7))
    flags = ("--tls-cert", str(old.certificate_path), "--tls-key", str(old.key_path))
    with LiveGateway(tmp_path / "gateway", *flags) as gateway:
        async with enrolled_box(tmp_path / "box", gateway):
            pass
        gateway.stop()
        later = now + dt.timedelta(31)
        certificate_in(tmp_path / "tls", not_before=later - dt.timedelta(1), not_after=later + dt.timedelta(90))
        with pytest.MonkeyPatch.context() as patch:
            for name, value in faked("+31d").items():
                patch.setenv(name, value)
            gateway.start()
        done = come_back(tmp_path / "box")
        assert done.returncode == 0, done.stderr
        clock_s, trusted_s = map(float, done.stdout.split())
        assert clock_s < 1e6
        assert abs(trusted_s - later.timestamp()) < 300


async def test_revoked_on_an_open_channel_and_after_a_restart_still_known(shared: LiveGateway, tmp_path: Path) -> None:
    request = InferRequest(model_name="nobody", inputs=(Tensor.of("x", np.zeros(4, dtype=np.uint8)),))

    def infer() -> HybridError | None:
        return client.infer(request, stall_s=5, timeout_s=5).exception(10)  # type: ignore[return-value]

    async with enrolled_box(tmp_path / "box", shared) as access:
        assert access.enrolment is not None
        client = acquire(shared.url, access.token_source, trust=Trust())
        try:
            assert client.wait_settled(10) == "ready"
            first = infer()
            assert first is not None
            assert first.code != "unauthenticated"  # no such model, but a good token
            path = f"/v2/hybrid/fleet/boxes/{access.enrolment.box_id}"
            await ask(shared, "POST", f"{path}/revoke", {})
            assert isinstance(infer(), Unauthenticated)  # the very next one
            await ask(shared, "POST", f"{path}/admit", {})
            await access.link.renew()
        finally:
            release(client)
        shared.stop()
        shared.start()
        async with access.link.call("GET", "/v2/hybrid/models") as response:
            assert response.status == 200
        client = acquire(shared.url, access.token_source, trust=Trust())
        try:
            assert client.wait_settled(10) == "ready"
        finally:
            release(client)


def test_a_gateway_that_tells_nobody_apart_has_no_fleet(
    tmp_path: Path, hybrid_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with LiveGateway(tmp_path / "open", "--no-auth") as gateway:
        done = hybrid_here("fleet", "boxes", "ls", "--gateway", gateway.url)
    assert done.returncode == 4
    assert "without --no-auth" in done.stderr


def test_the_commands_of_an_operator(
    shared: LiveGateway, tmp_path: Path, hybrid_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """From a root key to a box that was approved, renamed and let out, as docs/fleet.md tells it."""
    settings = {
        "HYBRID_GATEWAY": shared.url,
        "HYBRID_TOKEN": shared.token,
        "HYBRID_CONFIG": str(tmp_path / "config"),
    }

    def run(*words: str, code: int = 0) -> str:
        done = hybrid_here(*words, **settings)
        assert done.returncode == code, (words, done.stdout, done.stderr)
        return done.stdout if code == 0 else done.stderr

    def data(*words: str) -> dict:
        return json.loads(run(*words, "--json"))["data"]

    assert run("fleet", "trust", "show").strip() == "this fleet has no trust bundle"
    assert "hybrid fleet trust set FILE" in run("fleet", "token", "create", code=1)
    run("keys", "root", "create")
    assert "there is a key already" in run("keys", "root", "create", code=6)
    run("keys", "new")
    public = run("keys", "show").strip()
    bundle = str(tmp_path / "trust.json")
    assert data("keys", "delegate", "--publisher", f"{public}=team", "--out", bundle)["sequence"] == 1
    assert "1 keys" in run("fleet", "trust", "set", bundle)
    newer = str(tmp_path / "trust2.json")
    assert data("keys", "delegate", "--from", bundle, "--rounds", "ab" * 32, "--out", newer)["sequence"] == 2
    run("fleet", "trust", "set", newer)
    assert "is at 2" in run("fleet", "trust", "set", bundle, code=6)
    assert [key["role"] for key in data("fleet", "trust", "show")["keys"]] == ["publisher", "rounds"]

    made = data("fleet", "token", "create", "--approve", "--tags", "site=oslo", "--expires", "2h", "--name", "line 2")
    assert "█" in run("fleet", "token", "create", "--no-root", "--discover", "--qr")
    for words in (["--tags", "x"], ["--expires", "soon"], ["--count", "0"]):
        assert hybrid_here("fleet", "token", "create", *words, **settings).returncode in (1, 2)
    folder = str(tmp_path / "camera")
    told = data("agent", "enroll", made["token"], "--data", folder, "--name", "camera")
    assert (told["admission"], told["has_root"]) == ("waiting", True)
    assert "line 2" in run("fleet", "token", "ls")
    assert "camera" in run("fleet", "boxes", "ls", "--admission", "waiting")
    run("fleet", "boxes", "approve", "camera")
    run("fleet", "boxes", "rename", "camera", "camera-7")
    assert "enrolled" in run("fleet", "boxes", "show", told["box_id"][:10])
    run("fleet", "boxes", "revoke", "camera-7", "--reason", "stolen")
    assert "revoked: stolen" in run("fleet", "boxes", "show", "camera-7")
    assert "camera-9" in run("fleet", "boxes", "show", "camera-9", code=3)
    run("fleet", "token", "revoke", made["id"])
    refused = run("agent", "enroll", made["token"], "--data", str(tmp_path / "late"), code=4)
    assert "does not take this enrolment token" in refused
    assert "hybrid fleet token create" in refused
    mistyped = made["token"][:-1] + ("a" if made["token"][-1] != "a" else "b")
    assert "token_mistyped" in run("agent", "enroll", mistyped, "--data", folder, code=2)
    assert "no alarms" in run("fleet", "alarms", "ls")
    assert "hybrid fleet alarms ls" in run("fleet", "alarms", "ack", "99", code=3)
