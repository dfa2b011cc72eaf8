"""Announcing and listening over real multicast DNS on loopback."""

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from zeroconf import ServiceInfo, Zeroconf

from hybrid.discovery.announce import Announcer
from hybrid.discovery.browse import Browser
from hybrid.discovery.candidate import SERVICE_TYPE, Candidate
from hybrid.discovery.multicast import NetworkFollower

LOOPBACK = ("127.0.0.1",)
PATIENCE_S = 20.0


class Ears:
    """A browser on loopback and a way to wait for what it hears."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.browser = Browser(self._on_change, interfaces=LOOPBACK, poll_s=0.2)

    def _on_change(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, enough: Callable[[tuple[Candidate, ...]], bool]) -> tuple[Candidate, ...]:
        with self._changed:
            assert self._changed.wait_for(lambda: enough(self.browser.candidates()), PATIENCE_S), (
                self.browser.candidates()
            )
        return self.browser.candidates()


@pytest.fixture
def ears() -> Iterator[Ears]:
    made = Ears()
    made.browser.start()
    yield made
    made.browser.close()


def announcer(name: str, gateway_id: str, port: int = 8700, *, tls: bool = True) -> Announcer:
    properties = {"version": "1", "fp": "0011223344556677", "id": gateway_id, "path": "/"}
    return Announcer(name=name, port=port, tls=tls, properties=properties, host="127.0.0.1", poll_s=0.2)


def by_id(candidates: tuple[Candidate, ...], *gateway_ids: str) -> list[Candidate]:
    return [candidate for wanted in gateway_ids for candidate in candidates if candidate.gateway_id == wanted]


async def test_a_gateway_is_heard_and_says_farewell(ears: Ears, blocking_calls_fail: None) -> None:
    gateway_id = secrets.token_hex(8)
    made = announcer(f"Büro {gateway_id}", gateway_id)
    await made.start()
    candidates = await asyncio.to_thread(ears.wait, lambda heard: len(by_id(heard, gateway_id)) == 1)
    assert by_id(candidates, gateway_id) == [
        Candidate(
            name=made.name,
            gateway_id=gateway_id,
            addresses=("127.0.0.1",),
            port=8700,
            tls=True,
            version="1",
            fingerprint="0011223344556677",
        )
    ]
    assert await asyncio.to_thread(made.announced.wait, PATIENCE_S)
    await made.close()
    assert not made.announced.is_set()
    await asyncio.to_thread(ears.wait, lambda heard: by_id(heard, gateway_id) == [])


async def test_a_listener_that_comes_later_hears_it_too() -> None:
    gateway_id = secrets.token_hex(8)
    made = announcer(f"gw {gateway_id}", gateway_id)
    await made.start()
    assert await asyncio.to_thread(made.announced.wait, PATIENCE_S)
    late = Ears()
    late.browser.start()
    await asyncio.to_thread(late.wait, lambda heard: len(by_id(heard, gateway_id)) == 1)
    await asyncio.to_thread(late.browser.close)
    await made.close()


async def test_gateways_of_one_name_that_start_at_once_are_all_heard(ears: Ears) -> None:
    ids = [secrets.token_hex(8) for _ in range(5)]
    made = [announcer("raspberrypi", gateway_id, 8700 + number) for number, gateway_id in enumerate(ids)]
    await asyncio.gather(*(each.start() for each in made))
    heard = await asyncio.to_thread(ears.wait, lambda heard: len(by_id(heard, *ids)) == len(ids))
    assert [candidate.port for candidate in by_id(heard, *ids)] == [8700, 8701, 8702, 8703, 8704]
    assert len({each.name for each in made}) == len(ids)
    assert all(each.name.startswith("raspberrypi [") for each in made)
    await asyncio.gather(*(each.close() for each in made))


def test_a_name_stays_the_same_from_start_to_start_and_fits_a_label() -> None:
    assert announcer("gw", "aa").name == announcer("gw", "aa").name
    assert announcer("gw", "aa").name != announcer("gw", "bb").name != announcer("gw", "bb", 8701).name
    for name in ("", "ä" * 100, "a.b.c", "line\nbreak", "." * 80):
        label = announcer(name, "aa").name
        assert 0 < len(label.encode()) <= 63
        assert label.isprintable()
        assert "." not in label


async def test_a_rogue_that_takes_a_name_does_not_hide_its_owner(ears: Ears) -> None:
    honest_id, rogue_id = secrets.token_hex(8), secrets.token_hex(8)
    honest = announcer(f"gw {honest_id}", honest_id, 8700)
    await honest.start()
    await asyncio.to_thread(ears.wait, lambda heard: len(by_id(heard, honest_id)) == 1)

    def intrude() -> Zeroconf:
        endpoint = Zeroconf(interfaces=["127.0.0.1"])
        info = ServiceInfo(
            SERVICE_TYPE,
            f"{honest.name}.{SERVICE_TYPE}",
            port=6666,
            properties={"tls": "1", "id": rogue_id},
            server="rogue.local.",
            parsed_addresses=["127.0.0.1"],
        )
        endpoint.register_service(info, cooperating_responders=True)  # no probe: it takes what it wants
        return endpoint

    rogue = await asyncio.to_thread(intrude)
    heard = await asyncio.to_thread(ears.wait, lambda heard: len(by_id(heard, honest_id, rogue_id)) == 2)
    assert {candidate.port for candidate in by_id(heard, honest_id, rogue_id)} == {8700, 6666}
    await asyncio.to_thread(rogue.close)
    await honest.close()


async def test_a_name_without_records_holds_nobody_up(ears: Ears) -> None:
    """Pointers that lead nowhere are asked for in the background, while a real gateway is heard at once."""
    gateway_id = secrets.token_hex(8)

    def lie() -> Zeroconf:
        from zeroconf import DNSOutgoing, DNSPointer
        from zeroconf.const import _CLASS_IN, _FLAGS_AA, _FLAGS_QR_RESPONSE, _TYPE_PTR

        endpoint = Zeroconf(interfaces=["127.0.0.1"])
        answer = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
        for number in range(100):
            alias = f"nowhere {gateway_id} {number}.{SERVICE_TYPE}"
            answer.add_answer_at_time(DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 120, alias), 0)
        endpoint.send(answer)
        return endpoint

    liar = await asyncio.to_thread(lie)
    made = announcer(f"gw {gateway_id}", gateway_id)
    await made.start()
    heard = await asyncio.to_thread(ears.wait, lambda heard: len(by_id(heard, gateway_id)) == 1)
    assert not [candidate for candidate in heard if "nowhere" in candidate.name]
    await made.close()
    await asyncio.to_thread(liar.close)


class Tenant:
    """Notes what happens to its endpoint."""

    def __init__(self) -> None:
        self.story: list[str] = []
        self.happened = threading.Condition()
        self.fails = 0

    def wanted(self, present: tuple[str, ...]) -> tuple[str, ...]:
        return present

    def opened(self, endpoint: Zeroconf, present: tuple[str, ...]) -> None:
        with self.happened:
            self.story.append("opened " + ",".join(present))
            self.happened.notify_all()
            if self.fails:
                self.fails -= 1
                raise OSError("the network is not ready")

    def closing(self, endpoint: Zeroconf) -> None:
        with self.happened:
            self.story.append("closing")
            self.happened.notify_all()

    def wait(self, story: list[str]) -> None:
        with self.happened:
            assert self.happened.wait_for(lambda: self.story == story, PATIENCE_S), self.story


def test_the_endpoint_follows_the_addresses() -> None:
    present: list[tuple[str, ...]] = [()]
    tenant = Tenant()
    follower = NetworkFollower(tenant, poll_s=0.02, look=lambda: present[0])
    follower.start()
    present[0] = ("127.0.0.1",)
    tenant.wait(["opened 127.0.0.1"])
    present[0] = ("127.0.0.1", "127.0.0.2")
    tenant.wait(["opened 127.0.0.1", "closing", "opened 127.0.0.1,127.0.0.2"])
    present[0] = ()
    tenant.wait(["opened 127.0.0.1", "closing", "opened 127.0.0.1,127.0.0.2", "closing"])
    follower.close()
    assert tenant.story[-1] == "closing"


def test_a_network_that_is_not_ready_is_tried_again() -> None:
    tenant = Tenant()
    tenant.fails = 1
    follower = NetworkFollower(tenant, poll_s=0.02, look=lambda: ("127.0.0.1",))
    follower.start()
    tenant.wait(["opened 127.0.0.1", "closing", "opened 127.0.0.1"])
    follower.close()


def test_a_moment_without_knowledge_changes_nothing() -> None:
    tenant = Tenant()
    looks: list[int] = []
    enough = threading.Event()

    def look() -> tuple[str, ...]:
        looks.append(1)
        if len(looks) == 2:
            raise OSError("no such device")
        if len(looks) > 4:
            enough.set()
        return ("127.0.0.1",)

    follower = NetworkFollower(tenant, poll_s=0.02, look=look)
    follower.start()
    assert enough.wait(PATIENCE_S)
    assert tenant.story == ["opened 127.0.0.1"]
    follower.close()


def test_an_address_that_left_meanwhile_is_tried_again() -> None:
    tenant = Tenant()
    addresses = iter([("203.0.113.77",), ("203.0.113.77",)])
    follower = NetworkFollower(tenant, poll_s=0.02, look=lambda: next(addresses, ("127.0.0.1",)))
    follower.start()
    with tenant.happened:
        assert tenant.happened.wait_for(lambda: "opened 127.0.0.1" in tenant.story, PATIENCE_S), tenant.story
    follower.close()


def test_closing_is_quick_and_may_be_repeated() -> None:
    browser = Browser(interfaces=LOOPBACK)
    browser.start()
    began_s = time.monotonic()
    browser.close()
    browser.close()
    assert time.monotonic() - began_s < 5
    Browser(interfaces=LOOPBACK).close()  # one that was never started
