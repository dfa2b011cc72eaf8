"""What a box does with work that ends badly: too little memory, a piece without an end, a disk that will not tidy."""

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edge_agent.disk import RealDisk
from edge_agent.learning import doing
from edge_agent.learning.doing import Doing
from edge_agent.learning.records import CampaignNote
from edge_agent.learning.secure_task import SecureTasks
from edge_agent.learning.store import INLINE_BYTES, MOST_CAMPAIGNS, LearningStore
from edge_agent.learning.yielding import Yielding
from edge_agent.outbox.place import Place
from hybrid.errors import Cancelled, StorageError
from hybrid.federated.messages import TaskAnswer, TaskCall
from tests.learning.lab import Box, at_work, made
from tests.learning.test_power_cuts import TERMS, waiting_of
from tests.outbox.lab import until


async def test_a_model_that_is_too_large_to_train_here_is_given_up_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(*_given: Any, **_more: Any) -> None:
        np.empty(1 << 60, np.uint8)

    monkeypatch.setattr(doing.Work, "trained", allocate)
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples, box.learning):
        await box.fill(12)
        await until(lambda: desk.refused)
        (problem,) = box.learning.problems()
        assert (problem.code, "more memory than this box has" in problem.what) == ("learning_unfit", True)
    assert not desk.updates


async def test_labels_of_another_length_are_given_up_and_told(tmp_path: Path) -> None:
    artifact, desk = made()
    box = Box(tmp_path, artifact, desk)
    async with at_work(box.outbox, box.samples):
        for sample in await box.fill(12):
            await box.samples.label(sample, {"values": [0.5, 1.0]})
        async with at_work(box.learning):
            await until(lambda: desk.refused)
            (problem,) = box.learning.problems()
            assert problem.what.endswith("labels have 2 values, the model gives 3")


async def test_what_was_given_up_does_not_go_on_with_the_next_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece that cannot be divided outlasts the patience: nothing new begins before it has ended."""
    monkeypatch.setattr(doing, "_END_S", 0.02)
    goes_on, yielding = threading.Event(), Yielding(idle_s=0.0)
    conditions = SimpleNamespace(look=lambda: asyncio.sleep(0, ""))
    part = Doing(
        None,
        None,
        offers=None,
        material=None,
        yielding=yielding,
        conditions=conditions,  # type: ignore[arg-type]
    )
    ended: list[str] = []

    def long_piece() -> None:
        goes_on.wait(5.0)
        try:
            yielding.between()
            ended.append("went on")
        except Cancelled:
            ended.append("given up")

    now_s = asyncio.get_running_loop().time()
    with pytest.raises(Cancelled, match="the lease ended"):
        await part._on_thread(long_piece, now_s + 0.02)
    with pytest.raises(Cancelled, match="has not ended yet"):
        await part._on_thread(lambda: ended.append("next"), now_s + 60.0)
    goes_on.set()
    await until(lambda: ended)
    await until(lambda: part._last is not None and part._last.done())
    await part._on_thread(lambda: ended.append("next"), now_s + 60.0)
    assert ended == ["given up", "next"]
    await part.close()


async def test_features_leave_memory_when_no_task_has_come_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, desk = made()
    desk.most_steps = 1
    box = Box(tmp_path, artifact, desk)

    def n_bytes() -> int:
        return sum(shelf.n_bytes for shelf in box.learning._tasks.doing.material._features.values())  # type: ignore[union-attr]

    async with at_work(box.outbox, box.samples, box.learning):
        await box.fill(12)
        await until(lambda: desk.step == 1 and box.learning.store.waiting is None)
        kept = n_bytes()
        n_asked = len(desk.asked)
        box.learning.wake()
        await until(lambda: len(desk.asked) > n_asked)
        assert n_bytes() == kept > 0, "another round may come soon"
        monkeypatch.setattr(doing, "KEPT_S", 0.0)
        box.learning.wake()
        await until(lambda: not n_bytes())
        monkeypatch.setattr(doing, "KEPT_S", 60.0)
        desk.most_steps = 2
        box.learning.wake()
        await until(lambda: desk.step == 2)
        assert n_bytes() == kept


async def test_a_masked_update_stays_where_the_link_began_to_cost_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for nothing must not leave: the round goes on without this box."""
    link = SimpleNamespace(is_metered=False)
    conditions = SimpleNamespace(condition=link, lately=lambda: asyncio.sleep(0, ""))
    part = Doing(
        None,
        None,
        offers=None,
        material=None,
        yielding=Yielding(),
        conditions=conditions,  # type: ignore[arg-type]
    )

    async def done(*_given: Any) -> str:
        link.is_metered = costs_by_then
        return "trained"

    monkeypatch.setattr(part, "_done", done)
    given: Any = (None, None, None, 0.0)
    costs_by_then = False
    assert await part.trained(*given, was_metered=False) == "trained"
    costs_by_then = True
    for since in ("while it trained", "before, since the gateway was asked"):
        assert link.is_metered == (since != "while it trained")
        with pytest.raises(Cancelled, match="costs by the byte"):
            await part.trained(*given, was_metered=False)
    said = "the gateway was told of this link, and gave the task all the same"
    assert await part.trained(*given, was_metered=True) == "trained", said


async def test_a_masked_task_knows_what_the_gateway_was_told_of_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll is held for minutes: the link may begin to cost before the task comes, and long before it is trained."""
    artifact, desk = made()
    desk.kind = "secure"
    box = Box(tmp_path, artifact, desk)
    told: list[tuple[bool, bool]] = []
    asked = desk.task

    async def held(call: TaskCall) -> TaskAnswer:
        box.is_metered = True
        return await asked(call)

    async def take(self: SecureTasks, *_given: Any, was_metered: bool) -> str:
        told.append((was_metered, box.learning._conditions.condition.is_metered))
        return "it is not done in this test"

    monkeypatch.setattr(desk, "task", held)
    monkeypatch.setattr(SecureTasks, "take", take)
    async with at_work(box.outbox, box.samples, box.learning):
        await box.fill(12)
        await until(lambda: told)
    assert told[0] == (False, True)


def test_a_disk_that_will_not_tidy_costs_no_update(tmp_path: Path) -> None:
    """What is on the disk stands, in memory too: the update is sent, and not made a second time."""

    class Stubborn(RealDisk):
        removes = True

        def remove(self, path: Path) -> None:
            if not self.removes and path.name[0] != ".":
                raise StorageError("this disk removes nothing")
            super().remove(path)

    disk = Stubborn()
    store = LearningStore(Place(folder=tmp_path, disk=disk))
    store.open("gateway")
    note, large = CampaignNote(id="c", terms=TERMS), INLINE_BYTES + 1
    store.keep(note, {"view": b"v" * large})
    disk.removes = False
    update = b"u" * large
    store.keep(note, {"view": b"w" * large}, (waiting_of("one", update), update))
    assert store.waiting is not None
    assert store.update() == update
    store.settle("accepted", note, {}, {})
    assert (store.waiting, store.done) == (None, {"one": "accepted"})
    disk.removes = True
    store.keep(note, {"view": None})
    assert not list((tmp_path / "vectors").iterdir())
    store.close()


def test_the_status_is_read_while_campaigns_change(tmp_path: Path) -> None:
    store = LearningStore(Place(folder=tmp_path))
    store.open("gateway")
    for n in range(MOST_CAMPAIGNS):
        store.keep(CampaignNote(id=f"c{n}", terms=TERMS), {})
    reading = iter(store.notes.values())
    assert next(reading).id == "c0"
    store.keep(CampaignNote(id="c0", terms=TERMS), {})
    assert len(list(reading)) == MOST_CAMPAIGNS - 1, "whoever reads has what was there when it began"
    assert list(store.notes)[-1] == "c0"
    store.close()


def test_a_request_before_the_task_says_nothing_of_how_fast_training_yields() -> None:
    yielding = Yielding(idle_s=0.3)
    yielding.asked(True)
    yielding.asked(False)
    yielding.begin()
    yielding.between()
    assert (yielding.n_stood, yielding.longest_s) == (1, 0.0)
