"""A box takes part in rounds: from a task to an update that counted, whatever link and gateway do meanwhile."""

from pathlib import Path

from tests.learning.lab import Box, at_work, made
from tests.outbox.lab import until


async def test_learns_from_its_samples(tmp_path: Path) -> None:
    artifact, desk = made(tmp_path)
    box = Box(tmp_path / "box", artifact, desk)
    before = desk.accuracy()
    async with at_work(box.outbox, box.samples):
        await box.fill(60)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3)
            await until(lambda: box.learning.store.waiting is None)
    assert desk.accuracy() > max(0.9, before)
    assert len(desk.updates) == desk.n_update_calls == 3
    note = box.learning.store.notes["c4mp"]
    assert (note.n_accepted, note.n_lost, note.step) == (3, 0, 2)
    assert note.loss_after < note.loss_before
    assert desk.n_fetched == 0, "the base's own head is the first view, later ones came with their tasks"
