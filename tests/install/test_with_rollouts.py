"""Real installations under a gateway's real steering, on virtual time: what fails is halted and gone everywhere."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.rollouts.rollout import Plan
from cloud_gateway.fleet.steering.steering import Neighbours, Steering
from edge_agent.follow.follow import Follow, Leader
from hybrid.fleet.messages import StateAnswer, StateCall, Trial
from tests.install.box_lab import DATA, Box, Fleet, Made, Shelf
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.virtual_loop import VirtualLoop
from tests.rollouts.fleet_making import Boxes, box

N_BOXES = 8
TERMS = Terms(report_within_s=600.0, trial=Trial(n_good=3, most_s=30.0))


class Field:
    """A gateway's steering and boxes that follow it."""

    def __init__(self, folder: Path, fleet: Fleet, versions: list[Made]) -> None:
        self.versions, self.fleet = versions, fleet
        self.registry = Boxes(*(box(number) for number in range(N_BOXES)))
        self.alarms: list[tuple] = []
        loop = asyncio.get_running_loop()
        around = Neighbours(
            boxes=self.registry, versions=self, raise_alarm=lambda *alarm: self.alarms.append(alarm), trust=lambda: None
        )
        self.steering = Steering(folder / "rollouts.db", around, rng=Random(1), now_s=lambda: 1.7e9 + loop.time())
        self.boxes = [self._box(number) for number in range(N_BOXES)]

    def resolve(self, name: str, version: str | None = None) -> SimpleNamespace:
        made = self.versions[int(version or "1") - 1]
        return SimpleNamespace(version=made.manifest.version, artifact_digest=made.digest)

    def _box(self, number: int) -> Box:
        made = Box(
            SimulatedDisk(Image(), Random(number)), Shelf(*self.versions), self.fleet.trust(), rng=Random(number)
        )
        made.host.n_good_a_look = 1
        return made

    async def live(self, number: int) -> None:
        found, box_id, steering = self.boxes[number], f"{number:032x}", self.steering

        class Calls:
            async def state(self, call: StateCall) -> StateAnswer:
                steering.seen(box_id)
                return await steering.state(box_id, call)

        async def take_trust(bundle: bytes) -> None:
            """Nobody sends one here."""

        leader = Leader(
            calls=Calls, epoch=lambda: "e" * 32, run="r" * 32, trust_sequence=lambda: -1, take_trust=take_trust
        )  # type: ignore[arg-type]
        follow = Follow(
            DATA, found.disk, leader=leader, install=found.install, rng=Random(number), now_s=lambda: found.clock_s
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(found.install.run())
            group.create_task(follow.run())

    async def until(self, what: Callable[[Box], bool], within_s: float = 4000.0) -> None:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while not all(map(what, self.boxes)):
            assert loop.time() < deadline_s, [(found.host.version(), found.told().phase) for found in self.boxes]
            await asyncio.sleep(5.0)

    def plan(self) -> Plan:
        return Plan(
            id="",
            model="net",
            version="2",
            artifact_digest="",
            stages=(0.3, 1.0),
            soak_s=60.0,
            terms=TERMS,
            made_by="me",
        )


def state_of(field: Field, rollout) -> str:
    return field.steering.ledger.rollouts[rollout.plan.id].course.state


def is_committed(found: Box) -> bool:
    return found.host.version() == "1" and found.told().phase == "committed"


def run(
    folder: Path, fleet: Fleet, versions: list[Made], story: Callable, *, first: Terms = TERMS, begun=is_committed
) -> None:
    async def all_of_it() -> None:
        field = Field(folder, fleet, versions)
        tasks = [asyncio.ensure_future(field.steering.run())]
        tasks += [asyncio.ensure_future(field.live(number)) for number in range(N_BOXES)]
        try:
            await field.steering.assign("net", "1", {}, first, "me")
            await field.until(begun)
            await story(field)
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
            field.steering.close()

    VirtualLoop(1).run(all_of_it())


def test_a_version_that_fails_on_trial_halts_its_rollout_and_is_nowhere(
    tmp_path: Path, fleet: Fleet, versions: list[Made]
) -> None:
    async def story(field: Field) -> None:
        for found in field.boxes:
            found.host.fails_runs.add(versions[1].digest)
        rollout = await field.steering.start(field.plan())
        await field.until(lambda found: state_of(field, rollout) == "halted")
        await field.until(lambda found: found.host.version() == "1" and found.told().phase == "committed")
        took = [found for found in field.boxes if "2" in found.host.history]
        assert 0 < len(took) < N_BOXES, "every box took what failed in the first stage"
        assert all(found.host.history == ["1", "2", "1"] for found in took)

    run(tmp_path, fleet, versions, story)


def test_what_was_committed_everywhere_comes_back_from_the_slots(
    tmp_path: Path, fleet: Fleet, versions: list[Made]
) -> None:
    """An operator takes a version back: each box has the one before, needs no signature and fetches nothing."""

    async def story(field: Field) -> None:
        rollout = await field.steering.start(field.plan())
        await field.until(lambda found: found.host.version() == "2" and found.told().phase == "committed", 20_000.0)
        sent = [found.shelf.n_sent_bytes for found in field.boxes]
        await field.until(lambda found: state_of(field, rollout) == "completed", 20_000.0)
        await field.steering.assign("net", "1", {}, TERMS, "me")
        await field.until(lambda found: found.host.version() == "1" and found.told().phase == "committed")
        assert [found.shelf.n_sent_bytes for found in field.boxes] == sent

    run(tmp_path, fleet, versions, story)
