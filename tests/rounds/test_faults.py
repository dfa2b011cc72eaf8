"""A gateway whose disk is full, damaged or started anew: a clear end state each time."""

import asyncio
import errno
from pathlib import Path

import msgspec
import numpy as np
import pytest

from hybrid.errors import (
    DiskFull,
)
from hybrid.federated.campaign import Coding
from tests.rounds.lab import Box, Lab, box_id, boxes_of, running, until

PLAIN = Coding(up="float32", down="float32")


async def test_a_full_disk_accepts_nothing_and_the_box_brings_it_again(lab: Lab, monkeypatch) -> None:
    campaign = await lab.create(coding=PLAIN, goal=2, rounds=1)
    first, second, *_ = boxes_of(lab)
    call = first.update(await first.task())
    with monkeypatch.context() as patch:

        def full(works):
            raise DiskFull("no room")

        patch.setattr(lab.desk._taking.commits, "_write", full)
        with pytest.raises(DiskFull):
            await first.send(call)
    assert lab.desk.courses[campaign].counted == {}
    assert (await first.send(call)).state == "accepted"
    assert (await second.once(campaign)).state == "accepted"
    await until(lambda: campaign not in lab.desk.courses or lab.desk.courses[campaign].row.step == 1)


async def test_an_alarm_stands_while_the_disk_takes_nothing_and_goes_by_itself(tmp_path: Path, monkeypatch) -> None:
    """A row that finds room lifts nothing: a step may find none."""
    monkeypatch.setattr("cloud_gateway.rounds.kept.disk_watch.QUIET_S", 0.02)
    lifted: list[str] = []
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"), lift_alarm=lambda kind, _: lifted.append(kind))
    async with running(lab):
        campaign = await lab.create(coding=PLAIN, goal=2, rounds=1)
        await until(lambda: lifted)  # what an earlier process may have left
        first = Box(lab, 0)
        call = first.update(await first.task())
        with monkeypatch.context() as patch:

            def full(*_):
                raise DiskFull("no room")

            patch.setattr("cloud_gateway.rounds.kept.disk_watch.write_atomically", full)
            with monkeypatch.context() as rows:
                rows.setattr(lab.desk._taking.commits, "_write", full)
                with pytest.raises(DiskFull):
                    await first.send(call)
            await until(lambda: lab.alarms == ["disk_refuses"])
            assert (await lab.shown(campaign)).reason == "what boxes bring is not kept: no room"
            assert (await first.send(call)).state == "accepted"
            await asyncio.sleep(0.1)
            assert lifted == ["disk_refuses"]
        await until(lambda: lifted == ["disk_refuses"] * 2)
        await until(lambda: not lab.rounds._disk.trouble)
        assert (await lab.shown(campaign)).reason == ""
        assert not (tmp_path / "rounds" / ".tried").exists()
    lab.close()
    assert lab.alarms == ["disk_refuses"]


async def test_an_alarm_of_the_disk_stands_while_anything_is_refused_again(tmp_path: Path, monkeypatch) -> None:
    """What is refused may be larger than what is tried, or lie on another disk."""
    monkeypatch.setattr("cloud_gateway.rounds.kept.disk_watch.QUIET_S", 0.2)
    lifted: list[str] = []
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"), lift_alarm=lambda kind, _: lifted.append(kind))
    async with running(lab):
        await until(lambda: lifted)
        for _ in range(20):
            lab.rounds._disk.refused("a step of 5 MB: no room")
            await asyncio.sleep(0.02)
        assert lifted == ["disk_refuses"]
        assert lab.rounds._disk.trouble
        await until(lambda: lifted == ["disk_refuses"] * 2)
    lab.close()
    assert lab.alarms == ["disk_refuses"]


async def test_a_campaign_that_could_not_be_kept_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))

    def full(works):
        raise DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(lab.desk._taking.commits, "_write", full)
        with pytest.raises(DiskFull):
            await lab.create()
    folder = tmp_path / "rounds"
    assert not [path for path in folder.iterdir() if path.is_dir()]
    lab.close()
    (folder / "abcdefgh").mkdir()
    (folder / "abcdefgh" / "campaign.json").write_bytes(b"{}")
    (folder / ".base-1").mkdir()
    lab = Lab(tmp_path, n_boxes=4)
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert not (await lab.rounds.public.listed()).campaigns
    lab.close()


async def test_a_task_given_up_after_a_restart_is_not_given_again(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN)
    box = Box(lab, 0)
    task = await box.task()
    assert task is not None
    lab.desk.courses[campaign].leases.clear()
    assert await box.task(refused=(task.id,)) is None


async def test_gates_remember_norms_over_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=6, learns=("w2", "b2"))
    async with running(lab):
        campaign = await lab.create(coding=PLAIN, goal=5, rounds=3, over_selection=1.0)
        for box in boxes_of(lab, 5):
            await box.once(campaign)
        course = lab.desk.courses[campaign]
        await until(lambda: course.row.step == 1)
    lab.close()
    lab = Lab(tmp_path, n_boxes=6)
    box = Box(lab, 5)
    task = await box.task()
    assert task is not None
    large = np.full(650, 0.1, np.float32)  # ten times as long as those before, not as long as the base
    answer = await box.send(box.update(task, large))
    assert (answer.state, answer.gate) == ("rejected", "norm")
    assert "median" in answer.reason
    lab.close()


async def test_a_damaged_database_loses_campaigns_and_says_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    campaign = await lab.create(coding=PLAIN, goal=2)
    box = Box(lab, 0)
    task = await box.task()
    call = box.update(task)
    lab.close()
    path = tmp_path / "rounds" / "rounds.db"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    path.write_bytes(b"no database at all, " * 500)
    lab = Lab(tmp_path, n_boxes=2)
    view = await lab.shown(campaign)
    assert (view.state, lab.alarms) == ("lost", ["rounds_lost"])
    box.lab = lab
    assert (await box.send(call)).state == "closed"
    assert (await lab.desk.task(box.id, box.call())).ended == (campaign,)
    assert (await lab.rounds.public.listed()).lost
    lab.close()


async def test_large_updates_come_as_blobs_and_large_views_are_fetched(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cloud_gateway.rounds.kept.steps.INLINE_BYTES", 1000)
    for module in ("taking", "closings"):
        monkeypatch.setattr(f"cloud_gateway.rounds.course.{module}.ROW_BYTES", 1000)
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        campaign = await lab.create(coding=PLAIN, goal=2, rounds=2)
        for at in range(2):
            box = Box(lab, at)
            call = box.update(await box.task())
            lab.blobs.put(box.id, call.sha256, call.content)
            assert (await box.send(msgspec.structs.replace(call, content=b""))).state == "accepted"
        course = lab.desk.courses[campaign]
        await until(lambda: course.row.step == 1)
        await until(lambda: not list((tmp_path / "rounds" / campaign / "updates").iterdir()))
        task = await lab.desk.task(box_id(0), Box(lab, 0).call(wait_s=5.0))
        assert task.task is not None
        assert task.task.weights.n_bytes > 0
        box = Box(lab, 0)
        await box.take(task)
        assert box.views[campaign][0] == 1
    lab.close()


@pytest.mark.parametrize("order", ["stop", "pause"])
async def test_a_step_that_finds_no_room_keeps_no_person_waiting(lab: Lab, monkeypatch, order: str) -> None:
    monkeypatch.setattr("cloud_gateway.rounds.course.closings.AGAIN_S", 0.05)
    campaign = await lab.create(coding=PLAIN, goal=2, rounds=2)
    course = lab.desk.courses[campaign]

    def full(made):
        raise DiskFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(course.steps, "write", full)
        for box in boxes_of(lab, 2):
            await box.once(campaign)
        await until(lambda: course.trouble)
        assert (await lab.shown(campaign)).reason == "no room"
        async with asyncio.timeout(2.0):
            await lab.rounds.order(order, campaign)
        third = boxes_of(lab)[2]
        assert await third.task() is None
    if order == "stop":
        await until(lambda: campaign not in lab.desk.courses)
        assert ((await lab.shown(campaign)).state, course.row.step) == ("stopped", 0)
    else:  # what was chosen becomes a step all the same, once
        await until(lambda: course.row.step == 1)
        assert [view.n_counted for view in course.rounds] == [2]
        assert course.row.state == "paused"
    assert lab.alarms == ["disk_refuses"]


@pytest.mark.parametrize("is_large", [True, False])
async def test_an_update_that_the_disk_damaged_ends_the_campaign_with_the_reason(
    tmp_path: Path, monkeypatch, is_large: bool
) -> None:
    monkeypatch.setattr("cloud_gateway.rounds.course.taking.ROW_BYTES", 1000 if is_large else 1 << 20)
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        campaign = await lab.create(coding=PLAIN, goal=2)
        first, second = boxes_of(lab, 2)
        await first.once(campaign)
        if is_large:
            path = next((tmp_path / "rounds" / campaign / "updates").iterdir())
            path.write_bytes(bytes(len(path.read_bytes())))
        else:
            with lab.rounds._store.database.writing() as db:
                db.execute("UPDATE received SET content = zeroblob(2600)")
        await second.once(campaign)
        await until(lambda: campaign not in lab.desk.courses)
        view = await lab.shown(campaign)
        assert view.state == "failed"
        assert view.reason == f"the disk has damaged the update of box {first.id} for step 0"
        assert lab.alarms == ["campaign_failed"]
    lab.close()


async def test_a_campaign_ordered_on_a_full_disk_is_refused_for_that(lab: Lab, monkeypatch) -> None:
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("cloud_gateway.rounds.origin.shutil.copyfile", full)
        with pytest.raises(DiskFull):
            await lab.create()
    assert (await lab.rounds.public.listed()).campaigns == ()
