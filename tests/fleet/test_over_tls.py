"""Boxes and their gateway over real TLS: met, pinned, met anew; rogues and relays get a nonce and nothing else."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from edge_agent.disk import RealDisk
from edge_agent.trust.access import Access
from edge_agent.trust.enrolling import enroll
from hybrid.errors import (
    Conflict,
    DiskFull,
    Forbidden,
    GatewayUnreachable,
    GatewayUntrusted,
    LinkError,
    NotAdmitted,
    NotFound,
)
from hybrid.fleet.enrolment_token import EnrolmentToken
from tests.enrolled_box import HERE, access_of
from tests.fleet_lab import FleetServer, SteppedWall, fleet_server
from tests.trust_lab import answering, certificate_in, relay

pytestmark = pytest.mark.filterwarnings("ignore::aiohttp.web_exceptions.NotAppKeyWarning")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FleetServer]:
    async with fleet_server(tmp_path / "gateway") as running:
        yield running


async def enrolled(data: Path, token: EnrolmentToken, **settings: object) -> Access:
    access = access_of(data, **settings)
    browse = settings.get("browse")
    await enroll(access.identity, token, time=access.time, name=data.name, browse=browse)
    access._adopt()
    return access


async def test_a_box_comes_in_and_uses_its_token(server: FleetServer, tmp_path: Path) -> None:
    access = await enrolled(tmp_path / "box", server.token(tags={"site": "oslo"}))
    assert access.enrolment is not None
    assert access.enrolment.tags == {"site": "oslo"}
    async with access.link.call("GET", "/v2/hybrid/models") as response:
        assert response.status == 200
    assert access.is_connected
    assert access.problems() == []
    assert 1700 < access.link.renew_in_s() <= 1800
    await access.link.close()


async def test_an_administrators_calls_are_not_for_boxes(server: FleetServer, tmp_path: Path) -> None:
    access = await enrolled(tmp_path / "box", server.token())
    for path in ("boxes", "tokens", "alarms", "trust"):
        with pytest.raises(Forbidden):
            async with access.link.call("GET", f"/v2/hybrid/fleet/{path}"):
                pass
    await access.link.close()


async def test_the_same_box_asks_again_and_a_second_one_is_refused(server: FleetServer, tmp_path: Path) -> None:
    token = server.token()
    await enrolled(tmp_path / "box", token)
    again = await enrolled(tmp_path / "box", token)
    assert len(server.desk.boxes.all()) == 1
    with pytest.raises(Forbidden, match="does not take this enrolment token"):
        await enrolled(tmp_path / "other", token)
    async with fleet_server(tmp_path / "second") as elsewhere:
        with pytest.raises(Conflict, match="another fleet"):
            await enrolled(tmp_path / "box", elsewhere.token())
    await again.link.close()


async def test_a_lost_answer_is_no_lost_box(server: FleetServer, tmp_path: Path) -> None:
    """The gateway has let the box in and its answer never came: single-use token, same key, asked again."""
    token, box = server.token(), access_of(tmp_path / "box")
    server.loses = "/v2/hybrid/fleet/enroll"
    with pytest.raises(LinkError):
        await enroll(box.identity, token, time=box.time)
    assert len(server.desk.boxes.all()) == 1
    assert box.enrolment is None
    again = await enrolled(tmp_path / "box", token)  # a start later
    server.loses = "/v2/hybrid/fleet/access"
    with pytest.raises(LinkError):
        await again.link.renew()
    await again.link.renew()
    assert len(server.desk.boxes.all()) == 1
    assert server.desk.alarms.n_open == 0
    await again.link.close()


async def test_power_that_is_cut_while_a_box_enrols_loses_nothing(server: FleetServer, tmp_path: Path) -> None:
    """At every write: with the same single-use token the same box comes in after the next start."""

    class Cut(RealDisk):
        def __init__(self, left: int) -> None:
            self.left = left

        def replace(self, source: Path, target: Path) -> None:
            if not self.left:
                raise DiskFull("the power is gone")
            self.left -= 1
            super().replace(source, target)

    n_cut = 0
    for left in range(20):
        token, data = server.token(), tmp_path / f"box-{left}"
        dying = Access(data, Cut(left), rng=random.Random(1), machine=HERE)
        try:
            await enroll(dying.identity, token, time=dying.time, name=data.name)
        except DiskFull:
            n_cut += 1
        again = await enrolled(data, token)
        await again.link.renew()
        assert again.problems() == []
        assert len(server.desk.boxes.all()) == left + 1
        await again.link.close()
        if not dying.problems() and dying.enrolment is not None:
            break
    assert 4 <= n_cut < 19


async def test_a_rogue_and_a_relay_get_a_nonce_and_nothing_else(server: FleetServer, tmp_path: Path) -> None:
    token = server.token()
    async with (
        fleet_server(tmp_path / "rogue") as rogue,
        relay(server.port, certificate_in(tmp_path / "own")) as between,
    ):
        for url in (rogue.url, between.url):
            box = access_of(tmp_path / "box")
            with pytest.raises(GatewayUntrusted):
                await enroll(box.identity, token, time=box.time, gateway=url)
            assert box.enrolment is None
        assert set(rogue.asked) == {"/v2/hybrid/fleet/hello"}
        heard = bytes(between.heard)
        assert b"/v2/hybrid/fleet/hello" in heard
        assert heard.count(b"HTTP/1.1\r\n") == 1
        assert token.secret.encode() not in heard
    assert server.desk.boxes.all() == ()


async def test_a_relay_later_gets_neither_token_nor_call(server: FleetServer, tmp_path: Path) -> None:
    """The box was let in; then somebody stands between, with a key of his own, at the very address."""
    access = await enrolled(tmp_path / "box", server.token())
    await access.link.renew()
    text = access.token_source.text
    async with relay(server.port, certificate_in(tmp_path / "own")) as between:
        access._locator.url = between.url  # type: ignore[union-attr]
        access.link.met = None
        with pytest.raises(GatewayUntrusted):
            async with access.link.call("GET", "/v2/hybrid/models"):
                pass
        assert text.encode() not in bytes(between.heard)
        assert b"access" not in bytes(between.heard)
    assert [problem.code for problem in access.problems()] == ["gateway_untrusted"]
    await access.link.close()


async def test_hellos_that_bind_another_key_are_no_proof(server: FleetServer, tmp_path: Path) -> None:
    """A relay that could have hellos made for its own key would be the gateway; one for any other key is not."""
    token = server.token()
    async with fleet_server(tmp_path / "gateway2", proves_as=certificate_in(tmp_path / "other")) as wrong:
        made = wrong.token()
        box = access_of(tmp_path / "box")
        with pytest.raises(GatewayUntrusted, match="did not prove"):
            await enroll(box.identity, made, time=box.time)
    assert token.url == server.url


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"{}"), (200, b"x" * 9000), (404, b""), (302, b""), (200, b"\xff\0")]
)
async def test_what_answers_with_something_else_is_no_gateway(
    server: FleetServer, tmp_path: Path, status: int, body: bytes
) -> None:
    async with answering(status, body, certificate_in(tmp_path / "tls")) as url:
        box = access_of(tmp_path / "box")
        with pytest.raises(LinkError):
            await enroll(box.identity, server.token(), time=box.time, gateway=url)


async def test_plain_http_is_for_this_machine_only(server: FleetServer, tmp_path: Path) -> None:
    box = access_of(tmp_path / "box")
    with pytest.raises(GatewayUntrusted, match="plain HTTP"):
        await enroll(box.identity, server.token(), time=box.time, gateway="http://192.0.2.1:8700")


async def test_a_certificate_renewed_meanwhile_is_met_by_a_new_hello(tmp_path: Path) -> None:
    async with fleet_server(tmp_path / "gateway") as server:
        access = await enrolled(tmp_path / "box", server.token())
        async with access.link.call("GET", "/v2/hybrid/models"):
            pass
        port, text = server.port, access.token_source.text
    async with fleet_server(tmp_path / "gateway", certificate=certificate_in(tmp_path / "new"), port=port) as server:
        async with access.link.call("GET", "/v2/hybrid/models"):
            pass
        assert access.token_source.text == text  # a restart and a new certificate: the token is good all the same
        assert server.asked == ["/v2/hybrid/fleet/hello", "/v2/hybrid/models"]
    await access.link.close()


async def test_a_token_that_ran_out_is_renewed_within_the_call(tmp_path: Path) -> None:
    wall = SteppedWall()
    async with fleet_server(tmp_path / "gateway", wall_s=wall) as server:
        access = await enrolled(tmp_path / "box", server.token(expires_in_s=60.0))
        await access.link.renew()
        wall.at_s += 30 * 86400
        server.asked.clear()
        server.desk.authority._wall_s = wall
        await asyncio.sleep(0)
        async with access.link.call("GET", "/v2/hybrid/models") as response:
            assert response.status == 200
        assert server.asked[-3:] == ["/v2/hybrid/fleet/hello", "/v2/hybrid/fleet/access", "/v2/hybrid/models"]
        assert access.time.now_s() >= wall.at_s
    await access.link.close()


async def test_many_calls_at_once_renew_once(server: FleetServer, tmp_path: Path) -> None:
    access = await enrolled(tmp_path / "box", server.token())

    async def ask() -> int:
        async with access.link.call("GET", "/v2/hybrid/models") as response:
            return response.status

    assert await asyncio.gather(*(ask() for _ in range(20))) == [200] * 20
    assert server.asked.count("/v2/hybrid/fleet/access") == 1
    await access.link.close()


async def test_a_revoked_box_ends_at_once(server: FleetServer, tmp_path: Path) -> None:
    access = await enrolled(tmp_path / "box", server.token())
    async with access.link.call("GET", "/v2/hybrid/models"):
        pass
    assert access.enrolment is not None
    server.desk.revoke(access.enrolment.box_id, "tester")
    with pytest.raises(NotAdmitted, match="revoked"):
        async with access.link.call("GET", "/v2/hybrid/models"):
            pass
    assert access.token_source.text == ""
    assert [problem.code for problem in access.problems()] == ["not_admitted"]
    assert not access.is_connected
    server.desk.admit(access.enrolment.box_id, "tester")
    async with access.link.call("GET", "/v2/hybrid/models"):
        pass
    assert access.problems() == []
    await access.link.close()


async def test_a_cloned_card_on_another_board_is_quarantined_by_real_starts(
    server: FleetServer, tmp_path: Path
) -> None:
    import shutil

    first = await enrolled(tmp_path / "box", server.token())
    await first.link.renew()
    shutil.copytree(tmp_path / "box", tmp_path / "copy")
    import msgspec

    clone = access_of(tmp_path / "copy", machine=msgspec.structs.replace(HERE, serial="board-2"))
    assert clone.epoch != first.epoch
    await clone.link.renew()
    with pytest.raises(NotAdmitted, match="quarantined"):
        await first.link.renew()
    with pytest.raises(NotAdmitted, match="quarantined"):
        async with clone.link.call("GET", "/v2/hybrid/models"):
            pass
    (alarm,) = server.desk.alarms.listed(with_acked=False)
    assert alarm.kind == "clone"
    for access in (first, clone):
        await access.link.close()


async def test_a_token_without_an_address_finds_the_gateway_among_strangers(
    server: FleetServer, tmp_path: Path
) -> None:
    token = server.token(url="")
    async with fleet_server(tmp_path / "rogue") as rogue:
        heard = [rogue.url, "https://127.0.0.1:9", server.url]

        async def browse(listen_s: float) -> Iterable[str]:
            return heard

        access = await enrolled(tmp_path / "box", token, browse=browse)
        assert access.enrolment is not None
        assert (access.enrolment.url, access.enrolment.is_discovered) == (server.url, True)
        assert set(rogue.asked) == {"/v2/hybrid/fleet/hello"}
        heard.remove(server.url)
        nobody = access_of(tmp_path / "second", browse=browse)
        with pytest.raises(GatewayUnreachable, match="no gateway on this network"):
            await enroll(nobody.identity, server.token(url=""), time=nobody.time, browse=browse)
    await access.link.close()


async def test_a_discovered_gateway_that_moved_is_found_again(tmp_path: Path) -> None:
    heard: list[str] = []

    async def browse(listen_s: float) -> Iterable[str]:
        return heard

    async with fleet_server(tmp_path / "gateway") as server:
        heard.append(server.url)
        access = await enrolled(tmp_path / "box", server.token(url=""), browse=browse)
        await access.link.renew()
    heard.clear()
    async with fleet_server(tmp_path / "gateway") as server:
        heard.append(server.url)
        access.token_source.text = ""  # type: ignore[misc]
        await access._once(0)
        assert access.gateway_url == server.url
    again = access_of(tmp_path / "box")
    assert again.enrolment is not None
    assert again.enrolment.url == server.url
    await access.link.close()


async def test_the_part_enrols_with_a_token_that_was_laid_down(server: FleetServer, tmp_path: Path) -> None:
    access = access_of(tmp_path / "box")
    await access._once(0)
    assert [problem.code for problem in access.problems()] == ["not_enrolled"]
    with pytest.raises(NotAdmitted, match="not enrolled"):
        await access.calls.manifest("m", "1")
    laid = tmp_path / "box" / "identity" / "enrolment.token"
    laid.write_text(server.token().text.upper() + "\n")
    running = asyncio.create_task(access.run())
    async with asyncio.timeout(10):
        while not access.is_connected:  # noqa: ASYNC110 (its own words say when)
            await asyncio.sleep(0.01)
    assert access.token_source.text
    assert not laid.exists()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_box_that_shall_ask_nobody_asks_nobody(server: FleetServer, tmp_path: Path) -> None:
    await enrolled(tmp_path / "box", server.token())
    server.asked.clear()
    access = access_of(tmp_path / "box", gateway="none")
    running = asyncio.create_task(access.run())
    with pytest.raises(NotAdmitted):
        await access.calls.manifest("m", "1")
    assert access.enrolment is None
    assert access.problems() == []
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert server.asked == []


async def test_a_box_that_is_enrolled_by_another_process_notices(server: FleetServer, tmp_path: Path) -> None:
    access = access_of(tmp_path / "box")
    await access._once(0)
    other = await enrolled(tmp_path / "box", server.token())
    await access._once(0)
    assert access.enrolment == other.enrolment
    assert access.is_connected
    for one in (access, other):
        await one.link.close()


async def test_a_box_becomes_another_one_or_stays_what_it_is(server: FleetServer, tmp_path: Path) -> None:
    access = await enrolled(tmp_path / "box", server.token())
    assert access.enrolment is not None
    running, before = access_of(tmp_path / "box"), access.enrolment.box_id
    await running._once(0)
    async with fleet_server(tmp_path / "second") as elsewhere:
        token = elsewhere.token()
        elsewhere.loses = "/v2/hybrid/fleet/enroll"
        box = access_of(tmp_path / "box")
        with pytest.raises(LinkError):
            await enroll(box.identity, token, time=box.time, anew=True)
        again = access_of(tmp_path / "box")
        assert again.enrolment == access.enrolment  # it is what it was
        answer = await enroll(again.identity, token, time=again.time, anew=True)
        assert answer.box_id != before
        assert len(elsewhere.desk.boxes.all()) == 1  # the same new key asked twice
        await running._once(0)
        assert running.enrolment is not None
        assert running.enrolment.box_id == answer.box_id
        assert running.is_connected
        assert elsewhere.desk.alarms.n_open == 0
    for one in (access, running):
        await one.link.close()


async def test_a_gateway_that_lost_its_fleet_says_so_and_the_box_goes_on_asking(
    server: FleetServer, tmp_path: Path
) -> None:
    access = await enrolled(tmp_path / "box", server.token())
    server.desk.boxes._by_id = {}
    with pytest.raises(NotFound, match="knows no such box"):
        await access.link.renew()
    pause_s, n_failures = await access._once(3)
    assert (pause_s <= 8.0, n_failures) == (True, 4)
    await access.link.close()
