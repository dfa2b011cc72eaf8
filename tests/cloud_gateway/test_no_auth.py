"""A gateway without tokens answers programs on its machine, and no web page that somebody opened there."""

import http.client
import json
from collections.abc import Iterator

import pytest

from tests.live_gateway import LiveGateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    with LiveGateway(tmp_path_factory.mktemp("open") / "data", "--no-auth", "--no-announce") as running:
        yield running


def ask(gateway: LiveGateway, method: str, path: str, **headers: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read() or b"{}")
    finally:
        connection.close()


CALLS = [
    ("GET", "/v2/hybrid/models"),
    ("GET", "/v2/health/live"),
    ("POST", "/v2/repository/models/net/unload"),
    ("GET", "/nowhere"),
]


@pytest.mark.parametrize(("method", "path"), CALLS)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000", ""])
def test_a_request_with_an_origin_is_refused(gateway, method, path, origin):
    status, answer = ask(gateway, method, path, Origin=origin)
    assert (status, answer["code"]) == (403, "forbidden")
    assert "Origin" in str(answer["error"])


@pytest.mark.parametrize("path", ["/v2/hybrid/channel", "/v2/hybrid/split"])
def test_a_page_opens_no_websocket(gateway, path):
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ=="}
    status, answer = ask(gateway, "GET", path, **upgrade, **key, Origin="https://evil.example")
    assert (status, answer["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8700", "192.168.1.7", "localhost.evil.example", "[::", ""]
)
def test_a_name_that_is_not_this_machine_is_refused(gateway, host):
    status, answer = ask(gateway, "GET", "/v2/hybrid/models", Host=host)
    assert (status, answer["code"]) == (403, "forbidden")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost", "LOCALHOST:8700", "[::1]:8700", "127.8.9.1"])
def test_a_program_on_this_machine_is_answered(gateway, host):
    assert ask(gateway, "GET", "/v2/hybrid/models", Host=host) == (200, {"models": []})


def test_with_tokens_names_and_origins_are_nobodys_business(tmp_path):
    with LiveGateway(tmp_path / "data", "--no-announce") as guarded:
        headers = {"Host": "gateway.example", "Origin": "https://own.example"}
        status, _ = ask(guarded, "GET", "/v2/hybrid/models", Authorization=f"Bearer {guarded.token}", **headers)
        assert status == 200
        assert ask(guarded, "GET", "/v2/hybrid/models", **headers)[0] == 401
