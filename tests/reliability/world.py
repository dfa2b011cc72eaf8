"""One seed's world: a gateway, boxes, links, faults for a while, then none; what was promised is looked at."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.reliability.box import MODEL, Box
from tests.reliability.checks import check_end
from tests.reliability.gateway import Gateway, KnownBox
from tests.reliability.history import History
from tests.reliability.publishing import CHARACTERS, Published, published
from tests.reliability.simulated_link import Link, Server
from tests.reliability.swarm import FAULTS, draw
from tests.reliability.virtual_loop import Stuck, VirtualLoop

CONVERGED_S = 900.0
"""After the last fault everything is as it should be within so much virtual time."""


@dataclass(frozen=True)
class Outcome:
    """What a seed gave."""

    seed: int
    digest: str
    broken: tuple[str, ...]
    history: History
    n_steps: int
    virtual_s: float
    faults: tuple[str, ...]


class World:
    """See the module."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(f"world {seed}")
        self.loop = VirtualLoop(seed)
        self.history = History(self.loop)
        names = [f"box{number}" for number in range(1, 1 + self.rng.choice((1, 1, 2)))]
        server = Server()
        self.gateway = Gateway(self.loop, self._fork(), self.history, server, [KnownBox(n, n) for n in names])
        self.boxes = [
            Box(n, self.loop, self._fork(), self.history, Link(self.loop, server, self._fork()), self._known)
            for n in names
        ]
        self.faults = draw(self.rng)
        self.length_s = self.rng.choice((60.0, 100.0, 180.0))
        self.fault_every_s = self.rng.choice((5.0, 15.0, 40.0))
        self.wanted: Published | None = None
        self._sequence = 0
        self._healed = asyncio.Event()

    @property
    def _known(self) -> dict[str, Published]:
        return self.gateway.catalogue.by_digest

    def _fork(self) -> Random:
        return Random(self.rng.random())

    async def rest(self, seconds: float) -> None:
        """Let a fault last, until all faults end."""
        try:
            async with asyncio.timeout(seconds):
                await self._healed.wait()
        except TimeoutError:
            pass

    async def live(self) -> None:
        """All of it."""
        self.gateway.start()
        for box in self.boxes:
            self.loop.call_later(self.rng.uniform(0, 3), box.start)
        await asyncio.sleep(5)
        await self._assign("good")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._operate())
            group.create_task(self._disturb(group))
        await self._heal()
        for _ in range(60):
            await asyncio.sleep(1)
            if await self._assign("good"):
                break
        converged_s = await self._converge()
        check_end(self, converged_s)
        self.history.is_closed = True

    async def _operate(self) -> None:
        rng = self._fork()
        while self.loop.now_s < self.length_s:
            await self.rest(rng.uniform(10, 60))
            if rng.random() < 0.7:
                await self._assign(rng.choice(CHARACTERS))

    async def _assign(self, character: str) -> bool:
        self._sequence += 1
        version = published(MODEL, self._sequence, character)
        self.history.add("operator", "assigns", version=version.version, character=character)
        is_assigned = await self.gateway.assign(version)
        if is_assigned:
            self.wanted = version
        return is_assigned

    async def _disturb(self, group: asyncio.TaskGroup) -> None:
        rng, names = self._fork(), sorted(self.faults)
        while names and self.loop.now_s < self.length_s:
            await self.rest(rng.expovariate(1 / self.fault_every_s))
            name = rng.choices(names, [self.faults[name] for name in names])[0]
            self.history.add("fault", name)
            group.create_task(FAULTS[name](self, Random(rng.random())))
        await self.rest(max(0.0, self.length_s - self.loop.now_s))
        self._healed.set()

    async def _heal(self) -> None:
        self.history.add("fault", "all over")
        for machine in (self.gateway, *self.boxes):
            if machine.disk is not None:
                machine.disk.cut_after = None
            machine.release()

    async def _converge(self) -> float | None:
        """Seconds until every box is as it should be; None where that took too long."""
        begun_s = self.loop.now_s
        while self.loop.now_s - begun_s < CONVERGED_S:
            if all(self._is_well(box) for box in self.boxes):
                return self.loop.now_s - begun_s
            await asyncio.sleep(2)
        return None

    def _is_well(self, box: Box) -> bool:
        if box.outbox is None or box.install is None or self.wanted is None:
            return False
        installed = {one.name: one for one in box.install.installed()}
        mine = installed.get(MODEL)
        has_model = (
            mine is not None and mine.artifact_digest == self.wanted.digest and mine.phase in ("committed", "trial")
        )
        box.puts_every_s = 1e9  # its program brings nothing more
        return has_model and box.outbox.store.ledger.n_items == 0


def play(seed: int, prepare: Callable[[World], None] = lambda world: None) -> Outcome:
    """Run a seed to its end."""
    world = World(seed)
    prepare(world)
    try:
        world.loop.run(world.live())
    except Stuck as exc:
        world.history.breach("P5", f"deadlock: {exc}")
    for told in world.loop.failures:
        world.history.breach("code", f"{told.get('message')}: {told.get('exception')!r}")
    world.history.is_closed = True
    return Outcome(
        seed,
        world.history.digest,
        tuple(world.history.broken),
        world.history,
        world.loop.n_steps,
        world.loop.now_s,
        tuple(sorted(world.faults)),
    )
