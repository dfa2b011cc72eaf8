"""While the gateway cannot be reached one part knocks, and the others wait their turn: on a loop whose time is ours."""

import asyncio
import random

import msgspec
import pytest

from edge_agent.trust.one_knock import HELD_PATIENCE_S, PATIENCE_S, SPREAD_S, OneKnock
from hybrid.errors import Forbidden, GatewayUnreachable
from hybrid.fleet.messages import IngestAnswer, IngestCall, StateAnswer, StateCall
from tests.reliability.virtual_loop import VirtualLoop

STATE = StateCall(known="", epoch="e" * 32, run="r" * 32)
INGEST = IngestCall(epoch="e" * 32, items=())


class Gateway:
    """Answers or not, and notes when it was asked for what."""

    def __init__(self) -> None:
        self.is_there = True
        self.waits: list[float] = []
        self.asked: list[tuple[str, float]] = []

    async def state(self, call: StateCall) -> StateAnswer:
        self.waits.append(call.wait_s)
        self._asked("state")
        return StateAnswer(generation="g")

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        self._asked("ingest")
        return IngestAnswer()

    async def manifest(self, name: str, version: str) -> tuple[bytes, str | None]:
        raise Forbidden("no")

    async def blob(self, sha256: str, offset: int):
        self._asked("blob")
        yield b"a"
        if not self.is_there:
            raise GatewayUnreachable("cut")
        yield b"b"

    def _asked(self, what: str) -> None:
        self.asked.append((what, asyncio.get_running_loop().time()))
        if not self.is_there and what != "blob":
            raise GatewayUnreachable("nobody")


def run(work) -> None:
    loop = VirtualLoop(1)
    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


def made(seed: int = 1) -> tuple[Gateway, OneKnock]:
    gateway = Gateway()
    return gateway, OneKnock(gateway, rng=random.Random(seed))  # type: ignore[arg-type]


def test_nothing_waits_while_the_way_is_open() -> None:
    async def work() -> None:
        gateway, calls = made()
        await calls.ingest(INGEST)
        with pytest.raises(Forbidden):
            await calls.manifest("m", "1")  # an answer, if a bad one
        await calls.ingest(INGEST)
        assert [at_s for _, at_s in gateway.asked] == [0.0, 0.0]

    run(work)


def test_others_wait_for_the_knock_and_a_moment_more() -> None:
    async def work() -> None:
        gateway, calls = made()
        gateway.is_there = False
        with pytest.raises(GatewayUnreachable):
            await calls.ingest(INGEST)
        waiting = [asyncio.create_task(calls.ingest(INGEST)) for _ in range(5)]
        for _ in range(3):
            await asyncio.sleep(10.0)
            with pytest.raises(GatewayUnreachable):
                await calls.state(STATE)
        assert [what for what, _ in gateway.asked] == ["ingest", "state", "state", "state"]
        assert calls.is_shut
        gateway.is_there = True
        await calls.state(STATE)
        assert not calls.is_shut
        assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)
        times = [at_s - 30.0 for what, at_s in gateway.asked[5:]]
        assert len(set(times)) == 5
        assert max(times) <= SPREAD_S
        await calls.ingest(INGEST)
        assert gateway.asked[-1][1] == max(at_s for _, at_s in gateway.asked)

    run(work)


def test_a_short_break_makes_a_short_wait() -> None:
    async def work() -> None:
        gateway, calls = made()
        gateway.is_there = False
        with pytest.raises(GatewayUnreachable):
            await calls.ingest(INGEST)
        waiting = asyncio.create_task(calls.ingest(INGEST))
        await asyncio.sleep(0.5)
        gateway.is_there = True
        await calls.state(STATE)
        await waiting
        assert gateway.asked[-1][1] <= 1.0

    run(work)


def test_without_anybody_who_follows_they_try_it_themselves() -> None:
    async def work() -> None:
        gateway, calls = made()
        gateway.is_there = False
        for _ in range(2):
            with pytest.raises(GatewayUnreachable):
                await calls.ingest(INGEST)
        assert [at_s for _, at_s in gateway.asked] == [0.0, PATIENCE_S]

    run(work)


def test_a_knock_is_answered_at_once_and_only_then_polls_are_held() -> None:
    async def work() -> None:
        gateway, calls = made()
        gateway.is_there = False
        poll = msgspec.structs.replace(STATE, wait_s=300.0)
        with pytest.raises(GatewayUnreachable):
            await calls.state(poll)
        gateway.is_there = True
        await calls.state(poll)
        await calls.state(poll)
        assert gateway.waits == [300.0, 0.0, 300.0]

    run(work)


def test_a_file_that_breaks_off_shuts_the_way() -> None:
    async def work() -> None:
        gateway, calls = made()
        assert [block async for block in calls.blob("s", 0)] == [b"a", b"b"]
        gateway.is_there = False
        with pytest.raises(GatewayUnreachable):
            [block async for block in calls.blob("s", 0)]
        with pytest.raises(GatewayUnreachable):
            await calls.ingest(INGEST)
        assert asyncio.get_running_loop().time() == PATIENCE_S

    run(work)


def test_one_broken_download_holds_nobody_while_a_poll_is_held() -> None:
    async def work() -> None:
        gateway, calls = made()
        held = asyncio.Event()

        async def state(call: StateCall) -> StateAnswer:
            await held.wait()
            return StateAnswer(generation="g")

        gateway.state = state  # type: ignore[method-assign]
        poll = asyncio.create_task(calls.state(STATE))
        await asyncio.sleep(0)
        gateway.is_there = False
        with pytest.raises(GatewayUnreachable):
            [block async for block in calls.blob("s", 0)]
        gateway.is_there = True
        await calls.ingest(INGEST)
        assert asyncio.get_running_loop().time() == 0.0
        gateway.is_there = False
        with pytest.raises(GatewayUnreachable):
            await calls.ingest(INGEST)
        gateway.is_there = True
        await calls.ingest(INGEST)
        assert asyncio.get_running_loop().time() == HELD_PATIENCE_S, "nobody knocks while the poll is held"
        held.set()
        await poll

    run(work)
