"""A secure campaign through the gateway's rounds: boxes' loops at its desk, from the order to the last step."""

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest

from edge_agent.learning.masked import Insisting, masked
from edge_agent.trust.identity import BoxKey
from hybrid.federated.campaign import Aggregation, Privacy
from hybrid.federated.messages import TaskCall
from tests.rounds import lab as labs
from tests.rounds.lab import Box, Lab, running, until

CLIP = 1.0


class MaskedBox(Box):
    """A box with a key, whose updates are made up and masked."""

    def __init__(self, lab: Lab, number: int, key: BoxKey) -> None:
        super().__init__(lab, number)
        self.id, self.key, self.sent, self.n_inputs = key.box_id, key, {}, {}
        self.refused: list[str] = []

    async def play(self, campaign: str) -> None:
        """Tasks, one after the other."""
        while True:
            call: TaskCall = self.call(wait_s=5.0, refused=tuple(self.refused))
            self.refused.clear()
            task = (await self.lab.desk.task(self.id, call)).task
            if task is None or task.kind != "secure":
                await asyncio.sleep(0.01)
                continue
            await self.begin(task)
            step, terms = task.weights.step, self.terms[task.campaign]

            async def trained(step=step, terms=terms):
                vector = self.random.standard_normal(terms.layout.n_elements).astype(np.float32)
                self.sent.setdefault(step, vector * np.float32(0.5 * CLIP / np.linalg.norm(vector)))
                return self.sent[step], None

            outcome = await masked(
                self, task, terms, epoch="e", insisting=self.insisting(step), trained=trained,
                deadline_s=asyncio.get_running_loop().time() + task.lease_s,
            )  # fmt: skip
            if outcome.state != "done":
                self.refused.append(task.id)

    def insisting(self, step: int) -> Insisting:
        def note() -> None:
            self.n_inputs[step] = self.n_inputs.get(step, 0) + 1

        return Insisting(key=self.key, n_inputs_before=self.n_inputs.get(step, 0), note_input=note)

    async def secure(self, call):
        return await self.lab.desk.secure(self.id, call)


def n_masked_rows(lab: Lab) -> int:
    with lab.rounds._store.database.reading() as db:
        return db.execute("SELECT count(*) FROM masked").fetchone()[0]


@pytest.mark.parametrize("noise", [0.0, 1e-6])
async def test_two_steps_are_the_means_of_what_nobody_saw(tmp_path, monkeypatch, noise) -> None:
    """Five boxes, restarted gateway between; every step moved by the mean of the five (the noise is next to none)."""
    keys = [BoxKey.fresh() for _ in range(5)]
    monkeypatch.setattr(labs, "box_id", lambda number: keys[number].box_id)
    privacy = Privacy(secure=True, clip=CLIP, noise=noise)
    lab = Lab(tmp_path, n_boxes=5)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running(lab))
        campaign = await lab.create(
            goal=5, least=3, over_selection=1.0, rounds=2, privacy=privacy, aggregation=Aggregation(weights="uniform")
        )
        boxes = [MaskedBox(lab, number, key) for number, key in enumerate(keys)]
        course = lab.desk.courses[campaign]
        playing = [asyncio.create_task(box.play(campaign)) for box in boxes]
        await until(lambda: course.row.step == 2, within_s=20.0)
        view = await lab.shown(campaign)
        for task in playing:
            task.cancel()
        await asyncio.gather(*playing, return_exceptions=True)
        assert [shown.n_counted for shown in view.rounds][:2] == [5, 5]
        weights = [course.steps.fetched(step, -2).whole for step in range(3)]
        vectors = [np.frombuffer(data, "<f4") for data in weights]
        for step in range(2):
            mean = np.mean([box.sent[step] for box in boxes], 0)
            np.testing.assert_allclose(vectors[step + 1] - vectors[step], mean, atol=6 * CLIP / len(mean) ** 0.5 / 127)
        assert all(box.n_inputs == {0: 1, 1: 1} for box in boxes)
        await until(lambda: n_masked_rows(lab) == 0)  # the campaign is over: its inputs and shares leave the disk
    lab.close()
