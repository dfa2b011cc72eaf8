"""A box's connections to its gateway: used again, and pinned to the certificate that was met."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.fleet.test_over_tls import enrolled
from tests.fleet_lab import FleetServer, fleet_server

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FleetServer]:
    async with fleet_server(tmp_path / "gateway") as running:
        yield running


async def test_calls_one_after_the_other_share_a_connection(
    server: FleetServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    connect = aiohttp.TCPConnector._create_connection

    async def counted(self: aiohttp.TCPConnector, *args: object, **more: object) -> object:
        made.append(args)
        return await connect(self, *args, **more)  # type: ignore[arg-type]

    access = await enrolled(tmp_path / "box", server.token())
    await access.link.renew()
    monkeypatch.setattr(aiohttp.TCPConnector, "_create_connection", counted)
    for _ in range(5):
        async with access.link.call("GET", "/v2/hybrid/models") as response:
            assert response.status == 200
            await response.read()
    assert len(made) <= 1, "one TLS handshake for all of them, if any"
    await access.link.close()
