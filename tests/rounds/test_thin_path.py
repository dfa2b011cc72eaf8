"""A campaign from its order to its last round: boxes train, the model gets better, everything is told."""

import asyncio
import io
from pathlib import Path

import numpy as np

from hybrid.federated.campaign import Training
from hybrid.federated.learning.examples import Examples
from tests.federated.learning_making import digits
from tests.rounds.lab import Box, Lab, running


def evaluation_set(lab: Lab, x: np.ndarray, y: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.savez(buffer, image=x, labels=y)
    return lab.rounds.sets.put(buffer.getvalue()).sha256


async def life(box: Box, campaign: str) -> None:
    """A box that learns until there is nothing more to learn: one call a round."""
    task = await box.task(wait_s=60.0)
    while task is not None:
        answer = await box.send(box.learned(task, next=box.call(wait_s=60.0, offers=(), is_as_before=True)))
        assert answer.state in ("accepted", "closed")
        assert answer.next is not None
        if campaign in answer.next.ended:
            return
        task = await box.take(answer.next)


async def test_the_digits_are_learned(tmp_path: Path) -> None:
    parts, (x, y) = digits(5, 1.0, seed=0)
    lab = Lab(tmp_path, n_boxes=5)
    async with running(lab):
        campaign = await lab.create(
            evaluation_set(lab, x, y), goal=5, rounds=8, target=0.85, training=Training(epochs=2), over_selection=1.0
        )
        boxes = [Box(lab, at, examples=Examples(*part)) for at, part in enumerate(parts)]
        await asyncio.gather(*(life(box, campaign) for box in boxes))
        view = await lab.shown(campaign)
        report = await lab.rounds.public.report(campaign)
    lab.close()
    assert view.state == "completed", view
    assert 0 < (view.base_accuracy or 0) < 0.3
    assert view.rounds[-1].accuracy >= 0.85
    assert len(view.rounds) < 8
    assert all(each.n_counted == 5 and each.outcomes == {"accepted": 5} for each in view.rounds)
    assert len(report.boxes) == 5
    assert all(each.n_bytes_up <= 4_840 * len(view.rounds) for each in report.boxes)
    views = [box.views[campaign] for box in boxes]
    assert len({(step, view.tobytes()) for step, view in views}) == 1


async def test_a_change_while_a_view_is_made_is_told_as_a_change(tmp_path: Path, monkeypatch) -> None:
    lab = Lab(tmp_path, n_boxes=4)
    async with running(lab):
        campaign = await lab.create()
        loop, read = asyncio.get_running_loop(), lab.rounds._store.promotions

        def read_while_it_stops(campaign: str):
            monkeypatch.undo()
            asyncio.run_coroutine_threadsafe(lab.rounds.order("stop", campaign), loop).result(10.0)
            return read(campaign)

        monkeypatch.setattr(lab.rounds._store, "promotions", read_while_it_stops)
        seen = await lab.shown(campaign)
        async with asyncio.timeout(5.0):
            told = await lab.rounds.public.shown(campaign, since=seen.serial, wait_s=60.0)
        assert told.state == "stopped"
    lab.close()
