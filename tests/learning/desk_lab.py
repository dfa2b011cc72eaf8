"""Boxes beside the gateway's own desk: every message between them is packed and read as on the wire."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from cloud_gateway.rounds.course.papers import KEY_FILE
from cloud_gateway.rounds.service import FOLDER
from edge_agent.trust.identity import BoxKey
from hybrid.artifact.folder import Artifact
from hybrid.federated.messages import (
    EvaluationAnswer,
    EvaluationCall,
    SecureAnswer,
    SecureCall,
    TaskAnswer,
    TaskCall,
    UpdateAnswer,
    UpdateCall,
    Weights,
)
from hybrid.hosting.private_file import write_once
from tests.learning.lab import Box, again, at_work
from tests.rounds.lab import FakeBox, Lab, put_version, running


class Wire:
    """`RoundCalls` of one box at a lab's desk; every message is read as on the wire."""

    def __init__(self, lab: Lab, box_id: str) -> None:
        self._desk, self._id = lab.desk, box_id

    async def task(self, call: TaskCall) -> TaskAnswer:
        return again(await self._desk.task(self._id, again(call)))

    async def weights(self, campaign: str, step: int, have: int) -> Weights:
        return again(await self._desk.weights(self._id, campaign, step, have))

    async def update(self, call: UpdateCall) -> UpdateAnswer:
        return again(await self._desk.update(self._id, again(call)))

    async def evaluation(self, call: EvaluationCall) -> EvaluationAnswer:
        return again(await self._desk.evaluation(self._id, again(call)))

    async def secure(self, call: SecureCall) -> SecureAnswer:
        return again(await self._desk.secure(self._id, again(call)))


@asynccontextmanager
async def boxes_at_a_desk(
    folder: Path, artifact: Artifact, n_boxes: int, fill: Callable[[Box, int], Awaitable[object]]
) -> AsyncIterator[tuple[Lab, list[Box]]]:
    """A gateway's rounds and boxes with an artifact, none learning yet; `fill` gives the n-th its samples.

    Tasks have the same names each time, by which boxes draw the order of their samples: so they learn the same again.
    """
    write_once(folder / "gateway" / FOLDER / KEY_FILE, bytes(32))
    lab = Lab(folder / "gateway", n_boxes=0)
    lab.rounds.campaigns._rng.seed(1)
    put_version(lab.registry, lab._blobs, artifact)
    boxes = []
    for n in range(n_boxes):
        key = BoxKey(ec.derive_private_key(n + 1, ec.SECP256R1()))
        lab.boxes.known[key.box_id] = FakeBox(key.box_id, f"box-{n}")
        boxes.append(Box(folder / f"box{n}", artifact, Wire(lab, key.box_id), key))
    try:
        async with running(lab), AsyncExitStack() as stack:
            for n, box in enumerate(boxes):
                await stack.enter_async_context(at_work(box.outbox, box.samples))
                await fill(box, n)
            yield lab, boxes
    finally:
        lab.close()


async def completed(lab: Lab, campaign: str) -> None:
    """Waits for the end of a campaign, as long as updates come: boxes train behind all that this machine does else."""
    loop, public = asyncio.get_running_loop(), lab.rounds.public
    seen = await public.shown(campaign)
    came = (0, 0)
    async with asyncio.timeout(40.0) as limit:
        while seen.state == "running":
            seen = await public.shown(campaign, since=seen.serial, wait_s=60.0)
            if (seen.step, seen.rounds[-1].n_counted) > came:
                came = (seen.step, seen.rounds[-1].n_counted)
                limit.reschedule(loop.time() + 40.0)
    assert seen.state == "completed"
