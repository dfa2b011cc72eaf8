"""What is kept of rollouts that ended."""

import sqlite3
import time

import pytest

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.steering.status import rollout_view
from hybrid.errors import StorageError
from tests.rollouts.fleet_making import NEW, Boxes, box, told
from tests.rollouts.test_steering import Place, call, plan


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, Boxes(*(box(i, site="a" if i < 5 else "b") for i in range(10))))


async def test_boxes_of_ended_rollouts_are_on_the_disk_alone(place):
    steering = place.open()
    ids = [one.id for one in place.boxes.all()]
    await steering.assign("detector", "1", {}, Terms(), "me")
    rollout = await steering.start(plan())
    for key in ids:
        await steering.state(key, call("", 0.0, told()))
    taken = [key for key in ids if (await steering.state(key, call("", 0.0, told()))).models[0].version == "2"]
    await steering.take_report(taken[0], told(NEW), 3, time.time())
    before = rollout_view(steering, rollout, rollout.members.values())
    assert len(before.members) == 10
    assert before.stages[0].n_done == 1
    await steering.order("abort", rollout.plan.id, "me")
    assert rollout.members == {}
    for _ in range(2):
        found = steering.ledger.find(rollout.plan.id)
        after = rollout_view(steering, found, (await steering.members(found)).values())
        assert (after.stages, after.n_control, after.members) == (before.stages, before.n_control, before.members)
        steering.close()
        steering = place.open()
        assert steering.ledger.find(rollout.plan.id).members == {}
    steering.close()


async def test_boxes_of_a_rollout_that_ended_stay_until_a_full_disk_takes_them(place, monkeypatch):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    rollout = await steering.start(plan())

    def full(_):
        raise StorageError("full")

    with monkeypatch.context() as broken:
        broken.setattr(steering._store, "write", full)
        with pytest.raises(StorageError):
            await steering.order("abort", rollout.plan.id, "me")
    assert len(rollout.members) == len(await steering.members(rollout)) == 10
    await steering.history(rollout.plan.id)
    assert rollout.members == {}
    assert len(await steering.members(rollout)) == 10
    steering.close()


async def test_a_rollout_that_ended_before_figures_were_kept_is_counted(place):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    rollout = await steering.start(plan())
    await steering.order("abort", rollout.plan.id, "me")
    steering.close()
    with sqlite3.connect(place.path) as db:
        db.execute("UPDATE rollout SET figures = x''")
    steering = place.open()
    found = steering.ledger.find(rollout.plan.id)
    assert (found.members, found.figures) == ({}, rollout.figures)
    assert sum(stage.n_boxes for stage in found.figures.stages) == 10
    steering.close()
