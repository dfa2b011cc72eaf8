"""What happens between two looks at the same thing: each race made to happen at the moment in which it did harm."""

import asyncio
import threading
from functools import partial

import msgspec

from cloud_gateway.rounds.course import closings
from cloud_gateway.rounds.kept import steps
from cloud_gateway.rounds.kept.store import CampaignRow
from cloud_gateway.rounds.messages import PromoteWish
from hybrid.errors import StorageError
from hybrid.federated.campaign import Aggregation, Coding, Privacy, Promotion
from hybrid.federated.messages import Offer
from tests.rounds.lab import MODEL, Lab, boxes_of, until

PLAIN = Coding(up="float32", down="int8")


async def once_each(lab: Lab, campaign: str, n_rounds: int) -> None:
    """Rounds of one update."""
    (box,) = boxes_of(lab, 1)
    for _ in range(n_rounds):
        step = lab.desk.courses[campaign].row.step
        await box.once(campaign)
        await until(lambda step=step: lab.desk.courses[campaign].row.step > step)


async def test_a_round_closes_with_an_update_that_was_being_written(lab: Lab, monkeypatch) -> None:
    campaign = await lab.create(goal=1, over_selection=2.0, coding=PLAIN)
    first, second = boxes_of(lab, 2)
    tasks = [await first.task(), await second.task()]
    course, keep = lab.desk.courses[campaign], lab.desk._taking._keep
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def keep_slowly(course, row, content):
        if row.box_id == second.id:
            begun.set()
            await may_go_on.wait()
        return await keep(course, row, content)

    monkeypatch.setattr(lab.desk._taking, "_keep", keep_slowly)
    async with course.lock:  # as whoever begins a promotion holds it: meanwhile updates are taken
        assert (await first.send(first.update(tasks[0]))).state == "accepted"
        await until(lambda: course.lock._waiters)  # the goal is met: a closer waits
        late = asyncio.create_task(second.send(second.update(tasks[1])))
        await begun.wait()
    may_go_on.set()
    assert (await late).state == "accepted"
    await until(lambda: course.row.step == 1)
    report = await lab.rounds.public.report(campaign)
    assert report.campaign.rounds[0].n_counted == 2
    assert {each.outcomes["counted"] for each in report.boxes} == {1}
    assert not course.counted


async def test_a_round_that_was_half_closed_takes_nothing_more_in(tmp_path) -> None:
    lab = Lab(tmp_path, learns=("w2", "b2"))
    campaign = await lab.create(goal=2, rounds=2, coding=PLAIN)
    first, second, third = boxes_of(lab, 3)
    course = lab.desk.courses[campaign]
    late = third.update(await third.task())
    for box in (first, second):
        await box.once(campaign)
    rows = sorted(course.counted.values(), key=lambda row: row.id)
    await lab.rounds._closings._choose(course, rows, [], b"", 0.0)  # and here the power fails
    lab.close()
    again = Lab(tmp_path, learns=("w2", "b2"))
    third.lab = again
    sent = asyncio.create_task(third.send(late))
    async with asyncio.timeout(10.0):
        while not (sent.done() or again.desk._closed):  # it waits for the round to close  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    work = asyncio.create_task(again.rounds.run())
    assert (await sent).state == "stale"
    assert again.desk.courses[campaign].rounds[0].n_counted == 2
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    again.close()


async def test_who_brought_an_update_to_a_half_closed_round_is_told_at_once_also_while_it_is_paused(tmp_path) -> None:
    lab = Lab(tmp_path, learns=("w2", "b2"))
    campaign = await lab.create(goal=2, rounds=2, coding=PLAIN)
    first, second = boxes_of(lab, 2)
    course = lab.desk.courses[campaign]
    call = first.update(await first.task())
    assert (await first.send(call)).state == "accepted"
    await second.once(campaign)
    rows = sorted(course.counted.values(), key=lambda row: row.id)
    await lab.rounds._closings._choose(course, rows, [], b"", 0.0)  # and here the power fails
    lab.close()
    again = Lab(tmp_path, learns=("w2", "b2"))
    await again.rounds.order("pause", campaign)
    first.lab = again
    async with asyncio.timeout(5.0):
        assert (await first.send(call)).state == "accepted"
    assert again.desk.courses[campaign].is_half_closed
    again.close()


async def test_campaigns_that_begin_at_once_have_one_account_of_what_boxes_spent(lab: Lab, monkeypatch) -> None:
    read, both = lab.rounds._store.accounts, threading.Barrier(2, timeout=10.0)

    def read_side_by_side(model: str):
        found = read(model)
        both.wait()
        return found

    monkeypatch.setattr(lab.rounds._store, "accounts", read_side_by_side)
    privacy, uniform = Privacy(noise=2.0, clip=1.0, max_epsilon=50.0), Aggregation(weights="uniform")
    begin = partial(lab.create, privacy=privacy, aggregation=uniform)
    first, second = await asyncio.gather(begin(), begin())
    assert lab.desk.courses[first].spent is lab.desk.courses[second].spent


async def test_a_version_of_one_campaign_takes_part_in_another_with_the_same_base(lab: Lab) -> None:
    promotion = Promotion(policy="none", cohort_evaluation=False)
    one = await lab.create(goal=1, over_selection=1.0, rounds=2, coding=PLAIN, promotion=promotion)
    await once_each(lab, one, 1)
    other = await lab.create(goal=1, coding=PLAIN)
    await lab.rounds.order("pause", one)
    await lab.rounds.promote(one, PromoteWish())
    await until(lambda: lab.desk.courses[one].promotion is None)
    learned = lab.registry.list_versions(MODEL)[-1].artifact_digest
    assert learned != lab.digest
    box = boxes_of(lab, 1)[0]
    offer = Offer(model=MODEL, artifact_digest=learned, variant="original", n_samples=100)
    answer = await lab.desk.task(box.id, box.call(offers=(offer,), held=()))
    assert answer.task is not None
    assert answer.task.campaign == other


async def test_who_tells_of_an_end_twice_takes_no_campaign_that_was_woken_since(lab: Lab) -> None:
    campaign = await lab.create(goal=1, over_selection=1.0, coding=PLAIN)
    await once_each(lab, campaign, 1)
    ended = lab.desk.courses[campaign]
    await lab.rounds.order("stop", campaign)
    await lab.rounds.promote(campaign, PromoteWish())
    woken = lab.desk.courses[campaign]
    assert woken is not ended
    lab.rounds._ended(ended)  # a closer that the disk made wait, and that finds its campaign stopped
    await lab.rounds._let_go()
    assert lab.desk.courses[campaign] is woken
    box = boxes_of(lab, 1)[0]
    task = (await lab.desk.task(box.id, box.call())).task
    assert task is not None
    assert task.kind == "evaluate"


async def test_a_campaign_that_the_disk_kept_from_leaving_leaves_later(tmp_path, monkeypatch) -> None:
    lab = Lab(tmp_path)
    kept, other = [await lab.create(promotion=Promotion(policy="candidate")) for _ in range(2)]
    for campaign in (other, kept):
        course = lab.desk.courses[campaign]
        course.row = msgspec.structs.replace(course.row, state="completed", step=1)
        lab.rounds._ended(course)

    def is_home(row: CampaignRow) -> bool:
        if row.id == kept:
            raise StorageError("the disk refuses")
        return True

    monkeypatch.setattr(lab.rounds.campaigns, "is_home", is_home)
    await lab.rounds._let_go()
    assert [*lab.desk.courses] == [kept]
    monkeypatch.setattr(lab.rounds.campaigns, "is_home", lambda _: True)
    await lab.rounds._let_go()
    assert not lab.desk.courses
    lab.close()


async def test_a_view_shows_one_moment(lab: Lab, monkeypatch) -> None:
    campaign = await lab.create(goal=1, over_selection=1.0, rounds=2, coding=PLAIN)
    loop, read = asyncio.get_running_loop(), lab.rounds._store.promotions

    def read_while_a_round_closes(campaign: str):
        monkeypatch.undo()
        asyncio.run_coroutine_threadsafe(once_each(lab, campaign, 1), loop).result(10.0)
        return read(campaign)

    monkeypatch.setattr(lab.rounds._store, "promotions", read_while_a_round_closes)
    seen = await lab.shown(campaign)
    assert seen.step == sum(each.state == "closed" for each in seen.rounds) == 1


async def test_writers_that_left_keep_nobody_waiting(lab: Lab) -> None:
    commits = lab.desk._taking.commits
    async with commits._writing:  # somebody writes, and more than a group of others come and go
        gone = [asyncio.create_task(commits.write(lambda _: None)) for _ in range(300)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.gather(*gone, return_exceptions=True)
        last = asyncio.create_task(commits.write(lambda _: "written"))
        await asyncio.sleep(0)
    async with asyncio.timeout(10.0):
        assert await last == "written"


async def test_who_shares_a_write_is_told_though_the_writer_left_twice(lab: Lab, monkeypatch) -> None:
    commits = lab.desk._taking.commits
    write, begun, may_go_on = commits._write, threading.Event(), threading.Event()

    def write_slowly(works):
        begun.set()
        may_go_on.wait(10.0)
        return write(works)

    monkeypatch.setattr(commits, "_write", write_slowly)
    async with commits._writing:
        writer = asyncio.create_task(commits.write(lambda _: "one"))
        other = asyncio.create_task(commits.write(lambda _: "other"))
        await asyncio.sleep(0)
    assert await asyncio.to_thread(begun.wait, 10.0)
    for _ in range(2):
        writer.cancel()
        await asyncio.sleep(0)
    may_go_on.set()
    async with asyncio.timeout(10.0):
        assert await other == "other"


async def test_a_step_that_is_evaluated_stays_on_the_disk(lab: Lab, monkeypatch) -> None:
    monkeypatch.setattr(steps, "MOST_BYTES", 0)
    campaign = await lab.create(goal=1, over_selection=1.0, rounds=9, coding=PLAIN)
    await once_each(lab, campaign, 2)
    await lab.rounds.promote(campaign, PromoteWish(step=2))
    monkeypatch.setattr(closings, "_PRUNE_EVERY", 1)
    course = lab.desk.courses[campaign]
    course.declined.add(boxes_of(lab, 1)[0].id)  # it trains on
    await once_each(lab, campaign, 3)
    kept = sorted(int(path.stem) for path in course.steps.path(0).parent.glob("*.step"))
    assert kept == [0, 1, 2, 5]
