"""An enrolled box for tests: its folder, its link to a live gateway, everything real."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from edge_agent.disk import RealDisk
from edge_agent.trust.access import Access
from edge_agent.trust.enrolling import enroll
from edge_agent.trust.machine import Machine
from hybrid.fleet.enrolment_token import EnrolmentToken
from tests.live_gateway import LiveGateway

HERE = Machine(serial="board-1", machine_id="m1", addresses=("b8:27:eb:00:00:01",), words="test board")


async def ask(gateway: LiveGateway, method: str, path: str, body: object = None, *, token: str | None = None) -> Any:
    """A call of the administrator's at a gateway: the JSON of its answer, which must be good."""
    headers = {"Authorization": f"Bearer {gateway.token if token is None else token}"}
    async with (
        aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(ssl=False)) as session,
        session.request(method, gateway.url + path, json=body) as response,
    ):
        assert response.status == 200, await response.text()
        return await response.json()


async def make_token(gateway: LiveGateway, **wish: object) -> EnrolmentToken:
    """An enrolment token of a gateway; without a root unless `needs_root` is given."""
    told = await ask(gateway, "POST", "/v2/hybrid/fleet/tokens", {"needs_root": False, "url": gateway.url} | wish)
    return EnrolmentToken.parse(told["token"])


def access_of(data: Path, *, machine: Machine = HERE, **settings: Any) -> Access:
    """The agent's access part over a folder, as a start of the agent makes it."""
    return Access(data, RealDisk(), rng=random.Random(1), machine=machine, **settings)


@asynccontextmanager
async def enrolled_box(
    data: Path, gateway: LiveGateway, *, machine: Machine = HERE, token: EnrolmentToken | None = None, **wish: object
) -> AsyncIterator[Access]:
    """A box that was enrolled at a gateway (or is already, by its folder) and holds an access token.

    `access.calls` are its `FleetCalls`, `access.token_source.text` is its bearer token, `access.identity.key.box_id`
    its id. Use it inside the event loop that made it; `access.run()` is not running, `access.link.renew()` renews.
    """
    access = access_of(data, machine=machine)
    try:
        if access.enrolment is None:
            await enroll(access.identity, token or await make_token(gateway, **wish), time=access.time, name=data.name)
            access._adopt()
        await access.link.renew()
        yield access
    finally:
        await access.link.close()
