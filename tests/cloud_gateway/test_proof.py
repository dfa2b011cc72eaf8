"""A gateway proves that it holds a token; rogues, relays and wrong clocks meet a real device's question."""

import asyncio
import datetime as dt
import hashlib
import hmac
import json
import logging
import os
import shutil
import ssl
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
import uvloop
from aiohttp import web

from hybrid.errors import GatewayUnreachable, GatewayUntrusted, Overloaded, Unauthenticated
from hybrid.hosting.auth import Tokens
from hybrid.hosting.proof_route import RateLimit
from hybrid.hosting.tls import ServerCertificate
from hybrid.transport.proof import meet_pinned, prove
from hybrid.transport.proof_mac import LABEL, proof_mac
from hybrid.transport.token import Token
from tests import trust_lab


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[Tokens]:
    (tmp_path / "honest").mkdir()
    with Tokens(tmp_path / "honest") as opened:
        yield opened


@pytest.fixture
def strangers_tokens(tmp_path: Path) -> Iterator[Tokens]:
    """Of a gateway that does not know the device's token."""
    (tmp_path / "stranger").mkdir()
    with Tokens(tmp_path / "stranger") as opened:
        yield opened


def test_the_bytes_are_those_of_the_page() -> None:
    token = Token.parse("hyb_abcdefgh_" + "a2" * 16)
    mac = proof_mac(token.key, token_id=token.id, client_nonce=b"c" * 32, server_nonce=b"s" * 32, spki_sha256=b"k" * 32)
    message = b"\0\0\0\x17hybrid gateway proof v1" + b"\0\0\0\x08abcdefgh"
    message += b"\0\0\0\x20" + b"c" * 32 + b"\0\0\0\x20" + b"s" * 32 + b"\0\0\0\x20" + b"k" * 32
    assert len(LABEL) == 0x17
    assert mac == hmac.new(hashlib.sha256(b"a2" * 16).digest(), message, "sha256").digest()


def test_moving_a_byte_from_one_field_to_the_next_changes_the_proof() -> None:
    nonces = [(b"ab", b"c"), (b"a", b"bc"), (b"abc", b"")]
    macs = {
        proof_mac(b"k" * 32, token_id="x", client_nonce=client, server_nonce=server, spki_sha256=b"s")
        for client, server in nonces
    }
    assert len(macs) == len(nonces)


@pytest.fixture
def certificate(tmp_path: Path) -> ServerCertificate:
    return trust_lab.certificate_in(tmp_path / "tls")


@pytest.fixture
def device_token(tokens: Tokens) -> str:
    return tokens.create("device", "camera")[1]


async def test_an_honest_gateway_is_pinned(
    tokens: Tokens, certificate: ServerCertificate, device_token: str, blocking_calls_fail: None
) -> None:
    async with trust_lab.gateway(tokens, certificate) as running:
        proof = await prove(running.url, device_token)
        assert proof.certificate_sha256 == certificate.certificate_sha256
        assert 0 < proof.rtt_s < 5
        pinned = await meet_pinned(running.url, proof.certificate_sha256)
        assert pinned.certificate_sha256 == certificate.certificate_sha256
        async with aiohttp.ClientSession() as session:  # and as the transport uses it
            pin = aiohttp.Fingerprint(bytes.fromhex(proof.certificate_sha256))
            async with session.get(running.url + "/v2/hybrid/proof", ssl=pin) as response:
                assert response.status == 400


def test_it_works_on_uvloop_too(tokens: Tokens, tmp_path: Path) -> None:
    certificate = trust_lab.certificate_in(tmp_path / "tls")
    _, text = tokens.create("device", "camera")

    async def ask() -> str:
        async with trust_lab.gateway(tokens, certificate) as running:
            return (await prove(running.url, text)).certificate_sha256

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()) == certificate.certificate_sha256


async def test_the_secret_stays_on_the_device(tokens: Tokens, strangers_tokens: Tokens, tmp_path: Path) -> None:
    token_id, text = tokens.create("device", "camera")
    async with trust_lab.gateway(strangers_tokens, trust_lab.certificate_in(tmp_path / "tls")) as rogue:
        with pytest.raises(GatewayUntrusted):
            await prove(rogue.url, text)
        heard = " ".join(rogue.asked)
    assert token_id in heard
    assert Token.parse(text).secret not in heard
    assert Token.parse(text).key.hex() not in heard


async def test_a_rogue_without_the_token_fails(strangers_tokens: Tokens, tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create("device", "camera")
    async with trust_lab.gateway(strangers_tokens, trust_lab.certificate_in(tmp_path / "tls")) as rogue:
        with pytest.raises(GatewayUntrusted, match="did not prove that it holds token"):
            await prove(rogue.url, text)


async def test_a_relay_with_its_own_key_fails_and_raw_forwarding_does_not(tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create("device", "camera")
    certificate = trust_lab.certificate_in(tmp_path / "tls")
    own = trust_lab.certificate_in(tmp_path / "relay")
    async with trust_lab.gateway(tokens, certificate) as running, trust_lab.relay(running.port, own) as middle:
        with pytest.raises(GatewayUntrusted, match="relays"):
            await prove(middle.url, text)
        assert b"/v2/hybrid/proof" in middle.heard, "the relay was asked"
        assert len(running.asked) == 1, "and passed the question on"
        assert Token.parse(text).secret.encode() not in middle.heard
        async with trust_lab.relay(running.port, None) as forwarder:
            proof = await prove(forwarder.url, text)
        assert proof.certificate_sha256 == certificate.certificate_sha256


async def test_a_proof_over_another_key_fails(tokens: Tokens, tmp_path: Path) -> None:
    """Even from a gateway that holds the token: what counts is the key of this very connection."""
    _, text = tokens.create("device", "camera")
    certificate, other = trust_lab.certificate_in(tmp_path / "a"), trust_lab.certificate_in(tmp_path / "b")
    async with trust_lab.gateway(tokens, certificate, proves_as=other) as running:
        with pytest.raises(GatewayUntrusted):
            await prove(running.url, text)


async def test_a_revoked_token_proves_nothing(tokens: Tokens, tmp_path: Path) -> None:
    token_id, text = tokens.create("device", "camera")
    async with trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running:
        await prove(running.url, text)
        tokens.revoke(token_id)
        with pytest.raises(GatewayUntrusted, match="revoked"):
            await prove(running.url, text)


@pytest.mark.parametrize(
    ("not_before", "not_after"), [(2090, 2100), (1971, 1972)], ids=["from the future, as at 1970", "long expired"]
)
async def test_a_wrong_clock_is_no_obstacle(tokens: Tokens, tmp_path: Path, not_before: int, not_after: int) -> None:
    """A certificate that is not valid yet is to this clock what any certificate is to a clock at 1970."""
    _, text = tokens.create("device", "camera")
    dates = {
        "not_before": dt.datetime(not_before, 1, 1, tzinfo=dt.UTC),
        "not_after": dt.datetime(not_after, 1, 1, tzinfo=dt.UTC),
    }
    certificate = trust_lab.certificate_in(tmp_path / "tls", **dates)
    async with trust_lab.gateway(tokens, certificate) as running:
        by_date = ssl.create_default_context(cafile=str(certificate.certificate_path))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError, match=r"not yet valid|expired"):
                await session.get(running.url, ssl=by_date)
        proof = await prove(running.url, text)
        assert (await meet_pinned(running.url, proof.certificate_sha256)).url == running.url


@pytest.mark.skipif(shutil.which("faketime") is None, reason="needs the command faketime")
async def test_a_device_at_1970_is_answered(tokens: Tokens, certificate: ServerCertificate, device_token: str) -> None:
    code = (
        "import asyncio, os, time; assert time.time() < 1e6, time.time()\n"
        "from hybrid.transport.proof import meet_pinned, prove\n"
        "pin = asyncio.run(prove(os.environ['URL'], os.environ['HYBRID_TOKEN'])).certificate_sha256\n"
        "print(asyncio.run(meet_pinned(os.environ['URL'], pin)).certificate_sha256)"
    )
    async with trust_lab.gateway(tokens, certificate) as running:
        settings = {"URL": running.url, "HYBRID_TOKEN": device_token, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        device = await asyncio.create_subprocess_exec(
            "faketime", "1970-01-02 00:00:00", sys.executable, "-c", code,
            stdout=asyncio.subprocess.PIPE, env=os.environ | settings,
        )  # fmt: skip
        out, _ = await device.communicate()
    assert out.decode().strip() == certificate.certificate_sha256


async def test_another_certificate_than_the_pinned_one_gets_no_request(tokens: Tokens, tmp_path: Path) -> None:
    pinned, other = trust_lab.certificate_in(tmp_path / "a"), trust_lab.certificate_in(tmp_path / "b")
    async with trust_lab.gateway(tokens, other) as running:
        with pytest.raises(GatewayUntrusted, match=pinned.certificate_sha256):
            await meet_pinned(running.url, pinned.certificate_sha256)
        assert running.asked == []


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (404, b"not here", "HTTP 404"),
        (200, b"not json", "something else than a proof"),
        (200, b'{"nonce": 1, "mac": 2}', "something else than a proof"),
        (200, b'{"nonce": "zz", "mac": "zz"}', "something else than a proof"),
        (200, json.dumps({"nonce": "00", "mac": "00" * 32}).encode(), "nonce of 1 bytes"),
        (200, json.dumps({"nonce": "00" * 32, "mac": ""}).encode(), "did not prove"),
        (200, b"x" * 1_000_000, "more than 4096 bytes"),
        (307, b"", "HTTP 307"),
    ],
)
async def test_whatever_else_answers_is_untrusted(tmp_path: Path, status: int, body: bytes, told: str) -> None:
    async with trust_lab.answering(status, body, trust_lab.certificate_in(tmp_path)) as url:
        with pytest.raises(GatewayUntrusted, match=told):
            await prove(url, Token.fresh().text)


async def test_a_gateway_that_is_asked_too_often_says_so(tmp_path: Path) -> None:
    async with trust_lab.answering(429, b"{}", trust_lab.certificate_in(tmp_path)) as url:
        with pytest.raises(Overloaded):
            await prove(url, Token.fresh().text)


async def test_plain_http_is_never_asked(tokens: Tokens) -> None:
    asked: list[str] = []

    async def note(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", note)
    async with trust_lab.serving(app, None) as port:
        with pytest.raises(GatewayUntrusted, match="not https"):
            await prove(f"http://127.0.0.1:{port}", Token.fresh().text)
        with pytest.raises(GatewayUntrusted, match="does not speak TLS"):
            await prove(f"https://127.0.0.1:{port}", Token.fresh().text)
    assert asked == []


async def test_silence_and_refusal_are_unreachable(tmp_path: Path) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    with pytest.raises(GatewayUnreachable, match=r"within 0\.2 s"):
        await prove(f"https://127.0.0.1:{port}", Token.fresh().text, timeout_s=0.2)
    silent.close()
    await silent.wait_closed()
    with pytest.raises(GatewayUnreachable):
        await prove(f"https://127.0.0.1:{port}", Token.fresh().text)


async def test_what_is_no_token_is_not_sent(tokens: Tokens, tmp_path: Path) -> None:
    async with trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running:
        with pytest.raises(Unauthenticated) as caught:
            await prove(running.url, "my password")
        assert "my password" not in str(caught.value)
        assert running.asked == []


async def test_unknown_and_revoked_ids_answer_alike(tokens: Tokens, tmp_path: Path) -> None:
    known, _ = tokens.create("device", "known")
    revoked, _ = tokens.create("device", "revoked")
    tokens.revoke(revoked)
    async with (
        trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running,
        aiohttp.ClientSession() as session,
    ):
        shapes = []
        for token_id in (known, revoked, "aaaaaaaa"):
            query = {"token_id": token_id, "nonce": "00" * 32}
            async with session.get(f"{running.url}/v2/hybrid/proof", params=query, ssl=False) as response:
                answer = await response.json()
                headers = {key: value for key, value in response.headers.items() if key != "Date"}
                shapes.append((response.status, {key: len(value) for key, value in answer.items()}, headers))
    assert shapes[0] == shapes[1] == shapes[2]
    assert shapes[0][0] == 200


def test_a_proof_for_an_unknown_id_has_a_key_that_nobody_knows(tokens: Tokens) -> None:
    nonces = {"client_nonce": b"c" * 32, "server_nonce": b"s" * 32, "spki_sha256": b"k" * 32}
    macs = {tokens.proof("aaaaaaaa", **nonces) for _ in range(3)}
    assert len(macs) == 3, "a new key each time"
    assert not macs & {proof_mac(bytes(n), token_id="aaaaaaaa", **nonces).hex() for n in range(65)}


def test_unknown_ids_take_the_same_time(tokens: Tokens) -> None:
    known, _ = tokens.create("device", "known")
    nonces = {"client_nonce": b"c" * 32, "server_nonce": b"s" * 32, "spki_sha256": b"k" * 32}
    took_s: dict[str, list[float]] = {known: [], "aaaaaaaa": []}
    for _ in range(2000):
        for token_id, samples in took_s.items():
            began_s = time.perf_counter()
            tokens.proof(token_id, **nonces)
            samples.append(time.perf_counter() - began_s)
    ratio = statistics.median(took_s[known]) / statistics.median(took_s["aaaaaaaa"])
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize(
    "query",
    [
        "",
        "token_id=aaaaaaaa",
        "nonce=" + "00" * 32,
        "token_id=aaaaaaaa&nonce=00",
        "token_id=AAAAAAAA&nonce=" + "00" * 32,
        "token_id=aaaaaaa%00&nonce=" + "00" * 32,
        "token_id=" + "a" * 5000 + "&nonce=" + "00" * 32,
        "token_id=aaaaaaaa&nonce=" + "é" * 64,
    ],
)
async def test_a_broken_question_is_a_400(tokens: Tokens, tmp_path: Path, query: str) -> None:
    async with (
        trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running,
        aiohttp.ClientSession() as session,
        session.get(f"{running.url}/v2/hybrid/proof?{query}", ssl=False) as response,
    ):
        assert response.status == 400
        assert "error" in await response.json()


async def test_asking_in_a_row_is_slowed_down(tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create("device", "camera")
    async with trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running:
        query = {"token_id": Token.parse(text).id, "nonce": "00" * 32}
        async with aiohttp.ClientSession() as session:
            statuses = []
            for _ in range(60):
                async with session.get(f"{running.url}/v2/hybrid/proof", params=query, ssl=False) as response:
                    statuses.append(response.status)
                    if response.status == 429:
                        assert response.headers["Retry-After"] == "1"
        assert statuses[:20] == [200] * 20
        assert 429 in statuses


def test_a_rate_is_kept_for_each_source_and_memory_is_bounded() -> None:
    limit = RateLimit(per_s=10, burst=2)
    assert [limit.allows("a", 0.0) for _ in range(3)] == [True, True, False]
    assert limit.allows("b", 0.0)
    assert [limit.allows("a", 0.1), limit.allows("a", 0.1)] == [True, False]
    for number in range(10_000):
        limit.allows(str(number), 0.2)
    assert len(limit._left) <= 4096


async def test_nothing_secret_is_logged(tokens: Tokens, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="hybrid")  # a command that ran in this process before may have set another
    _, text = tokens.create("device", "camera")
    async with trust_lab.gateway(tokens, trust_lab.certificate_in(tmp_path / "tls")) as running:
        await prove(running.url, text)
    tokens.revoke(Token.parse(text).id)
    assert "token.created" in caplog.text
    assert "token.revoked" in caplog.text
    assert Token.parse(text).secret not in caplog.text
    assert Token.parse(text).key.hex() not in caplog.text
