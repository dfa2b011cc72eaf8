"""Boxes beside the gateway's own desk: rounds in the clear and masked, candidates, all over a real database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hybrid.federated.campaign import Aggregation, Cohort, Privacy, Training
from tests.learning.desk_lab import boxes_at_a_desk, completed
from tests.learning.lab import Box, at_work
from tests.learning.nets import N_FEATURES, kept_artifact
from tests.rounds.lab import Lab, until

N_BOXES = 3


@asynccontextmanager
async def fleet(folder: Path) -> AsyncIterator[tuple[Lab, list[Box]]]:
    """Three boxes with labelled samples at a desk, none learning yet."""
    async with boxes_at_a_desk(folder, kept_artifact(N_FEATURES), N_BOXES, lambda box, n: box.fill(25, seed=n)) as made:
        yield made


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
