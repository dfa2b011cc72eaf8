"""Boxes beside the gateway's own desk: rounds in the clear and masked, candidates, all over a real database."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from edge_agent.trust.identity import BoxKey
from hybrid.federated.campaign import Aggregation, Cohort, Privacy, Training
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
from tests.learning.lab import Box, again, at_work
from tests.learning.nets import N_FEATURES, kept_artifact
from tests.rounds.lab import FakeBox, Lab, put_version, running, until

N_BOXES = 3


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
async def fleet(folder: Path):
    """Three boxes with labelled samples at a desk, none learning yet."""
    artifact = kept_artifact(N_FEATURES)
    lab = Lab(folder / "gateway", n_boxes=0)
    put_version(lab.registry, lab._blobs, artifact)
    boxes = []
    for n in range(N_BOXES):
        key = BoxKey.fresh()
        lab.boxes.known[key.box_id] = FakeBox(key.box_id, f"box-{n}")
        boxes.append(Box(folder / f"box{n}", artifact, Wire(lab, key.box_id), key))
    try:
        async with running(lab), AsyncExitStack() as stack:
            for n, box in enumerate(boxes):
                await stack.enter_async_context(at_work(box.outbox, box.samples))
                await box.fill(25, seed=n)
            yield lab, boxes
    finally:
        lab.close()


async def completed(lab: Lab, campaign: str) -> None:
    async with asyncio.timeout(30.0):
        while (await lab.shown(campaign)).state == "running":  # noqa: ASYNC110 (what is waited for is no event of ours)
            await asyncio.sleep(0.02)
    assert (await lab.shown(campaign)).state == "completed"


@pytest.mark.parametrize("scaffold", [False, True])
async def test_rounds_in_the_clear(tmp_path: Path, scaffold: bool) -> None:
    async with fleet(tmp_path) as (lab, boxes):
        campaign = await lab.create(
            model="net",
            goal=N_BOXES,
            least=N_BOXES,
            rounds=3,
            training=Training(epochs=3, learning_rate=0.1),
            aggregation=Aggregation(scaffold=scaffold, weights="uniform" if scaffold else "samples"),
        )
        async with at_work(*(box.learning for box in boxes)):
            await completed(lab, campaign)
            await until(lambda: all(box.learning.store.waiting is None for box in boxes))
            notes = [box.learning.store.notes[campaign] for box in boxes]
            assert [note.n_accepted for note in notes] == [3] * N_BOXES
            assert all(note.loss_after < note.loss_before for note in notes)
            assert all(note.n_lost == 0 for note in notes)


async def test_masked_rounds(tmp_path: Path) -> None:
    """The gateway sees sums only; each box masks one input a step, and its epsilon is on its own disk."""
    async with fleet(tmp_path) as (lab, boxes):
        campaign = await lab.create(
            model="net",
            goal=N_BOXES,
            least=N_BOXES,
            over_selection=1.0,
            rounds=2,
            privacy=Privacy(secure=True, clip=2.0, noise=0.5),
            aggregation=Aggregation(weights="uniform"),
            cohort=Cohort(),
        )
        async with at_work(*(box.learning for box in boxes)):
            await completed(lab, campaign)
            await until(lambda: all(box.learning.store.notes[campaign].n_accepted == 2 for box in boxes))
            for box in boxes:
                store = box.learning.store
                assert store.n_masked(campaign, 1) == 1
                assert store.notes[campaign].epsilon > 1
                assert store.notes[campaign].n_lost == 0
