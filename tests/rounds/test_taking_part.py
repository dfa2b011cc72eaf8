"""Who may take part and how often: rounds that nobody can fill, calls of no use, cohorts that are too small."""

import msgspec
import numpy as np
import pytest

from cloud_gateway.rounds.commands.telling import lines
from hybrid.errors import CampaignImpossible, NotFound, Overloaded
from hybrid.federated.campaign import Aggregation, Coding, Cohort, Privacy
from hybrid.federated.messages import Condition, Offer
from tests.rounds.lab import MODEL, Box, FakeBox, Lab, boxes_of, until

PLAIN = Coding(up="float32", down="float32")


@pytest.mark.parametrize("how", ["rejected", "gave up", "revoked"])
async def test_a_round_that_nobody_can_fill_any_more_closes_with_what_counts(lab: Lab, how: str) -> None:
    """Not at its deadline: six boxes, a goal of six, and one that has no second try in this round."""
    campaign = await lab.create(coding=PLAIN, goal=6, least=3, rounds=2, deadline_s=3000.0)
    *others, last = boxes_of(lab)
    course = lab.desk.courses[campaign]
    task = await last.task()
    for box in others[:4]:
        await box.once(campaign)
    if how == "rejected":
        assert (await last.send(last.update(task, np.full(650, np.nan, np.float32)))).state == "rejected"
    elif how == "gave up":
        assert await last.task(refused=(task.id,)) is None
    else:
        lab.boxes.known[last.id] = FakeBox(last.id, "box-5", admission="revoked")
    assert not course.wants_closing(lab.rounds._clock_s(), lab.rounds.campaigns.cohorts.of(course.order)), (
        "one may come"
    )
    await others[4].once(campaign)
    await until(lambda: course.row.step == 1)
    assert (await lab.shown(campaign)).rounds[0].n_counted == 5
    assert (await last.task() is None) == (how == "revoked"), "in the next round it takes part again"


async def test_boxes_that_cannot_pay_for_the_round_are_not_waited_for(lab: Lab) -> None:
    order = {"goal": 4, "least": 2, "rounds": 2, "coding": PLAIN, "deadline_s": 3000.0}
    privacy = Privacy(noise=1.0, clip=9.0, max_epsilon=5.0)  # pays for one round
    campaign = await lab.create(privacy=privacy, aggregation=Aggregation(weights="uniform"), **order)
    boxes = boxes_of(lab)
    course = lab.desk.courses[campaign]
    for box in boxes[:4]:
        assert (await box.once(campaign)).state == "accepted"
    await until(lambda: course.row.step == 1)
    assert await boxes[0].task() is None
    for box in boxes[4:]:
        assert (await box.once(campaign)).state == "accepted"
    await until(lambda: course.row.step == 2)
    assert [each.n_counted for each in (await lab.shown(campaign)).rounds] == [4, 2]


async def test_too_few_are_not_closed_early(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN, goal=6, least=6, rounds=1, deadline_s=3000.0)
    *others, last = boxes_of(lab)
    task = await last.task()
    await last.task(refused=(task.id,))
    for box in others:
        await box.once(campaign)
    course = lab.desk.courses[campaign]
    assert not course.wants_closing(lab.rounds._clock_s(), lab.rounds.campaigns.cohorts.of(course.order))


async def test_calls_that_come_to_nothing_are_limited(lab: Lab) -> None:
    """Repeats, updates without a lease, calls for a task that do not wait; other boxes are not touched by it."""
    await lab.create(coding=PLAIN)
    first, second, third, fourth, *_ = boxes_of(lab)
    call = first.update(await first.task())
    assert (await first.send(call)).state == "accepted"
    for _ in range(60):
        await first.send(call)
    with pytest.raises(Overloaded, match="came to nothing"):
        await first.send(call)
    for _ in range(60):
        wrong = msgspec.structs.replace(second.update(await second.task()), task="a" * 20)
        assert (await second.send(wrong)).gate == "lease"
    with pytest.raises(Overloaded):
        await second.task()
    for _ in range(60):
        assert await third.task(offers=()) is None
    with pytest.raises(Overloaded):
        await third.task(offers=())
    lab.later_s = 1.5
    assert await third.task(offers=()) is None
    assert lab.desk.n_refused == 3
    assert (await fourth.once("")).state == "accepted"


async def test_a_lease_is_no_way_around_the_limit(lab: Lab) -> None:
    """The same first update again and again, which never comes whole."""
    await lab.create(coding=PLAIN)
    box = Box(lab, 0)
    call = box.update(await box.task(), content=b"", sha256="1" * 64)
    for _ in range(60):
        with pytest.raises(NotFound):
            await box.send(call)
    with pytest.raises(Overloaded):
        await box.send(call)


async def test_rounds_that_close_at_once_starve_no_box(lab: Lab) -> None:
    """Seventy rounds as fast as they close: each box asks, brings one update a lease, asks for the next with it."""
    campaign = await lab.create(coding=PLAIN, goal=1, rounds=70, over_selection=1.0, least=1)
    box = Box(lab, 0)
    course = lab.desk.courses[campaign]
    task = await box.task(wait_s=5.0)
    for number in range(1, 71):
        assert task is not None
        answer = await box.send(box.update(task, np.zeros(650, np.float32) + 1e-4, next=box.call()))
        assert answer.state == "accepted"
        await until(lambda number=number: course.row.step == number)
        assert answer.next is not None
        task = await (box.take(answer.next) if answer.next.task is not None else box.task(wait_s=5.0))
    assert lab.desk.n_refused == 0


async def test_a_goal_above_the_cohort_says_who_is_left_out_and_what_to_do(lab: Lab) -> None:
    for at, box in enumerate([*lab.boxes.known.values()]):
        tags = {"site": "oslo"} if at < 3 else {}
        lab.boxes.known[box.id] = FakeBox(box.id, box.name, tags, "admitted" if at != 5 else "waiting")
    box = Box(lab, 0, n_samples=10)
    assert await box.task() is None
    with pytest.raises(CampaignImpossible) as caught:
        await lab.create(goal=4, cohort=Cohort(tags={"site": "oslo"}, least_samples=50))
    text = str(caught.value)
    assert text.startswith("3 admitted boxes have the tags of the cohort (site=oslo), the goal is 4 updates a round")
    assert "of the other 3 boxes here: 2 with other tags, 1 not admitted" in text
    assert "of those 3: 2 never heard" in text
    assert "1 with too few labelled samples" in text
    assert "--goal 3 or less" in (caught.value.advice or "")


async def test_what_keeps_boxes_out_is_told_while_a_campaign_runs(lab: Lab) -> None:
    campaign = await lab.create(goal=4, cohort=Cohort(least_samples=50))
    assert (await lab.shown(campaign)).left_out == {"silent": 6}
    first, second, third, fourth, fifth, _ = boxes_of(lab)
    await first.task()
    await second.task(condition=Condition(is_on_mains=False))
    await third.task(condition=Condition(is_metered=True))
    await fourth.task(offers=(Offer(model=MODEL, artifact_digest="0" * 64, variant="original", n_samples=100),))
    fifth.n_samples = 49
    await fifth.task()
    view = await lab.shown(campaign)
    assert (view.n_boxes, view.n_able) == (6, 1)
    assert view.left_out == {"power": 1, "metered": 1, "model": 1, "samples": 1, "silent": 1}
    assert "1 box of 6 could begin a task now; 1 on a metered link, 1 with another version" in "\n".join(lines(view))
    await Box(lab, 5).task(offers=())
    view = await lab.shown(campaign)
    assert view.left_out == {"power": 1, "metered": 1, "model": 1, "samples": 1, "offer": 1}
    assert "1 that offer nothing of the model" in "\n".join(lines(view))
    await lab.rounds.order("stop", campaign)
    assert (await lab.shown(campaign)).left_out == {}
