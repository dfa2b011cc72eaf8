"""From announcements to gateways that proved themselves: real multicast DNS, real TLS, real rogues."""

import asyncio
import json
import os
import queue
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from hybrid.discovery.announce import Announcer
from hybrid.discovery.find import Finding, find_gateways
from hybrid.errors import HybridError, Unauthenticated
from hybrid.hosting.auth import Tokens
from hybrid.hosting.tls import ServerCertificate
from hybrid.transport.token import Token
from tests import trust_lab

LOOPBACK = ("127.0.0.1",)
PATIENCE_S = 25.0


class Device:
    """A device that looks for gateways; `next` waits for what it is told."""

    def __init__(self, token: str | None, pin_sha256: str | None = None) -> None:
        self.told: queue.Queue[tuple[str, ...]] = queue.Queue()
        self.finding: Finding = find_gateways(
            token,
            on_found=lambda url, pin: self.told.put(("found", url, pin)),
            on_lost=lambda url: self.told.put(("lost", url)),
            pin_sha256=pin_sha256,
            interfaces=LOOPBACK,
            poll_s=0.2,
        )

    async def next(self) -> tuple[str, ...]:
        return await asyncio.to_thread(self.told.get, timeout=PATIENCE_S)

    async def until(self, true: Callable[[], bool]) -> None:
        """Waits for what is not told by a call."""
        async with asyncio.timeout(PATIENCE_S):
            while not true():  # noqa: ASYNC110 (this state has no event of its own)
                await asyncio.sleep(0.02)


@pytest.fixture
def device() -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(token: str | None, pin_sha256: str | None = None) -> Device:
        made.append(Device(token, pin_sha256))
        return made[-1]

    yield make
    for each in made:
        each.finding.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "hybrid-discovery"]


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    (tmp_path / "tokens").mkdir()
    with Tokens(tmp_path / "tokens") as opened:
        yield opened


@pytest.fixture
def token(tokens: Tokens) -> str:
    return tokens.create("device", "camera")[1]


@pytest.fixture
def certificate(tmp_path: Path) -> ServerCertificate:
    return trust_lab.certificate_in(tmp_path / "tls")


@asynccontextmanager
async def announced(
    port: int, *, name: str = "gw", tls: bool = True, fingerprint: str = "", wait: bool = False
) -> AsyncIterator[Announcer]:
    """An announcement of whatever listens on a port."""
    properties = {"version": "1", "fp": fingerprint, "id": secrets.token_hex(8), "path": "/"}
    made = Announcer(name=name, port=port, tls=tls, properties=properties, host="127.0.0.1", poll_s=0.2)
    await made.start()
    try:
        if wait:
            assert await asyncio.to_thread(made.announced.wait, PATIENCE_S)
        yield made
    finally:
        await made.close()


async def test_an_honest_gateway_is_found_and_lost(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate
) -> None:
    looking = device(token)
    assert looking.finding.gateways == ()
    assert "no gateway" in looking.finding.why_none
    async with trust_lab.gateway(tokens, certificate) as running, announced(running.port):
        assert await looking.next() == ("found", running.url, certificate.certificate_sha256)
        (found,) = looking.finding.gateways
        assert found.rtt_s > 0
        assert looking.finding.why_none == ""
        tokens.revoke(Token.parse(token).id)
        looking.finding.recheck(running.url)
        assert await looking.next() == ("lost", running.url)
        assert "revoked" in looking.finding.why_none


async def test_a_pin_needs_no_token_and_accepts_nothing_else(
    device: Callable[..., Device], tokens: Tokens, certificate: ServerCertificate, tmp_path: Path
) -> None:
    other = trust_lab.certificate_in(tmp_path / "other")
    looking = device(None, certificate.certificate_sha256.upper())
    async with (
        trust_lab.gateway(tokens, other) as wrong,
        announced(wrong.port),
        trust_lab.gateway(tokens, certificate) as right,
        announced(right.port),
    ):
        assert await looking.next() == ("found", right.url, certificate.certificate_sha256)
        await looking.until(lambda: "not the pinned" in " ".join(looking.finding._search.reasons))
        assert [found.url for found in looking.finding.gateways] == [right.url]
        assert wrong.asked == [], "no request went to the other one"


@pytest.mark.slow
async def test_of_all_characters_under_one_name_only_the_honest_are_used(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate, tmp_path: Path
) -> None:
    """Two honest gateways, a rogue, a relay and a plain one, all announced as `gw`."""
    shutil.copytree(tmp_path / "tokens", tmp_path / "tokens of the second")
    (tmp_path / "rogue").mkdir()
    second_certificate = trust_lab.certificate_in(tmp_path / "second")
    relays_certificate = trust_lab.certificate_in(tmp_path / "relay")
    plain_asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        plain_asked.append(request.path)
        return web.Response()

    plain = web.Application()
    plain.router.add_route("*", "/{tail:.*}", note)
    with Tokens(tmp_path / "tokens of the second") as second_tokens, Tokens(tmp_path / "rogue") as rogues_tokens:
        async with (
            trust_lab.gateway(tokens, certificate) as first,
            trust_lab.gateway(second_tokens, second_certificate) as second,
            trust_lab.gateway(rogues_tokens, trust_lab.certificate_in(tmp_path / "r")) as rogue,
            trust_lab.relay(first.port, relays_certificate) as relay,
            trust_lab.serving(plain, None) as plain_port,
            announced(rogue.port, wait=True),
            announced(relay.port),
            announced(plain_port, tls=False),
            announced(first.port),
            announced(second.port),
        ):
            looking = device(token)
            told = {await looking.next(), await looking.next()}
            assert told == {
                ("found", first.url, certificate.certificate_sha256),
                ("found", second.url, second_certificate.certificate_sha256),
            }
            reasons = looking.finding._search
            await looking.until(lambda: rogue.url in " ".join(reasons.reasons))
            await looking.until(lambda: relay.url in " ".join(reasons.reasons))
            assert {found.url for found in looking.finding.gateways} == {first.url, second.url}
            secret = Token.parse(token).secret
            assert relay.heard, "the relay was asked"
            assert secret.encode() not in relay.heard
            assert secret not in " ".join(rogue.asked + first.asked + second.asked)
            assert plain_asked == []


@pytest.mark.slow
async def test_a_new_certificate_is_proved_anew(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate, tmp_path: Path
) -> None:
    renewed = trust_lab.certificate_in(tmp_path / "renewed")
    looking = device(token)
    async with trust_lab.gateway(tokens, certificate) as before, announced(before.port, fingerprint="aa"):
        assert await looking.next() == ("found", before.url, certificate.certificate_sha256)
    async with trust_lab.gateway(tokens, renewed, port=before.port) as after, announced(after.port, fingerprint="bb"):
        assert after.url == before.url
        assert await looking.next() == ("lost", before.url)
        assert await looking.next() == ("found", after.url, renewed.certificate_sha256)


async def test_a_gateway_that_is_announced_before_it_serves_is_found_when_it_does(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate
) -> None:
    async with trust_lab.gateway(tokens, certificate) as before:
        pass  # the port is free now
    looking = device(token)
    async with announced(before.port):
        await looking.until(lambda: "could not be asked" in looking.finding.why_none)
        assert looking.finding.gateways == ()
        async with trust_lab.gateway(tokens, certificate, port=before.port) as after:
            assert await looking.next() == ("found", after.url, certificate.certificate_sha256)


async def test_without_token_and_pin_nothing_is_looked_for(device: Callable[..., Device]) -> None:
    looking = device(None)
    assert looking.finding.gateways == ()
    assert looking.finding.why_none.startswith("no token and no pin")
    assert not [thread for thread in threading.enumerate() if thread.name in {"hybrid-discovery", "hybrid-mdns"}]
    looking.finding.recheck("https://127.0.0.1:1")


def test_nonsense_is_refused_before_anything_starts() -> None:
    nothing = {"on_found": lambda url, pin: None, "on_lost": lambda url: None}
    with pytest.raises(Unauthenticated):
        find_gateways("my password", **nothing)
    with pytest.raises(HybridError, match="64 hex digits"):
        find_gateways(None, pin_sha256="00", **nothing)
    assert not [thread for thread in threading.enumerate() if thread.name == "hybrid-discovery"]


async def test_sessions_share_one_search_and_each_is_told(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate
) -> None:
    first = device(token)
    async with trust_lab.gateway(tokens, certificate) as running, announced(running.port):
        told = await first.next()
        second = device(token)
        assert second.finding._search is first.finding._search
        assert await second.next() == told
        first.finding.close()
        first.finding.close()
        assert [found.url for found in second.finding.gateways] == [running.url]
        tokens.revoke(Token.parse(token).id)
        second.finding.recheck(running.url)
        assert (await second.next())[0] == "lost"
        assert first.told.empty(), "a closed one is told nothing"


async def test_a_listener_may_withdraw_and_begin_anew_from_within_its_own_call(
    device: Callable[..., Device], tokens: Tokens, token: str, certificate: ServerCertificate
) -> None:
    done: queue.Queue[Finding] = queue.Queue()

    def move(url: str, pin: str) -> None:
        first.close()
        nothing = {"on_found": lambda url, pin: None, "on_lost": lambda url: None}
        done.put(find_gateways(token, interfaces=LOOPBACK, poll_s=0.2, **nothing))

    first = find_gateways(token, on_found=move, on_lost=lambda url: None, interfaces=LOOPBACK, poll_s=0.2)
    async with trust_lab.gateway(tokens, certificate) as running, announced(running.port):
        second = await asyncio.to_thread(done.get, timeout=PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            while [found.url for found in second.gateways] != [running.url]:  # noqa: ASYNC110 (no event of its own)
                await asyncio.sleep(0.02)
    await asyncio.to_thread(second.close)


async def test_a_listener_that_fails_harms_nobody(
    device: Callable[..., Device],
    tokens: Tokens,
    token: str,
    certificate: ServerCertificate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: str) -> None:
        raise RuntimeError("listener's fault")

    broken = find_gateways(token, on_found=fail, on_lost=fail, interfaces=LOOPBACK, poll_s=0.2)
    looking = device(token)
    async with trust_lab.gateway(tokens, certificate) as running, announced(running.port):
        assert (await looking.next())[:2] == ("found", running.url)
    await asyncio.to_thread(broken.close)
    assert "listener_failed" in caplog.text


async def test_a_device_whose_clock_stands_at_1970_finds_it(
    device: Callable[..., Device], tokens: Tokens, token: str, tmp_path: Path
) -> None:
    import datetime as dt

    future = trust_lab.certificate_in(tmp_path / "future", not_before=dt.datetime(2090, 1, 1, tzinfo=dt.UTC))
    looking = device(token)
    async with trust_lab.gateway(tokens, future) as running, announced(running.port):
        assert await looking.next() == ("found", running.url, future.certificate_sha256)


FORKING_DEVICE = """
import json, os, queue, sys
from hybrid.discovery.find import find_gateways
told = queue.Queue()
finding = find_gateways(
    os.environ["HYBRID_TOKEN"], on_found=lambda url, pin: told.put(url), on_lost=lambda url: told.put("lost"),
    interfaces=("127.0.0.1",), poll_s=0.2,
)
first = told.get(timeout=20)
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    says = {"offered_at_once": [found.url for found in finding.gateways]}
    finding.ensure()
    says["found_anew"] = told.get(timeout=20)
    finding.ensure()
    finding.close()
    os.write(writer, json.dumps(says).encode())
    os._exit(0)
os.close(writer)
says = json.loads(os.read(reader, 10000) or b"{}")
_, status = os.waitpid(child, 0)
finding.recheck(first)
still = [found.url for found in finding.gateways]
finding.close()
print(json.dumps({"first": first, "child": says, "status": status, "still": still}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.slow
async def test_a_forked_child_begins_anew_and_leaves_its_parent_alone(
    tokens: Tokens, token: str, certificate: ServerCertificate
) -> None:
    async with trust_lab.gateway(tokens, certificate) as running, announced(running.port, wait=True):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", FORKING_DEVICE],
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ | {"HYBRID_TOKEN": token},
            check=False,
        )
    assert done.returncode == 0, done.stderr
    says = json.loads(done.stdout)
    assert says == {
        "first": running.url,
        "child": {"offered_at_once": [], "found_anew": running.url},
        "status": 0,
        "still": [running.url],
    }
