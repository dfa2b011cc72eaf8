"""Whatever is sent to the calls that need no token: a typed refusal, never a fault, and the next good box comes in."""

import json
import random
from pathlib import Path

import aiohttp
import msgspec
import pytest
from yarl import URL

from cloud_gateway.fleet.admission.routes import Rates
from hybrid.artifact.signature import new_private_key
from hybrid.fleet.trust_bundle import delegate
from tests.fleet_lab import Caller, fleet_server

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")

SEEDS = 400
_ODD = [
    None, True, 0, -1, 1 << 70, 1e400, "", "\0", "\ud800", "é" * 40, "a" * 9000, [], {}, [[]], {"a": 1}, "AAAA",
    "A" * 44, "f" * 32, "F" * 32, -5, 2, "hyb_aaaaaaaa_" + "a" * 32,
]  # fmt: skip


def mutated(rng: random.Random, good: dict[str, object]) -> bytes:
    """A body that is nearly a call, or nothing like one."""
    kind = rng.randrange(6)
    if kind == 0:
        return rng.randbytes(rng.randrange(200))
    fields = dict(good)
    if kind == 1:
        fields.pop(rng.choice(list(fields)))
    elif kind in (2, 3):
        for _ in range(rng.randrange(1, 3)):
            fields[rng.choice(list(fields))] = rng.choice(_ODD)
    text = bytearray(json.dumps(fields).encode("utf-8", "surrogatepass"))
    if kind == 4:
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
    elif kind == 5:
        del text[rng.randrange(len(text)) :]
    return bytes(text)


async def test_no_body_is_a_fault(tmp_path: Path) -> None:
    rng = random.Random(7)
    without_end = (1e9, 1e9)
    rates = Rates(hellos=without_end, accesses=without_end, enrolments=without_end)
    async with fleet_server(tmp_path / "gateway", rates=rates) as server:
        token, box = server.token(count=1000), Caller()
        statuses: dict[int, int] = {}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session:
            for seed in range(SEEDS):
                if seed % 2:
                    good = msgspec.to_builtins(box.enroll_call(server.desk, token))
                    path = "enroll"
                else:
                    good = msgspec.to_builtins(box.access_call(server.desk))
                    path = "access"
                body = mutated(rng, good)
                headers = {"Content-Type": rng.choice(["application/json", "x", "application/msgpack"])}
                url = f"{server.url}/v2/hybrid/fleet/{path}"
                async with session.post(url, data=body, headers=headers) as response:
                    answer = await response.json()
                    statuses[response.status] = statuses.get(response.status, 0) + 1
                    assert response.status < 500, (seed, body, answer)
                    assert token.secret not in str(answer)
                    if response.status >= 400:
                        assert answer["code"] != "error", (seed, body, answer)
        assert statuses[400] > SEEDS / 3
        assert len(statuses) >= 3
        assert Caller().enroll(server.desk, token).admission == "admitted"


async def test_no_order_of_an_administrator_is_a_fault(tmp_path: Path) -> None:
    rng, root = random.Random(8), new_private_key()
    wish = {
        "count": 2,
        "expires_in_s": 60.0,
        "tags": {"a": "b"},
        "approve": True,
        "needs_root": False,
        "url": "",
        "name": "n",
    }
    async with fleet_server(tmp_path / "gateway") as server:
        box = Caller()
        box.enroll(server.desk, server.token())
        bundle = json.loads(delegate(root, [], 1))
        orders: list[tuple[str, dict[str, object]]] = [
            ("tokens", wish), ("trust", bundle), (f"boxes/{box.box_id}/rename", {"name": "camera"}),
            (f"boxes/{box.box_id}/revoke", {"reason": "because"}), (f"boxes/{box.box_id}/admit", {"x": 1}),
            ("boxes/%00%ff/admit", {"x": 1}), ("boxes/..%2f/rename", {"name": "x"}),
            ("tokens/%f0%9f%98%80/revoke", {"x": 1}),
            ("alarms/99999999999999999999/ack", {"x": 1}), ("alarms/-1/ack", {"x": 1}),
        ]  # fmt: skip
        headers = {"Authorization": f"Bearer {server.admin}"}
        seen: set[int] = set()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False), headers=headers) as session:
            for seed in range(SEEDS):
                path, good = orders[seed % len(orders)]
                body = mutated(rng, good)
                url = URL(f"{server.url}/v2/hybrid/fleet/{path}", encoded=True)
                async with session.post(url, data=body) as response:
                    answer = await response.json()
                    assert response.status < 500, (path, body, answer)
                    seen.add(response.status)
            for path in ("tokens", "boxes", f"boxes/{box.box_id}", "alarms?acked=1", "trust"):
                async with session.get(f"{server.url}/v2/hybrid/fleet/{path}") as response:
                    assert response.status == 200, path
        assert {200, 400, 404} <= seen


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("nonce=", 400),
        ("nonce=" + "g" * 64, 400),
        ("nonce=" + "a" * 63, 400),
        ("nonce=" + "A" * 64, 400),
        ("nonce=" + "a" * 64 + "&protocol=99", 200),
        ("nonce=" + "a" * 64, 200),
    ],
)
async def test_hellos_are_asked_for_with_a_nonce(tmp_path: Path, query: str, status: int) -> None:
    async with (
        fleet_server(tmp_path / "gateway") as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.get(f"{server.url}/v2/hybrid/fleet/hello?{query}") as response,
    ):
        assert response.status == status


async def test_bodies_are_bounded_and_calls_are_counted(tmp_path: Path) -> None:
    async with (
        fleet_server(tmp_path / "gateway") as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=False)) as session,
    ):
        url = f"{server.url}/v2/hybrid/fleet/enroll"
        async with session.post(url, data=b" " * 20_000) as response:
            assert response.status == 413
        codes = set()
        for _ in range(80):
            async with session.post(url, data=b"{}") as response:
                codes.add(((await response.json())["code"], response.headers.get("Retry-After")))
        assert codes == {("bad_message", None), ("overloaded", "1")}
