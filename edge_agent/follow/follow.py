"""The part that asks the gateway what this box should be, keeps the answer, and hands it to the installation.

Design: full jitter on everything that repeats, so that a thousand boxes that were cut off together do not come back
together. What the box is told is on its disk before it is acted on, and acted on before the network is asked.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import msgspec

from edge_agent.disk import Disk
from edge_agent.follow.desired import Desired, DesiredFile
from edge_agent.follow.imports import TRUST, Imported, Imports, combined
from edge_agent.install.install import Install
from edge_agent.install.shelf import on_disk
from edge_agent.part import Problem
from hybrid.errors import CorruptContent, HybridError, LinkError, NotAdmitted, StorageError, Unauthenticated
from hybrid.fleet.calls import FleetCalls
from hybrid.fleet.messages import Assigned, Health, StateAnswer, StateCall

_log = logging.getLogger("hybrid.agent.follow")

WAIT_S: Final = 240.0
"""How long the gateway may hold a call that has no news."""

UNREADY_WAIT_S: Final = 20.0
"""The same where the box said that it is not ready, as it does while it starts: when it is, it is to be told soon."""

STARTING_S: Final = 600.0
"""So long after the start; a box that is not ready for longer asks no more often than others."""

_GRACE_S: Final = 30.0
_FIRST_S: Final = 1.0
_MOST_S: Final = 60.0
_MOST_POLL_S: Final = 3600.0
_LOOK_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The gateway, as following it needs it.

    Attributes:
        calls: the fleet's calls; None while the box belongs nowhere.
        epoch, run: of the box, as the calls tell them.
        trust_sequence: of the newest trust bundle here; -1 for none.
        take_trust: checks and keeps a newer bundle.
        health: how the box is.
    """

    calls: Callable[[], FleetCalls | None]
    epoch: Callable[[], str]
    run: str
    trust_sequence: Callable[[], int]
    take_trust: Callable[[bytes], Awaitable[object]]
    health: Callable[[], Health | None] = lambda: None


class Follow:
    """See the module; a `Part`.

    Args:
        data: the agent's folder.
        disk: it lies on.
        leader: the gateway.
        install: makes it so.
        rng: for pauses.
        now_s: wall clock.
    """

    name = "follow"

    def __init__(
        self,
        data: Path,
        disk: Disk,
        *,
        leader: Leader,
        install: Install,
        rng: Random,
        now_s: Callable[[], float],
    ) -> None:
        self._disk, self._leader, self._install, self._rng = disk, leader, install, rng
        self._file, self.imports = DesiredFile(data, disk, now_s), Imports(data, disk)
        self.desired: Desired | None = None
        self._models: tuple[Assigned, ...] | None = None
        self._n_failures = 0
        self._trouble: HybridError | None = None
        self._heard_s: float | None = None
        self._known = ""
        self._began_s = float("-inf")
        self._applying = asyncio.Lock()

    def problems(self) -> Sequence[Problem]:
        """See `Part`."""
        if self._trouble is None or isinstance(self._trouble, LinkError | NotAdmitted | Unauthenticated):
            return ()  # how the box stands with its gateway, its access tells
        do = "Nothing: it is tried again by itself, and what is installed goes on."
        return (Problem(code=self._trouble.code, what=f"the desired state: {self._trouble}", do=do),)

    def status(self) -> object:
        """See `Part`."""
        desired = self.desired or Desired()
        now_s = asyncio.get_running_loop().time()
        return {
            "generation": desired.generation,
            "tags": desired.tags,
            "assigned": [msgspec.structs.asdict(assigned) for assigned in self._models or ()],
            "heard_s_ago": None if self._heard_s is None else round(now_s - self._heard_s, 1),
            "n_failures": self._n_failures,
        }

    async def run(self) -> None:
        """See `Part`."""
        await self.start()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._poll(), name="desired state")
            group.create_task(self._look_for_imports(), name="imports")

    async def start(self) -> None:
        """Take up what was wanted last, without asking anybody."""
        if self.desired is None:
            try:
                await on_disk(self.imports.sweep)
                self.desired = await on_disk(self._file.load)
            except StorageError as exc:
                self._trouble = exc
            self._known = self.desired.generation if self.desired is not None else ""
        await self._apply()

    async def _poll(self) -> None:
        await self._install.begun.wait()
        self._began_s = asyncio.get_running_loop().time()
        while True:
            await self._rest(await self._ask())

    async def _ask(self) -> float:
        """One call; gives the upper end of the pause after it."""
        calls = self._leader.calls()
        if calls is None:
            return _LOOK_S
        health = self._leader.health()
        is_starting = asyncio.get_running_loop().time() - self._began_s < STARTING_S
        wait_s = UNREADY_WAIT_S if is_starting and health is not None and not health.ready else WAIT_S
        call = StateCall(
            known=self._known,
            epoch=self._leader.epoch(),
            run=self._leader.run,
            wait_s=wait_s,
            trust_sequence=self._leader.trust_sequence(),
            installed=self._install.installed(),
            health=health,
        )
        try:
            async with asyncio.timeout(WAIT_S + _GRACE_S):
                answer = await calls.state(call)
            await self._take(answer)
        except TimeoutError:
            _log.info("follow.silent after_s=%s", WAIT_S + _GRACE_S)
        except HybridError as exc:
            self._trouble = exc
            asked_s = float(exc.fields.get("retry_after_s", 0.0) or 0.0)
            if asked_s:
                await asyncio.sleep(min(asked_s, _MOST_POLL_S))
        else:
            self._n_failures, self._trouble = 0, None
            return min(max(answer.poll_after_s, 0.0), _MOST_POLL_S)
        self._n_failures += 1
        return min(_FIRST_S * 2.0 ** min(self._n_failures - 1, 16), _MOST_S)

    async def _rest(self, bound_s: float) -> None:
        """Full jitter: anything between nothing and the bound."""
        await asyncio.sleep(self._rng.random() * bound_s)

    async def _take(self, answer: StateAnswer) -> None:
        self._heard_s = asyncio.get_running_loop().time()
        if answer.trust is not None:
            await self._take_trust(answer.trust)
        if answer.admission != "admitted" or answer.generation == self._known:
            return  # one that is not admitted keeps what it has
        desired = Desired(generation=answer.generation, models=answer.models, tags=answer.tags)
        try:
            await on_disk(self._file.save, desired)
        except StorageError as exc:  # a full disk: it holds until the next start, and the gateway is asked again then
            _log.warning("follow.not_kept %s", exc)
        self.desired = desired
        _log.info("follow.desired generation=%s models=%d", answer.generation, len(answer.models))
        await self._apply()
        self._known = answer.generation  # what could not be handed on is asked for again

    async def _take_trust(self, bundle: bytes) -> bool:
        """Whether it was taken or refused; a disk that could not keep it says neither."""
        try:
            await self._leader.take_trust(bundle)
        except HybridError as exc:
            _log.warning("follow.trust_refused code=%s %s", exc.code, exc)
            return isinstance(exc, CorruptContent) or not isinstance(exc, StorageError)
        self._install.hurry("forbidden")
        return True

    async def _look_for_imports(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            names = await on_disk(lambda: tuple(self._disk.names(self.imports.folder)))
            if any(not name.startswith(".") for name in names):
                await self._apply()

    async def _apply(self) -> None:
        """Hand on what the gateway and the imports want together; nothing is taken away before anything was heard."""
        async with self._applying:  # else who began with an older state could end last
            await self._hand_on()

    async def _hand_on(self) -> None:
        desired = self.desired
        await self._take_imported_trust()
        imports = await on_disk(self.imports.all)
        if desired is None and not imports:
            return
        now = desired or Desired()
        models, counting = combined(now.models, now.generation, imports)
        if desired is None:
            await self._install.begun.wait()
            named = {assigned.name for assigned in models}
            models += [kept for kept in self._install.kept() if kept.name not in named]
        await self._clean_imports(models, counting)
        if self._models != tuple(models):
            self._models = tuple(models)
            self._install.assign(models)

    async def _clean_imports(self, models: Sequence[Assigned], counting: Sequence[Imported]) -> None:
        if not self._install.begun.is_set():
            return
        wanted = {assigned.artifact_digest for assigned in models}
        installed = {one.artifact_digest for one in self._install.installed()}
        try:
            await on_disk(self.imports.clean, counting, wanted, installed)
        except StorageError as exc:
            self._trouble = exc

    async def _take_imported_trust(self) -> None:
        path = self.imports.folder / TRUST
        if self._disk.size(path) < 0:
            return
        try:
            if await self._take_trust(await on_disk(self._disk.read, path)):
                await on_disk(self._disk.remove, path)
        except StorageError as exc:
            self._trouble = exc
