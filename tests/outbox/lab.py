"""An outbox beside a real ingest: what travels between them is packed as on the wire, lost or doubled at will."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec

from cloud_gateway.fleet.intake.ingest import Ingest
from cloud_gateway.fleet.intake.outcomes import Deferrals
from cloud_gateway.fleet.intake.store import IngestLimits
from edge_agent.outbox.outbox import Outbox
from edge_agent.outbox.place import Place
from edge_agent.outbox.policy import OutboxLimits
from hybrid.errors import ConnectionLost
from hybrid.fleet.messages import IngestAnswer, IngestCall, OutcomesAnswer, OutcomesCall
from hybrid.wire.message import InferRequest, InferResponse
from tests.reliability.virtual_loop import VirtualLoop

BOX = "ab" * 16


async def no_answer(request: InferRequest, receive_s: float) -> InferResponse:
    raise AssertionError("nothing was deferred in this test")


class Lane:
    """The way between one box and its gateway.

    Attributes:
        is_up: calls arrive.
        loses_answer: asked after each ingest that arrived: its answer is lost.
        doubles: each ingest arrives twice.
        calls: all that arrived.
    """

    def __init__(self, ingest: Ingest, deferrals: Deferrals, box_id: str = BOX) -> None:
        self.ingest_part, self.deferrals, self.box_id = ingest, deferrals, box_id
        self.is_up = True
        self.doubles = False
        self.loses_answer: Callable[[], bool] = lambda: False
        self.calls: list[IngestCall] = []
        self.n_asked = 0
        self.n_blob_bytes = 0

    async def ingest(self, call: IngestCall) -> IngestAnswer:
        self._check()
        call = msgspec.msgpack.decode(msgspec.msgpack.encode(call), type=IngestCall)
        self.calls.append(call)
        answer = await self.ingest_part.ingest(self.box_id, call)
        if self.doubles:
            answer = await self.ingest_part.ingest(self.box_id, call)
        if self.loses_answer():
            raise ConnectionLost("the answer was lost")
        return msgspec.msgpack.decode(msgspec.msgpack.encode(answer), type=IngestAnswer)

    async def outcomes(self, call: OutcomesCall) -> OutcomesAnswer:
        self._check()
        answer = await self.deferrals.outcomes(self.box_id, call)
        if self.loses_answer():
            raise ConnectionLost("the answer was lost")
        return answer

    async def put_blob(self, sha256: str, content: bytes) -> None:
        self._check()
        self.n_blob_bytes += len(content)
        await asyncio.to_thread(self.ingest_part.store.blobs.put, self.box_id, sha256, content)

    async def own_blob(self, sha256: str, offset: int) -> AsyncIterator[bytes]:
        self._check()
        yield (await asyncio.to_thread(self.ingest_part.store.blobs.read, self.box_id, sha256))[offset:]

    def _check(self) -> None:
        self.n_asked += 1
        if not self.is_up:
            raise ConnectionLost("the link is down")


class Gateway:
    """Ingest and deferrals on a folder."""

    def __init__(self, folder: Path, infer: Callable = no_answer, limits: IngestLimits | None = None) -> None:
        self.ingest = Ingest(folder, limits=limits)
        self.deferrals = Deferrals(self.ingest, infer)
        self.quotas: list[tuple[str, str]] = []
        self.ingest.on_quota = lambda box, kind: self.quotas.append((box, kind))

    def bodies(self, box_id: str = BOX, stream: str = "") -> list[bytes]:
        """What is stored, in the order of storing; of one stream where it is named."""
        with self.ingest.store.database.reading() as db:
            rows = db.execute(
                "SELECT body, blob FROM item WHERE box = ? AND ? IN ('', stream) ORDER BY id", (box_id, stream)
            ).fetchall()
        return [self.ingest.store.blobs.read(box_id, blob) if blob else bytes(body) for body, blob in rows]

    def lane(self, box_id: str = BOX) -> Lane:
        return Lane(self.ingest, self.deferrals, box_id)


def outbox_of(folder: Path, lane: Lane | None, *, limits: OutboxLimits | None = None, seed: int = 1, **more) -> Outbox:
    least = more.pop("least_important", lambda: 4)
    return Outbox(Place(folder=folder, **more), calls=lane, rng=Random(seed), limits=limits, least_important=least)


@asynccontextmanager
async def running(*parts: object) -> AsyncIterator[None]:
    """The parts at work; ended in order."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part.run()) for part in parts]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def until(fact: Callable[[], object], within_s: float = 10.0) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(within_s):
        while not fact():  # noqa: ASYNC110 (a test looks from outside)
            await asyncio.sleep(0.01)


def hurry(outbox: Outbox) -> None:
    """Lets a sender that pauses after failures try now, as hours of waiting would."""
    outbox.sender._held_until_s.clear()
    outbox.sender.wake()


def sequence(bodies: Sequence[bytes]) -> list[int]:
    return [int(body.split(b":")[0]) for body in bodies]


def in_virtual_time(program: Coroutine, seed: int = 0) -> None:
    """Runs a test's program on a loop whose hours cost nothing; what it leaves running fails it."""
    VirtualLoop(seed).run(program)
