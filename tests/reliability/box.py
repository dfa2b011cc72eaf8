"""A simulated box: the real outbox, installation and following, a program that uses them, and what it was promised."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from edge_agent.follow.follow import Follow, Leader
from edge_agent.install.fetching import GatewayFiles
from edge_agent.install.install import Install
from edge_agent.install.means import InstallSettings, Means
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import OutboxLimits
from edge_agent.trust.one_knock import OneKnock
from hybrid.artifact.manifest import Manifest, Variant
from hybrid.artifact.signature import key_id, public_key_of
from hybrid.errors import EngineCrashed, HybridError, ModelInvalid, StorageError
from hybrid.fleet.messages import Installed, Kind
from tests.reliability.history import History
from tests.reliability.live_checks import check_answering, check_refusal
from tests.reliability.machine import DATA, Machine
from tests.reliability.page_cache import Image
from tests.reliability.publishing import PUBLISHER, Published
from tests.reliability.simulated_host import SimulatedHost
from tests.reliability.simulated_link import Link, SimulatedCalls
from tests.reliability.virtual_loop import VirtualLoop

KINDS: tuple[Kind, ...] = ("result", "result", "sample", "telemetry", "report")
LARGE_BYTES = 110_000
"""A body that becomes a file."""

RESERVE_BYTES = 20_000
MODEL = "camera"


@dataclass
class Put:
    """One thing that a program brought to the outbox.

    Attributes:
        epoch, stream, seq: its key, once it was acknowledged; seq -1 before.
        kept_s: when that was; negative before.
    """

    word: str
    kind: Kind
    at_s: float
    life: int
    about: str = ""
    epoch: str = ""
    stream: str = ""
    seq: int = -1
    kept_s: float = -1.0

    @property
    def is_kept(self) -> bool:
        return self.kept_s >= 0.0


async def _take_no_trust(bundle: bytes) -> None:
    raise AssertionError(f"the simulated gateway sends no bundle: {bundle!r}")


def leaves(error: BaseException) -> list[BaseException]:
    """What an exception group holds."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaves(inner)]
    return [error]


class Keys:
    """Whose signatures the box believes."""

    def trusted(self, role: str, /) -> Mapping[str, bytes]:
        public = public_key_of(PUBLISHER)
        return {key_id(public): public} if role == "publisher" else {}


class Box(Machine):
    """See the module.

    Attributes:
        puts: all that its program brought, in order.
        has_committed: a version was committed here once: from then on one answers.
        is_tainted: its disk failed or rotted during this life: reads may have been refused.
        is_rotten: bits of its outbox changed: what lay there may be gone.
        saved: an earlier image of its disk, and when it was taken.
        rolled_back: when its disk was set back, and to when.
    """

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        rng: Random,
        history: History,
        link: Link,
        known: Mapping[str, Published],
    ) -> None:
        super().__init__(name, loop, rng, history)
        self.link, self.known = link, known
        self.puts: list[Put] = []
        self.outbox: Outbox | None = None
        self.install: Install | None = None
        self.host: SimulatedHost | None = None
        self.has_committed = False
        self.is_tainted = self.is_rotten = False
        self.rolled_back: list[tuple[float, float]] = []
        self.saved: tuple[float, Image] | None = None
        self.puts_every_s = rng.choice((2.0, 5.0, 15.0))
        self.boot = 0

    async def program(self) -> None:
        assert self.disk is not None
        calls = OneKnock(SimulatedCalls(self.link, self.name), rng=Random(self.rng.random()))
        outbox = Outbox(
            Place(folder=DATA / "outbox", disk=self.disk, connect=self.connect, wall_s=self.wall_s),
            calls=calls,
            rng=Random(self.rng.random()),
            limits=OutboxLimits(reserve_bytes=RESERVE_BYTES),
        )

        async def report(installed: Installed) -> None:
            await outbox.put("report", msgspec.msgpack.encode(installed), stream="report", about=installed.name)

        self.host = SimulatedHost(self.name, self.disk, self.known, self.history, Random(self.rng.random()))
        install = Install(
            Means(
                data=DATA,
                disk=self.disk,
                host=self.host,
                files=GatewayFiles(lambda: calls, self.disk),
                trust=Keys,
                rng=Random(self.rng.random()),
                now_s=self.wall_s,
                rehearse=self._rehearse,
                report=report,
                has_engine=lambda variant: True,
                settings=InstallSettings(reserve_bytes=RESERVE_BYTES),
            ),
            boot=lambda: str(self.boot),
        )
        leader = Leader(
            calls=lambda: calls,
            epoch=lambda: "0" * 32,
            run=f"{self.rng.getrandbits(128):032x}",
            trust_sequence=lambda: -1,
            take_trust=_take_no_trust,
        )
        follow = Follow(
            DATA, self.disk, leader=leader, install=install, rng=Random(self.rng.random()), now_s=self.wall_s
        )
        self.outbox, self.install = outbox, install
        async with asyncio.TaskGroup() as group:
            group.create_task(self.keep_running("outbox", outbox.run))
            group.create_task(self.keep_running("install", install.run))
            group.create_task(self.keep_running("follow", follow.run))
            group.create_task(self._bring(outbox))
            group.create_task(self._request(install))

    async def keep_running(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a part again after a pause when it fails, as the agent does."""
        while True:
            try:
                await run()
            except Exception as exc:  # noqa: BLE001 (the agent outlives its parts)
                for error in leaves(exc):
                    self.history.add(self.name, "part failed", part=name, error=f"{error!r:.200}")
                    if not isinstance(error, HybridError):
                        frames = traceback.extract_tb(error.__traceback__)
                        ours = [at for at in frames if "/tests/" not in at.filename and "/asyncio/" not in at.filename]
                        where = [f"{at.filename.rpartition('/')[2]}:{at.lineno} {at.name}" for at in ours[-2:]]
                        self.history.breach("code", f"{name} failed with {error!r:.200} at {where}")
            await asyncio.sleep(1.0)

    async def _rehearse(self, folder: Path, manifest: Manifest, variant: Variant) -> None:
        await asyncio.sleep(self.rng.uniform(0.05, 1.0))
        assert self.disk is not None
        try:
            model = self.disk.read(folder / variant.files[0])
        except OSError as exc:
            raise StorageError(f"{folder}: {exc}") from exc
        if model.startswith(b"crashes"):
            raise EngineCrashed("it ended the process that opened it")
        if model.startswith(b"does not open"):
            raise ModelInvalid("this model does not open")

    async def _request(self, install: Install) -> None:
        """A client's requests."""
        await install.begun.wait()
        self.history.add(self.name, "ready")
        rng = Random(self.rng.random())
        while True:
            assert self.host is not None
            check_answering(self, install)
            for name in sorted(self.host.answering):
                try:
                    self.host.request(name)
                except HybridError as exc:
                    self.history.add(self.name, "request failed", code=exc.code)
            await asyncio.sleep(rng.expovariate(0.4))

    async def _bring(self, outbox: Outbox) -> None:
        rng, number = Random(self.rng.random()), 0
        while True:
            await asyncio.sleep(rng.expovariate(1 / self.puts_every_s))
            number += 1
            kind = rng.choice(KINDS)
            about = f"model{rng.randrange(3)}" if kind == "report" else ""
            put = Put(f"{self.name}/{self.life}/{number}", kind, self.loop.now_s, self.life, about)
            self.puts.append(put)
            n_bytes = LARGE_BYTES if rng.random() < 0.05 else rng.randrange(400)
            stream = {"result": f"result/{rng.randrange(2)}", "report": "report/x"}.get(kind, "")
            try:
                kept = await outbox.put(kind, put.word.encode() + b"\0" + bytes(n_bytes), stream=stream, about=about)
            except HybridError as exc:
                self.history.add(self.name, "put refused", word=put.word, code=exc.code)
                check_refusal(self, outbox, exc)
                continue
            put.epoch, put.stream, put.seq, put.kept_s = kept.epoch, kept.stream, kept.seq, self.loop.now_s
            self.history.add(self.name, "put kept", word=put.word, kind=kind, stream=kept.stream, seq=kept.seq)

    def _bury(self, how: str) -> None:
        self.is_tainted = False
        self.outbox = self.install = self.host = None
        self.boot += how == "power"
        super()._bury(how)
