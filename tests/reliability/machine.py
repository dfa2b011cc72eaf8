"""A simulated machine: a disk that outlives its programs, one program at a time, and the ways in which it ends."""

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from tests.reliability.history import History
from tests.reliability.page_cache import Image
from tests.reliability.simulated_disk import SimulatedDisk
from tests.reliability.simulated_sqlite import Connect, connecting
from tests.reliability.virtual_loop import NODE, Node, PowerCut, VirtualLoop

DATA = Path("/data")
BEGUN_S = 1_700_000_000.0
"""The true time when a run begins."""

RESTART_S = (0.2, 20.0)


class Machine:
    """See the module; a gateway's or a box's gives `program`.

    Attributes:
        image: its disk.
        disk, connect, node: of the life that runs; None while it is down.
        life: how many there were.
        clock_error_s: by which its wall clock is wrong.
        is_held: nothing starts it again but `release`.
    """

    def __init__(self, name: str, loop: VirtualLoop, rng: Random, history: History) -> None:
        self.name, self.loop, self.rng, self.history = name, loop, rng, history
        self.image = Image()
        self.disk: SimulatedDisk | None = None
        self.connect: Connect | None = None
        self.node: Node | None = None
        self.life = 0
        self.clock_error_s = 0.0
        self.is_held = False
        self.on_start: Callable[[], None] = lambda: None
        self._mounts = ExitStack()

    def program(self) -> Coroutine[Any, Any, None]:
        """What runs on it."""
        raise NotImplementedError

    def wall_s(self) -> float:
        """Its wall clock."""
        return BEGUN_S + self.loop.now_s + self.clock_error_s

    @property
    def is_up(self) -> bool:
        return self.node is not None and not self.node.is_dead

    def start(self) -> None:
        """Begin a life."""
        if self.is_up:
            return
        self.life += 1
        self.disk = SimulatedDisk(self.image, Random(self.rng.random()))
        self.connect = self._mounts.enter_context(connecting(self.disk))
        self.node = Node(f"{self.name}.{self.life}", self.rng.uniform(5, 5000), self.rng.choice((0.0005, 0.002, 0.02)))
        self.history.add(self.name, "starts", life=self.life)
        self.on_start()
        self.loop.start(self.node, self._live(self.node))

    async def _live(self, node: Node) -> None:
        try:
            await self.program()
        except PowerCut:
            return
        except Exception as exc:  # noqa: BLE001 (what ends a process is told, whatever it is)
            self.history.add(self.name, "crashes", error=f"{type(exc).__name__}: {exc}"[:300])
        if not node.is_dead:
            self._outside(self.end, "exit")

    def end(self, how: str) -> None:
        """End the life that runs: `kill` or `exit` leave the disk as it is, `power` leaves what was synced."""
        if not self.is_up:
            return
        assert self.node is not None
        assert self.disk is not None
        self.history.add(self.name, "ends", how=how)
        self.loop.kill(self.node)
        self.disk.is_dead = True
        self._bury(how)

    def cut_within(self, n_operations: int, how: str) -> None:
        """End the life at the n-th disk operation from now."""
        if not self.is_up:
            return
        node, disk = self.node, self.disk
        assert node is not None
        assert disk is not None

        def cut() -> None:
            self.history.add(self.name, "ends", how=f"{how} in a disk operation")
            self.loop.kill(node)
            self._outside(self._bury, how)

        disk.on_cut = cut
        disk.cut_after = n_operations

    def _bury(self, how: str) -> None:
        self._mounts.close()
        self._mounts = ExitStack()
        if how == "power":
            self.image.cut_power(self.rng)
        self.node = self.disk = self.connect = None
        if not self.is_held:
            self._outside(self.loop.call_later, self.rng.uniform(*RESTART_S), self._restart)

    def _restart(self) -> None:
        if not self.is_held:
            self.start()

    def release(self) -> None:
        """Start it again, and from now on after every end."""
        self.is_held = False
        self.start()

    def _outside(self, call: Callable, *words: Any) -> None:
        """Later, by nobody's process."""
        token = NODE.set(None)
        try:
            if call == self.loop.call_later:
                call(*words)
            else:
                self.loop.call_soon(call, *words)
        finally:
            NODE.reset(token)
