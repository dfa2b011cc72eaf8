"""State calls, reports and orders on a real loop and a real disk."""

import asyncio
import random
import time
from types import SimpleNamespace

import pytest

from cloud_gateway.fleet.assignments import Terms
from cloud_gateway.fleet.rollouts.rollout import Plan
from cloud_gateway.fleet.steering.herd import HerdLimits, release_moments
from cloud_gateway.fleet.steering.steering import Neighbours, Steering
from hybrid.errors import Conflict, Forbidden, NotFound, Overloaded, StorageError
from hybrid.fleet.messages import StateCall
from tests.rollouts.fleet_making import NEW, Boxes, box, told


class Versions:
    """A registry with versions 1 to 9 of everything."""

    def resolve(self, name, version=None):
        if version is not None and not version.isdigit():
            raise NotFound(f"no {name}:{version}")
        word = version or "9"
        return SimpleNamespace(version=word, artifact_digest=word * 64)


class Place:
    """A folder with a steering in it that can be started again."""

    def __init__(self, folder, boxes, limits=None):
        self.path = folder / "rollouts.db"
        self.boxes, self.limits = boxes, limits
        self.alarms, self.trust = [], None

    def open(self):
        around = Neighbours(
            boxes=self.boxes,
            versions=Versions(),
            raise_alarm=lambda *alarm: self.alarms.append(alarm),
            trust=lambda: self.trust,
        )
        return Steering(self.path, around, rng=random.Random(3), limits=self.limits)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path, Boxes(*(box(i, site="a" if i < 5 else "b") for i in range(10))))


def call(known="", wait_s=0.0, *installed, **fields):
    return StateCall(known=known, epoch="e", run="r", wait_s=wait_s, installed=installed, **fields)


def plan(**fields):
    made = {"id": "", "model": "detector", "version": "2", "artifact_digest": "", "made_by": "me"}
    return Plan(**(made | {"stages": (0.5, 1.0), "soak_s": 0.0} | fields))


async def test_only_those_whom_it_concerns_are_woken(place):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    ids = [one.id for one in place.boxes.all()]
    known = {key: (await steering.state(key, call())).generation for key in ids}
    async with asyncio.TaskGroup() as group:
        waiting = {key: group.create_task(steering.state(key, call(known[key], 20.0))) for key in ids}
        await asyncio.sleep(0.01)
        assert len(steering.polls) == 10
        await steering.assign("detector", "2", {"site": "b"}, Terms(), "me")
        await asyncio.sleep(0.01)
        assert [key for key in ids if waiting[key].done()] == ids[5:]
        assert all(waiting[key].result().models[0].version == "2" for key in ids[5:])
        await steering.release(0.05)
    assert all(waiting[key].result().generation == known[key] for key in ids[:5])
    steering.close()


async def test_an_answer_comes_at_once_when_there_is_something_new(place):
    steering = place.open()
    first = place.boxes.all()[0].id
    await steering.assign("detector", "1", {}, Terms(), "me")
    async with asyncio.timeout(1.0):
        answer = await steering.state(first, call("what it had", 300.0))
    assert answer.models[0].version == "1"
    place.trust = (4, b"bundle")
    async with asyncio.timeout(1.0):
        assert (await steering.state(first, call(answer.generation, 300.0, trust_sequence=3))).trust == b"bundle"
    again = await steering.state(first, call(answer.generation, 0.05, trust_sequence=4))
    assert (again.trust, again.generation) == (None, answer.generation)
    begun_s = time.monotonic()
    refused = await steering.state(first, call(answer.generation, 0.3, trust_sequence=3))  # the box did not take it
    assert refused.trust == b"bundle"
    assert time.monotonic() - begun_s >= 0.3, "what was told once does not make a box ask without end"
    steering.close()


async def test_a_stranger_is_refused(place):
    steering = place.open()
    with pytest.raises(Forbidden):
        await steering.state("f" * 32, call())
    steering.close()


async def test_too_many_waiting_calls_are_asked_for_patience(place):
    place.limits = HerdLimits(max_waiting=3)
    steering = place.open()
    ids = [one.id for one in place.boxes.all()]
    known = (await steering.state(ids[0], call())).generation
    tasks = [asyncio.create_task(steering.state(key, call(known, 20.0))) for key in ids[:3]]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded) as refusal:
        await steering.state(ids[4], call(known, 20.0))
    assert refusal.value.fields["retry_after_s"] > 0
    assert (await steering.state(ids[4], call("other", 20.0))).generation == known, "what is new is told all the same"
    tasks[0].cancel()  # a box that hangs up frees its place
    await asyncio.sleep(0.01)
    tasks[0] = asyncio.create_task(steering.state(ids[4], call(known, 20.0)))
    await asyncio.sleep(0.01)
    assert len(steering.polls) == 3
    await steering.release(0.0)
    await asyncio.gather(*tasks)
    assert len(steering.polls) == 0
    steering.close()


async def test_a_box_has_one_waiting_call(place):
    steering = place.open()
    first = place.boxes.all()[0].id
    known = (await steering.state(first, call())).generation
    older = asyncio.create_task(steering.state(first, call(known, 20.0)))
    await asyncio.sleep(0.01)
    newer = asyncio.create_task(steering.state(first, call(known, 20.0)))
    assert (await asyncio.wait_for(older, 1.0)).generation == known
    assert len(steering.polls) == 1
    newer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await newer
    assert len(steering.polls) == 0
    steering.close()


async def test_calls_are_let_go_spread_over_time(place):
    steering = place.open()
    ids = [one.id for one in place.boxes.all()]
    known = (await steering.state(ids[0], call())).generation
    ended = []

    async def wait(key):
        await steering.state(key, call(known, 20.0))
        ended.append(time.monotonic())

    async with asyncio.TaskGroup() as group:
        for key in ids:
            group.create_task(wait(key))
        await asyncio.sleep(0.01)
        begun = time.monotonic()
        await steering.release(0.3)
    assert max(ended) - begun > 0.2
    assert min(ended) < max(ended) - 0.1
    assert await asyncio.wait_for(steering.state(ids[0], call(known, 20.0)), 1.0), "nobody waits any more"
    steering.close()


def test_moments_of_release_are_spread():
    moments = release_moments(100, 10.0, random.Random(1))
    assert moments == sorted(moments)
    assert all(sum(at <= moment < at + 1 for moment in moments) <= 12 for at in range(10))
    assert release_moments(0, 10.0, random.Random(1)) == []


@pytest.mark.parametrize(
    ("n", "least", "most"), [(0, 1, 5), (10, 1, 5), (100, 10, 15), (1000, 20, 20), (10**6, 300, 300)]
)
def test_the_pause_grows_with_the_fleet(n, least, most):
    assert least <= HerdLimits().poll_after_s(n) <= most


async def test_everything_comes_back_after_a_restart(place):
    steering = place.open()
    ids = [one.id for one in place.boxes.all()]
    await steering.assign("detector", "1", {}, Terms(), "me")
    rollout = await steering.start(plan())
    before = {key: await steering.state(key, call("", 0.0, told())) for key in ids}
    taken = [key for key in ids if before[key].models[0].version == "2"]
    made_s = time.time()
    await steering.take_report(taken[0], told(NEW), 3, made_s)
    steering.close()
    steering = place.open()
    words = {key: told(NEW) if key == taken[0] else told() for key in ids}
    after = {key: await steering.state(key, call("", 0.0, words[key])) for key in ids}
    assert {key: one.generation for key, one in after.items()} == {key: one.generation for key, one in before.items()}
    found = steering.ledger.find(rollout.plan.id)
    assert (found.plan, found.course.state) == (rollout.plan, "running")
    assert found.members[taken[0]].is_done
    assert [entry.kind for entry in await steering.history(rollout.plan.id)] == ["started"]
    await steering.take_report(taken[0], told(phase="failed", wanted_digest=NEW, code="x"), 1, made_s)
    assert found.members[taken[0]].is_done, "the same report once more changes nothing"
    steering.close()


async def test_a_rollout_goes_through_its_stages_by_itself(place, monkeypatch):
    monkeypatch.setattr("cloud_gateway.fleet.steering.steering.TICK_S", 0.02)
    monkeypatch.setattr("cloud_gateway.fleet.steering.steering._SOON_S", 0.0)
    steering = place.open()
    ids = [one.id for one in place.boxes.all()]
    runs = {"n_good": 1000, "p50_s": 0.01}
    async with asyncio.TaskGroup() as group:
        life = group.create_task(steering.run())
        await steering.assign("detector", "1", {}, Terms(), "me")
        for key in ids:
            await steering.state(key, call("", 0.0, told(**runs)))
        rollout = await steering.start(plan(min_runs=1))

        async def be_a_box(key):
            word, known, n = told(**runs), "", 1000
            while rollout.course.state == "running":
                answer = await steering.state(key, call(known, 0.2, word))
                known, digest, n = answer.generation, answer.models[0].artifact_digest, n + 100
                word = told(digest, n_good=n, p50_s=0.01)
                await asyncio.sleep(0.01)

        async with asyncio.timeout(20.0):
            await asyncio.gather(*map(be_a_box, ids))
        assert rollout.course.state == "completed"
        life.cancel()
    kinds = [entry.kind for entry in await steering.history(rollout.plan.id)]
    assert kinds == ["started", "stage", "completed"]
    assert [a.label for a in steering.ledger.assignments] == ["detector:2"]
    steering.close()


async def test_a_halt_raises_an_alarm_and_wakes_its_boxes(place, monkeypatch):
    monkeypatch.setattr("cloud_gateway.fleet.steering.steering.TICK_S", 0.02)
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    rollout = await steering.start(plan())
    taken = [m.box_id for m in rollout.members.values() if m.stage == 0]
    failed = told(phase="rolled_back", wanted_digest=NEW, code="engine_crashed", rollout=rollout.plan.id)
    async with asyncio.TaskGroup() as group:
        life = group.create_task(steering.run())
        known = (await steering.state(taken[0], call())).generation
        waiting = group.create_task(steering.state(taken[0], call(known, 20.0)))
        for key in taken[1:]:
            await steering.state(key, call("", 0.0, failed))
        answer = await asyncio.wait_for(waiting, 10.0)
        assert (answer.models[0].version, answer.models[0].rollout) == ("1", "")
        async with asyncio.timeout(5.0):
            while not place.alarms:  # noqa: ASYNC110 (the alarm is kept by a thread)
                await asyncio.sleep(0.01)
        life.cancel()
    assert place.alarms[0][:2] == ("rollout_halted", "")
    assert "4 failed" in place.alarms[0][2]
    steering.close()


async def test_a_damaged_database_loses_rollouts_but_no_assignment(place):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    before = (await steering.state(place.boxes.all()[0].id, call())).generation
    rollout = await steering.start(plan())
    steering.close()
    place.path.write_bytes(b"no database at all" * 500)
    for suffix in ("-wal", "-shm"):
        place.path.with_name(place.path.name + suffix).unlink(missing_ok=True)
    steering = place.open()
    assert "Lost: running rollouts" in steering.lost
    assert rollout.plan.id not in steering.ledger.rollouts
    for one in place.boxes.all():
        assert (await steering.state(one.id, call())).models[0].version == "1"
    assert (await steering.state(place.boxes.all()[0].id, call())).generation == before
    steering.close()
    steering = place.open()
    assert steering.lost == ""
    assert [a.label for a in steering.ledger.assignments] == ["detector:1"]
    steering.close()


@pytest.mark.parametrize("at", [0, 30, 64, 65, 100, -1])
async def test_a_flipped_bit_in_the_copy_is_noticed(place, at):
    steering = place.open()
    await steering.assign("detector", "1", {"site": "a"}, Terms(), "me")
    steering.close()
    place.path.write_bytes(b"no database at all" * 500)
    record = place.path.with_name("assignments.record")
    damaged = bytearray(record.read_bytes())
    damaged[at] ^= 1
    record.write_bytes(damaged)
    steering = place.open()
    assert "cannot be read" in steering.lost
    assert steering.ledger.assignments == []
    steering.close()


async def test_with_both_copies_lost_boxes_are_told_nothing_until_a_person_says_so(place):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    steering.close()
    place.path.write_bytes(b"no database at all" * 500)
    place.path.with_name("assignments.record").write_bytes(b"{")
    steering = place.open()
    first = place.boxes.all()[0].id
    with pytest.raises(Overloaded, match="lost what boxes should run"):
        await steering.state(first, call("known", 5.0))
    with pytest.raises(Conflict, match="--anew"):
        await steering.assign("detector", "2", {}, Terms(), "me")
    with pytest.raises(Conflict, match="--anew"):
        await steering.start(plan())
    await steering.assign("detector", "2", {}, Terms(), "me", anew=True)
    assert (await steering.state(first, call())).models[0].version == "2"
    steering.close()
    assert (await place.open().state(first, call())).models[0].version == "2"


async def test_what_the_disk_refuses_is_written_later(place):
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    real, steering._store.write = steering._store.write, _refuse
    with pytest.raises(StorageError):
        await steering.assign("detector", "2", {}, Terms(), "me")
    with pytest.raises(StorageError):
        await steering.take_report(place.boxes.all()[0].id, told(), 1, time.time())
    steering._store.write = real
    steering.close()
    steering = place.open()
    assert [a.label for a in steering.ledger.assignments] == ["detector:2"]
    assert place.boxes.all()[0].id in steering.ledger.states
    steering.close()


def _refuse(changes):
    raise StorageError("the disk says no")


async def test_a_caller_who_leaves_does_not_have_things_written_twice(place, monkeypatch):
    steering = place.open()
    write = steering._store.write
    monkeypatch.setattr(steering._store, "write", lambda changes: (time.sleep(0.1), write(changes)))
    starting = asyncio.create_task(steering.start(plan()))
    await asyncio.sleep(0.05)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    (rollout,) = steering.ledger.rollouts.values()
    assert [entry.kind for entry in await steering.history(rollout.plan.id)] == ["started"]
    steering.close()


async def test_reports_that_come_together_are_one_write(place, monkeypatch):
    steering = place.open()
    write, written = steering._store.write, []
    monkeypatch.setattr(steering._store, "write", lambda changes: (written.append(changes), write(changes)))
    ids = [one.id for one in place.boxes.all()]
    await steering.take_reports([(key, told(NEW), 1 + at, 5.0) for at, key in enumerate(ids)])
    assert [len(changes.boxes) for changes in written] == [10]
    assert all(steering.ledger.states[key].item_id == 1 + at for at, key in enumerate(ids))
    steering.close()


async def test_orders_for_what_is_not_there(place):
    steering = place.open()
    with pytest.raises(NotFound):
        await steering.assign("detector", "none", {}, Terms(), "me")
    with pytest.raises(NotFound):
        await steering.order("pause", "nosuch", "me")
    with pytest.raises(NotFound, match="no order"):
        await steering.order("explode", "nosuch", "me")
    await steering.assign("detector", "2", {}, Terms(), "me")
    with pytest.raises(Conflict, match="assigned to these boxes already"):
        await steering.start(plan())
    steering.close()


async def test_rollouts_that_ended_long_ago_are_forgotten(place, monkeypatch):
    monkeypatch.setattr("cloud_gateway.fleet.steering.store.ENDED_KEPT", 2)
    steering = place.open()
    await steering.assign("detector", "1", {}, Terms(), "me")
    ids = []
    for _ in range(4):
        ids.append((await steering.start(plan())).plan.id)
        await steering.order("abort", ids[-1], "me")
        await asyncio.sleep(0.002)  # they are told apart by when they were made
    running = (await steering.start(plan())).plan.id
    steering.close()
    steering = place.open()
    assert sorted(steering.ledger.rollouts) == sorted([*ids[2:], running])
    assert await steering.history(ids[0]) == ()
    assert await steering.history(ids[3]) != ()
    steering.close()
