"""Every gate and every end: what does not count changes nothing, is counted, and says why."""

import asyncio
import io

import msgspec
import numpy as np
import pytest

from hybrid.errors import (
    BadMessage,
    CampaignImpossible,
    Conflict,
    HybridError,
    NotFound,
    VersionUnsupported,
)
from hybrid.federated.campaign import Aggregation, Coding, Cohort, Promotion, Training
from hybrid.federated.messages import Condition, EvaluationCall, Offer
from tests.rounds.lab import MODEL, Box, FakeBox, Lab, boxes_of, until

PLAIN = Coding(up="float32", down="float32")


async def test_the_same_again_is_accepted_again_and_counts_once(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN, goal=2, rounds=2)
    first, second, *_ = boxes_of(lab)
    task = await first.task()
    call = first.update(task)
    assert (await first.send(call)).state == "accepted"
    assert (await first.send(call)).state == "accepted"
    other = first.update(task)
    with pytest.raises(Conflict):
        await first.send(other)
    assert lab.desk.courses[campaign].outcomes == {"accepted": 1, "conflict": 1}
    assert await first.task() is None
    await second.once(campaign)
    await until(lambda: lab.desk.courses[campaign].row.step == 1)
    assert (await first.send(call)).state == "accepted"
    with pytest.raises(Conflict):
        await first.send(other)
    assert (await lab.shown(campaign)).rounds[0].n_counted == 2


@pytest.mark.parametrize(
    ("gate", "wrong"),
    [
        ("finite", lambda box, task: box.update(task, np.full(650, np.nan, np.float32))),
        ("norm", lambda box, task: box.update(task, np.full(650, 1e4, np.float32))),
        ("shape", lambda box, task: box.update(task, np.ones(649, np.float32))),
        ("shape", lambda box, task: box.update(task, form="int8")),
        ("shape", lambda box, task: box.update(task, n_bytes=7)),
        ("shape", lambda box, task: box.update(task, sha256="0" * 64)),
        ("shape", lambda box, task: box.update(task, n_samples=0)),
        ("finite", lambda box, task: box.update(task, loss_before=float("nan"))),
        ("finite", lambda box, task: box.update(task, loss_after=float("inf"))),
        ("shape", lambda box, task: box.update(task, control=bytes(4 * 650))),
        ("lease", lambda box, task: msgspec.structs.replace(box.update(task), task="a" * 20)),
        ("lease", lambda box, task: msgspec.structs.replace(box.update(task), step=1)),
    ],
)
async def test_one_bad_update_changes_nothing(lab: Lab, gate: str, wrong) -> None:
    campaign = await lab.create(coding=PLAIN, goal=3, rounds=1)
    boxes = boxes_of(lab, 4)
    task = await boxes[0].task()
    answer = await boxes[0].send(wrong(boxes[0], task))
    assert (answer.state, answer.gate) == ("rejected", gate)
    assert answer.reason
    course = lab.desk.courses[campaign]
    assert course.outcomes == {f"rejected:{gate}": 1}
    vectors = []
    for box in boxes[1:]:
        task = await box.task()
        vectors.append(np.random.default_rng(len(vectors)).normal(size=650).astype(np.float32) * np.float32(0.01))
        assert (await box.send(box.update(task, vectors[-1], n_samples=10))).state == "accepted"
    await until(lambda: campaign not in lab.desk.courses or course.row.step == 1)
    before = np.frombuffer(course.steps.read(0).weights, "<f4")
    wanted = before + np.mean(np.array(vectors, np.float64), axis=0).astype(np.float32)
    assert np.array_equal(np.frombuffer(course.steps.newest.weights, "<f4"), wanted)


async def test_another_boxs_task_is_no_lease(lab: Lab) -> None:
    await lab.create(coding=PLAIN)
    first, second, *_ = boxes_of(lab)
    task = await first.task()
    await second.task()
    answer = await second.send(second.update(task))
    assert (answer.state, answer.gate) == ("rejected", "lease")
    assert (await second.once("")).state == "accepted"


async def test_a_box_that_was_late_is_stale_and_an_ended_campaign_closed(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN, goal=2, rounds=2, over_selection=2.0)
    boxes = boxes_of(lab)
    late = await boxes[0].task()
    for box in boxes[1:3]:
        await box.once(campaign)
    await until(lambda: lab.desk.courses[campaign].row.step == 1)
    assert (await boxes[0].send(boxes[0].update(late))).state == "stale"
    await lab.rounds.order("stop", campaign)
    assert (await boxes[0].send(boxes[0].update(late))).state == "closed"
    assert (await lab.desk.task(boxes[1].id, boxes[1].call())).ended == (campaign,)
    assert (await lab.shown(campaign)).state == "stopped"
    with pytest.raises(Conflict, match="stopped"):
        await lab.rounds.order("resume", campaign)


async def test_buffered_rounds_take_what_began_before(lab: Lab) -> None:
    campaign = await lab.create(
        coding=Coding(up="float32", down="int8"), goal=2, rounds=3, over_selection=3.0,
        aggregation=Aggregation(max_staleness=1),
    )  # fmt: skip
    boxes = boxes_of(lab)
    late = await boxes[0].task()
    too_late = await boxes[1].task()
    for box in boxes[2:4]:
        await box.once(campaign)
    await until(lambda: lab.desk.courses[campaign].row.step == 1)
    assert (await boxes[0].send(boxes[0].update(late))).state == "accepted"
    row = lab.desk.courses[campaign].counted[boxes[0].id]
    assert (row.round, row.step, row.body.staleness) == (2, 0, 1)
    await boxes[4].once(campaign)
    await until(lambda: lab.desk.courses[campaign].row.step == 2)
    assert (await boxes[1].send(boxes[1].update(too_late))).state == "stale"


async def test_leases_are_bounded_end_and_are_given_back(lab: Lab) -> None:
    await lab.create(coding=PLAIN, goal=2, over_selection=1.0, lease_s=30.0)
    boxes = boxes_of(lab)
    first = await boxes[0].task()
    again = await boxes[0].task()
    assert (first.id, first.seed) == (again.id, again.seed)
    assert await boxes[1].task() is not None
    assert await boxes[2].task() is None
    waiting = asyncio.create_task(boxes[2].task(wait_s=20.0))
    await asyncio.sleep(0.01)
    assert await boxes[0].task(refused=(first.id,)) is None
    assert await waiting is not None
    lab.later_s = 31.0
    assert await boxes[3].task() is not None


async def test_a_box_whose_update_is_being_written_takes_one_place(lab: Lab, monkeypatch) -> None:
    await lab.create(coding=PLAIN, goal=2, over_selection=1.0)
    first, second, *_ = boxes_of(lab)
    call = first.update(await first.task())
    keep = lab.desk._taking._keep

    async def slowly(*words):
        assert await second.task() is not None
        return await keep(*words)

    monkeypatch.setattr(lab.desk._taking, "_keep", slowly)
    assert (await first.send(call)).state == "accepted"


async def test_a_rejected_update_frees_its_place_for_who_waits(lab: Lab) -> None:
    await lab.create(coding=PLAIN, goal=1, over_selection=1.0)
    first, second, *_ = boxes_of(lab)
    task = await first.task()
    waiting = asyncio.create_task(second.task(wait_s=20.0))
    await asyncio.sleep(0.01)
    assert (await first.send(first.update(task, np.full(650, np.nan, np.float32)))).state == "rejected"
    assert await asyncio.wait_for(waiting, 5.0) is not None


async def test_who_may_not_train_gets_nothing(lab: Lab) -> None:
    await lab.create(coding=PLAIN, cohort=Cohort(tags={}, least_samples=50), goal=2)
    box = Box(lab, 0, n_samples=49)
    assert await box.task() is None
    box.n_samples = 50
    for condition in (Condition(is_on_mains=False), Condition(is_metered=True), Condition(is_well=False)):
        assert await box.task(condition=condition) is None
    offer = Offer(model=MODEL, artifact_digest="0" * 64, variant="original", n_samples=100)
    assert await box.task(offers=(offer,)) is None
    lab.boxes.known[box.id] = FakeBox(box.id, "box-0", admission="revoked")
    assert await box.task() is None
    lab.boxes.known[box.id] = FakeBox(box.id, "box-0")
    assert await box.task() is not None


async def test_a_round_that_never_reaches_its_goal_stalls_and_goes_on(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN, goal=3, least=2, rounds=1, deadline_s=100.0, most_abandoned=3)
    first, second, *_ = boxes_of(lab)
    await first.once(campaign)
    course = lab.desk.courses[campaign]
    for times in range(1, 4):
        lab.later_s += 101.0
        await until(lambda times=times: course.row.n_abandoned == times)
    assert course.row.state == "stalled"
    assert lab.alarms == ["campaign_stalled"]
    assert await second.task() is None
    await lab.rounds.order("resume", campaign)
    assert (await second.once(campaign)).state == "accepted"
    lab.later_s += 101.0
    await until(lambda: course.row.step == 1)
    view = await lab.shown(campaign)
    assert (view.rounds[0].n_counted, view.rounds[0].n_abandoned, view.state) == (2, 3, "completed")


async def test_paused_campaigns_wait(lab: Lab) -> None:
    campaign = await lab.create(coding=PLAIN, goal=2, rounds=1)
    first, second, *_ = boxes_of(lab)
    task = await first.task()
    await lab.rounds.order("pause", campaign)
    assert await second.task() is None
    assert (await first.send(first.update(task))).state == "accepted"
    with pytest.raises(Conflict):
        await lab.rounds.order("pause", campaign)
    await lab.rounds.order("resume", campaign)
    assert (await second.once(campaign)).state == "accepted"
    await until(lambda: campaign not in lab.desk.courses or lab.desk.courses[campaign].row.step == 1)


async def test_a_forgotten_or_wrong_call(lab: Lab) -> None:
    await lab.create(coding=PLAIN)
    box = Box(lab, 0)
    assert (await lab.desk.task(box.id, box.call(is_as_before=True, offers=()))).is_forgotten
    with pytest.raises(VersionUnsupported):
        await lab.desk.task(box.id, box.call(protocol=2))
    with pytest.raises(NotFound):
        await lab.desk.weights(box.id, "none", 0, -1)
    task = await box.task()
    with pytest.raises(NotFound):
        await box.send(box.update(task, content=b"", sha256="1" * 64))
    unknown = EvaluationCall(
        epoch="e", task="x", campaign=task.campaign, step=0, n=1, n_right=0, n_base_right=0, n_lost=0, n_won=0
    )
    assert (await lab.desk.evaluation(box.id, unknown)).state == "closed"


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"goal": 7}, "6 admitted boxes"),
        ({"cohort": Cohort(tags={"site": "oslo"})}, "0 admitted boxes"),
        ({"training": Training(personal=("*",))}, "nothing would travel"),
        ({"training": Training(personal=("w?", "layer1.*"))}, "no tensor of the head is called 'layer1"),
        ({"promotion": Promotion(tolerance=-0.01)}, "not -0.01"),
        ({"promotion": Promotion(tolerance=float("nan"))}, "not nan"),
        ({"goal": 0}, "1 or more"),
        ({"training": Training(label_smoothing=1.0)}, "smoothing is 1, 0 to below 1"),
        ({"training": Training(label_smoothing=float("nan"))}, "smoothing is nan"),
    ],
)
async def test_what_cannot_be_is_refused_at_once(lab: Lab, order: dict, why: str) -> None:
    with pytest.raises(CampaignImpossible, match=why):
        await lab.create(**order)
    assert not [path for path in (lab.folder / "rounds").iterdir() if path.is_dir()]


async def test_unknown_models_and_sets(lab: Lab) -> None:
    with pytest.raises(NotFound):
        await lab.create(model="none")
    with pytest.raises(NotFound):
        await lab.create(evaluation="0" * 64)
    with pytest.raises(BadMessage, match="npz"):
        lab.rounds.sets.put(b"PK\x03\x04 nonsense")


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({"image": np.zeros((3, 64), np.float32)}, "labels"),
        ({"labels": np.zeros(3, np.int64)}, "labels"),
        ({"labels": np.zeros(2, np.int64), "image": np.zeros((3, 64), np.float32)}, "2 labels"),
        ({"labels": np.full(3, -1), "image": np.zeros((3, 64), np.float32)}, "from 0 on"),
        ({"labels": np.array([{}] * 3, object), "image": np.zeros((3, 64), np.float32)}, "no .npz file"),
        ({"labels": np.zeros(3, np.int64), "other": np.zeros((3, 64), np.float32)}, "'image'"),
        (
            {"labels": np.zeros(3, np.int64), "image": np.zeros((3, 63), np.float32)},
            "'image' is 1x63, the model wants .x64",
        ),
        (
            {"labels": np.zeros(3, np.int64), "image": np.zeros((3, 64))},
            "'image' holds float64, the model wants float32",
        ),
        ({"labels": np.zeros(3, np.int64), "image": np.full((3, 64), np.nan, np.float32)}, "3 of 3 samples"),
        ({"labels": np.full(3, 99), "image": np.zeros((3, 64), np.float32)}, "99"),
    ],
)
async def test_sets_that_do_not_fit(lab: Lab, arrays: dict, why: str) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with pytest.raises(HybridError, match=why):
        await lab.create(lab.rounds.sets.put(buffer.getvalue()).sha256)
