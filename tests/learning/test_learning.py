"""A box takes part in rounds: from a task to an update that counted, whatever link and gateway do meanwhile."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_agent.learning.store import LearningStore
from hybrid.federated.campaign import Coding, Training
from hybrid.federated.coding.catalog import form
from hybrid.federated.layout import Layout
from hybrid.federated.learning.labels import is_held_out
from tests.learning.lab import CAMPAIGN, Box, at_work, made
from tests.outbox.lab import until


async def test_learns_from_its_samples(tmp_path: Path) -> None:
    artifact, desk = made()
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


async def test_lost_answers_count_once(tmp_path: Path) -> None:
    """Every answer is lost three times: the same bytes come again, `Desk.update` sees to it."""
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    desk.loses = lambda: desk.n_update_calls % 4 != 0
    async with at_work(box.outbox, box.samples):
        await box.fill(30)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3 and box.learning.store.waiting is None)
    assert desk.n_update_calls == 12
    assert len(desk.updates) == 3
    assert {(call.task, call.content, call.loss_before, call.n_samples) for call in desk.calls} == {
        (call.task, call.content, call.loss_before, call.n_samples) for call in desk.calls[::4]
    }
    assert box.learning.store.notes["c4mp"].n_accepted == 3


async def test_a_task_costs_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That an update counted comes to the disk with the next one, or at once where none follows."""
    artifact, desk = made()
    desk.most_steps = 4
    box = Box(tmp_path / "box", artifact, desk)
    kept, paid, n_written = [], [], []
    store, writing = box.learning.store, box.learning.store._database.writing
    keep, pay = store.keep, store.pay
    monkeypatch.setattr(store, "keep", lambda *given: (kept.append(store.owes), keep(*given)))
    monkeypatch.setattr(store, "pay", lambda: (paid.append(store.owes), pay()))
    monkeypatch.setattr(store._database, "writing", lambda: (n_written.append(1), writing())[1])
    async with at_work(box.outbox, box.samples):
        await box.fill(20)
        async with at_work(box.learning):
            await until(lambda: desk.step == 4 and store.waiting is None)
            assert kept == [False, True, True, True]
            assert True not in paid
            assert len(n_written) == 1 + 4 + 1  # opening, four updates, and that the last one counted
            assert store.notes[CAMPAIGN].n_accepted == 4
    again = LearningStore(box.place)
    again.open(box.gateway)
    assert again.waiting is None
    assert again.notes[CAMPAIGN].n_accepted == 4
    again.close()


async def test_what_is_owed_comes_to_the_disk_where_the_next_task_is_not_done(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    store = box.learning.store
    async with at_work(box.outbox, box.samples):
        await box.fill(20)
        answered = desk._answer

        def other_terms(call: Any) -> Any:  # the second task is of a version that does not answer here
            answer = answered(call)
            if answer.task is None or desk.step == 0:
                return answer
            terms = msgspec.structs.replace(desk.terms, artifact_digest="e" * 64)
            return msgspec.structs.replace(answer, task=msgspec.structs.replace(answer.task, terms=terms))

        desk._answer = other_terms
        async with at_work(box.learning):
            await until(lambda: desk.refused)
            assert not store.owes
    again = LearningStore(box.place)
    again.open(box.gateway)
    assert again.waiting is None
    assert again.done == {"t-0": "accepted"}
    again.close()


async def test_an_agent_that_was_off_sends_what_it_had(tmp_path: Path) -> None:
    """It stops with an update that nobody took; a week later the same bytes are sent, before anything else is asked."""
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(30)
        desk.loses = lambda: True
        async with at_work(box.learning):
            await until(lambda: desk.n_update_calls >= 1)
        assert box.learning.store.waiting is not None
        n_asked = len(desk.asked)
        desk.loses = lambda: False
        desk.most_steps = 1
        box.started()
        async with at_work(box.learning):
            await until(lambda: box.learning.store.notes and box.learning.store.waiting is None)
    assert desk.calls[0].content == desk.calls[-1].content
    assert desk.asked[n_asked] == desk.calls[-1].next, "nothing was asked before the update had arrived"
    assert desk.step == 1


async def test_terms_and_offers_are_told_once(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(30)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3)
    first, *others = desk.asked
    assert [offer.n_samples for offer in first.offers] == [len(box_samples(box))]
    assert all(call.is_as_before and not call.offers for call in others)
    assert [call.held[0].step for call in others[:2]] == [0, 1]


def box_samples(box: Box) -> list[str]:
    """Ids that may be trained on."""
    from edge_agent.samples.shelf import SampleShelf
    from hybrid.federated.learning.labels import is_held_out

    shelf = SampleShelf(box.samples._place, box.samples.limits.shelf)
    shelf.open(0.0)
    try:
        return [one for one in shelf.labelled("net", 1000) if not is_held_out(one)]
    finally:
        shelf.close()


async def test_a_large_update_is_brought_as_a_blob(tmp_path: Path) -> None:
    artifact, desk = made(24_000, coding=Coding(up="float32"))
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(10)
        async with at_work(box.learning):
            await until(lambda: desk.step == 1 and box.learning.store.waiting is None)
    (call,) = desk.calls
    assert call.content == b""
    assert len(desk.blobs[call.sha256]) == call.n_bytes == 4 * desk.head.layout.n_elements


async def test_candidates_are_tried_on_samples_that_nobody_trained_on(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        ids = await box.fill(100)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3 and box.learning.store.waiting is None)
        desk.kind, desk.most_steps, desk.salt = "evaluate", 4, "e"
        desk.loses = lambda: len(desk.counts) == 1
        box.started()
        async with at_work(box.learning):
            await until(lambda: any(note.n_evaluated for note in box.learning.store.notes.values()))
    lost, counts = desk.counts
    assert lost == counts, "the answer to the first was lost, the same was brought again"
    assert counts.n == sum(map(is_held_out, ids)) > 5
    assert counts.n_right > counts.n_base_right
    assert counts.n_right - counts.n_base_right == counts.n_won - counts.n_lost


async def test_control_variates(tmp_path: Path) -> None:
    """SCAFFOLD: both halves travel as one; the box's variate is its own once the update has counted."""
    artifact, desk = made(scaffold=True)
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(40)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3 and box.learning.store.waiting is None)
            control = box.learning.store.vector("c4mp", "control")
    assert control is not None
    kept = np.frombuffer(control, "<f4")
    assert np.abs(kept - desk.control).max() <= 1e-5 * np.abs(kept).max(), "what was not said is in neither"
    assert desk.accuracy() > 0.9


async def test_personal_layers_stay(tmp_path: Path) -> None:
    """FedRep: one tensor never leaves; it is kept, and trained first in each task."""
    artifact, desk = made()
    layout = Layout(names=("head",), shapes=((12, 3),))
    desk.terms = msgspec.structs.replace(
        desk.terms, layout=layout, training=Training(epochs=2, learning_rate=0.2, personal=("off*",))
    )
    desk.steps = [desk.head.arrays["head"].ravel().copy()]
    desk.control = np.zeros_like(desk.steps[0])
    box = Box(tmp_path / "box", artifact, desk)
    async with at_work(box.outbox, box.samples):
        await box.fill(40)
        async with at_work(box.learning):
            await until(lambda: desk.step == 3 and box.learning.store.waiting is None)
            personal = box.learning.store.vector("c4mp", "personal")
    assert personal is not None
    assert np.abs(np.frombuffer(personal, "<f4")).max() > 0.01
    assert all(form("int8").decode(content, layout).shape == (36,) for content in desk.updates.values())


@pytest.mark.parametrize("wall_s", [0.0, 4.0e9])
async def test_the_calendar_decides_nothing(tmp_path: Path, wall_s: float) -> None:
    """A clock at 1970, or a hundred years from now: leases and pauses are of another clock."""
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path / "box", artifact, desk, wall_s=lambda: wall_s)
    async with at_work(box.outbox, box.samples):
        await box.fill(12)
        async with at_work(box.learning):
            await until(lambda: desk.step == 1 and box.learning.store.waiting is None)
