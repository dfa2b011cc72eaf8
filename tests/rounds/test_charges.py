"""What releases cost the boxes in them, where campaigns close side by side, sums change, or a box has nothing left."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from cloud_gateway.rounds.desk import MASKED_CALLS_AT_ONCE
from cloud_gateway.rounds.home.statements import statement_of
from cloud_gateway.rounds.kept.steps import as_vector
from cloud_gateway.rounds.kept.store import RoundStore
from hybrid.artifact.manifest import LineageStep
from hybrid.errors import Overloaded, PrivacySpent
from hybrid.federated.campaign import Aggregation, Coding, Privacy
from hybrid.federated.messages import SecureCall
from hybrid.federated.secure.quantized import Sum
from tests.rounds.lab import MODEL, Box, Lab, box_id, running, until

UNIFORM = Aggregation(weights="uniform")


def costs(lab: Lab) -> dict[str, float]:
    return {box: account.cost for box, account in lab.rounds._store.accounts(MODEL).items()}


async def test_campaigns_of_one_model_that_close_at_once_both_charge(tmp_path: Path, monkeypatch) -> None:
    """Each reads an account, adds to it and writes it: one after the other, or a charge is lost."""
    read = RoundStore.accounts

    def slowly(store, model):
        found = read(store, model)
        time.sleep(0.1)
        return found

    lab = Lab(tmp_path, n_boxes=2)
    async with running(lab):
        order = {"goal": 2, "rounds": 1, "coding": Coding(up="float32"), "aggregation": UNIFORM}
        for _ in range(2):
            await lab.create(**order, privacy=Privacy(noise=2.0, clip=1.0, max_epsilon=50.0))
        monkeypatch.setattr(RoundStore, "accounts", slowly)
        for _ in range(2):
            for number in range(2):
                assert (await Box(lab, number).once("")).state == "accepted"
        await until(lambda: not lab.desk.courses)
    monkeypatch.undo()
    assert costs(lab) == {box_id(0): 0.5, box_id(1): 0.5}
    lab.close()


async def test_campaigns_that_have_ended_are_one_figure_in_an_account(tmp_path: Path) -> None:
    """An account is as long as the campaigns that run, not as all rounds that ever were; what was spent stays."""
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    privacy = Privacy(noise=2.0, clip=1.0, max_epsilon=3.8)  # three rounds of a box
    order = {"goal": 2, "coding": Coding(up="float32"), "aggregation": UNIFORM, "privacy": privacy}
    async with running(lab):
        first = await lab.create(rounds=2, **order)
        await worked(lab, first, 2)
        second = await lab.create(rounds=5, **order)
        await worked(lab, second, 1)
        for account in lab.rounds._store.accounts(MODEL).values():
            assert (account.closed, account.open) == ({first: 0.5}, {second: {1: 0.25}})
            assert account.cost_in(first) == 0.5
        view = await lab.shown(second)
        assert (view.state, view.step, [each.state for each in view.rounds]) == ("spent", 1, ["closed", "abandoned"])
        with pytest.raises(PrivacySpent, match="0 of 2 boxes"):
            await lab.create(rounds=1, **order)
    lab.close()


async def test_a_campaign_that_ended_in_memory_alone_stays_open_in_the_accounts(tmp_path: Path) -> None:
    """Its end came to no disk: after a restart it runs again, and charges."""
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    order = {"goal": 2, "coding": Coding(up="float32"), "aggregation": UNIFORM, "privacy": Privacy(noise=2.0, clip=1.0)}
    async with running(lab):
        first, second = await lab.create(rounds=3, **order), await lab.create(rounds=3, **order)
        await worked(lab, first, 1)
        course = lab.desk.courses[first]
        course.row = msgspec.structs.replace(course.row, state="failed")
        await worked(lab, second, 1)
        opened = [set(account.open) for account in lab.rounds._store.accounts(MODEL).values()]
    lab.close()
    assert opened == [{first, second}] * 2
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        await worked(lab, first, 2)
    assert costs(lab) == {box_id(0): 0.75, box_id(1): 0.75}
    lab.close()


async def test_an_account_that_the_disk_damaged_is_the_most_that_any_box_spent_and_stops_no_campaign(
    tmp_path: Path,
) -> None:
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    order = {"goal": 2, "coding": Coding(up="float32"), "aggregation": UNIFORM, "privacy": Privacy(noise=2.0, clip=1.0)}
    async with running(lab):
        campaign = await lab.create(rounds=3, **order)
        await worked(lab, campaign, 1)
    with lab.rounds._store.database.writing() as db:
        db.execute("UPDATE account SET body = CAST('{no account' AS BLOB) WHERE box = ?", (box_id(0),))
    lab.close()
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        assert (await lab.shown(campaign)).state == "running"
        await worked(lab, campaign, 2)
        assert (await lab.shown(await lab.create(rounds=1, **order))).state == "running"
    assert costs(lab) == {box_id(0): 0.5, box_id(1): 0.5}
    lab.close()


@pytest.mark.parametrize("is_restarted", [False, True])
async def test_what_was_spent_never_falls_where_the_disk_damaged_all_accounts(
    tmp_path: Path, is_restarted: bool
) -> None:
    """Nothing else says how much: what later campaigns sign, and who may take part, hangs on it."""
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    privacy = Privacy(noise=2.0, clip=1.0, max_epsilon=3.8)  # three rounds of a box
    order = {"goal": 2, "coding": Coding(up="float32"), "aggregation": UNIFORM, "privacy": privacy}
    async with running(lab):
        first = await lab.create(rounds=2, **order)
        await worked(lab, first, 2)
    store, row = lab.rounds._store, lab.rounds.campaigns.row(first)
    with store.database.writing() as db:
        db.execute("UPDATE account SET body = CAST('{no account' AS BLOB)")
    before = LineageStep(step="rounds", artifact_digest="", detail=statement_of(store, row, 2, ()).detail())
    assert statement_of(store, row, 2, [before]).cost == pytest.approx(0.5 + 0.5)
    if is_restarted:
        lab.close()
        lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    async with running(lab):
        second = await lab.create(rounds=5, **order)
        spent = lab.desk.courses[second].spent
        await worked(lab, second, 1)
        assert spent == costs(lab) == {box_id(0): 0.75, box_id(1): 0.75}
        assert (lab.rounds.campaigns.row(second).cost, lab.rounds.campaigns.row(second).state) == (0.75, "spent")
    lab.close()


async def test_what_was_read_before_the_disk_damaged_an_account_and_its_campaign_counts(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=2, learns=("w2", "b2"))
    order = {"goal": 2, "coding": Coding(up="float32"), "aggregation": UNIFORM, "privacy": Privacy(noise=2.0, clip=1.0)}
    async with running(lab):
        campaign = await lab.create(rounds=5, **order)
        await worked(lab, campaign, 2)
        with lab.rounds._store.database.writing() as db:
            db.execute("UPDATE account SET body = X'00'")
            db.execute("UPDATE campaign SET body = X'00'")
        await worked(lab, campaign, 3)
    assert costs(lab) == {box_id(0): 0.75, box_id(1): 0.75}
    lab.close()


@pytest.fixture
async def shared(tmp_path: Path):
    """A round with the updates that it wants, not closed yet, of whose boxes other campaigns may charge meanwhile."""
    lab = Lab(tmp_path, n_boxes=3, learns=("w2", "b2"))
    privacy = Privacy(noise=2.0, clip=1.0, max_epsilon=50.0)
    order = {"goal": 2, "over_selection": 1.0, "rounds": 5, "coding": Coding(up="float32"), "aggregation": UNIFORM}
    campaign = await lab.create(privacy=privacy, **order)
    for number in range(2):
        assert (await Box(lab, number).once(campaign)).state == "accepted"
    yield SimpleNamespace(lab=lab, course=lab.desk.courses[campaign], id=campaign)
    lab.close()


async def test_a_box_that_can_pay_no_more_leaves_its_place_to_another(shared) -> None:
    shared.course.spent[box_id(0)] = 1e6
    async with running(shared.lab):
        answer = await Box(shared.lab, 2).once(shared.id)
        assert answer is not None
        assert answer.state == "accepted"
        await until(lambda: shared.course.row.step == 1)
    assert shared.course.rounds[0].n_counted == 2
    assert set(costs(shared.lab)) == {box_id(1), box_id(2)}


async def test_a_round_whose_boxes_can_pay_no_more_waits_for_others_and_then_is_spent(shared) -> None:
    """It is not begun anew as fast as the loop turns."""
    course, lab = shared.course, shared.lab
    course.spent.update({box_id(number): 1e6 for number in range(3)})
    assert not course.wants_closing(lab._clock_s(), [box_id(number) for number in range(3)])
    lab.later_s += course.order.deadline_s
    async with running(lab):
        await until(lambda: shared.id not in lab.desk.courses)
    view = await lab.shown(shared.id)
    assert (view.state, view.step, view.rounds[0].n_abandoned) == ("spent", 0, 0)
    assert "0 of 3 boxes have enough privacy left" in view.reason


async def worked(lab: Lab, campaign: str, step: int) -> None:
    """Both boxes learn until a campaign stands at this step."""
    boxes = [Box(lab, number) for number in range(2)]
    while lab.rounds.campaigns.row(campaign).step < step:
        before = lab.rounds.campaigns.row(campaign).step
        for box in boxes:
            task = await box.task(held=())
            while task is not None and task.campaign != campaign:  # another one asks too: it gets nothing
                task = await box.task(held=(), refused=(task.id,))
            assert task is not None
            assert (await box.send(box.update(task))).state == "accepted"
        await until(lambda at=before: lab.rounds.campaigns.row(campaign).step > at)
    await until(lambda: not any(course.closing for course in lab.desk.courses.values()))


class Masked:
    """A masked round that came to a sum of some boxes, or to none."""

    def __init__(self, boxes: list[int], n_elements: int = 0) -> None:
        self.live_box_ids = [box_id(number) for number in boxes]
        zeros = np.zeros(n_elements, np.int64)
        self.sum = Sum(levels=zeros, bits=0, n_devices=len(boxes), step_size=0.01) if boxes else None
        self.trouble, self.came = "too few dealt", "3 boxes came together and 3 are needed"
        self.n_anew = 0

    async def begin_anew(self, reason: str = "") -> None:
        self.n_anew, self.trouble = self.n_anew + 1, reason or self.trouble


@pytest.fixture
async def secure(tmp_path: Path):
    """A campaign whose closings are called by hand."""
    lab = Lab(tmp_path, n_boxes=4)
    privacy = Privacy(secure=True, noise=2.0, clip=1.0, max_epsilon=50.0)
    campaign = await lab.create(goal=4, rounds=5, most_abandoned=1, privacy=privacy, aggregation=UNIFORM)
    course = lab.desk.courses[campaign]
    yield SimpleNamespace(lab=lab, course=course, closings=lab.rounds._closings, n=course.layout.n_elements)
    lab.close()


async def test_another_sum_after_a_kill_is_paid_for_by_the_boxes_in_it(secure, monkeypatch) -> None:
    """The seed was drawn and three boxes charged; then the disk lost an input, and the next attempt had another."""

    def cut(*_):
        raise asyncio.CancelledError

    monkeypatch.setattr(secure.closings, "_made", cut)
    with pytest.raises(asyncio.CancelledError):
        await secure.closings._close_masked(secure.course, Masked([0, 1, 2], secure.n))
    drawn = secure.lab.rounds._store.rounds(secure.course.id, 1)[-1].noise
    assert len(drawn) == 32
    monkeypatch.undo()
    used = []
    made = secure.closings._made
    monkeypatch.setattr(secure.closings, "_made", lambda *args: used.append(args[2]) or made(*args))
    await secure.closings._close_masked(secure.course, Masked([1, 2, 3], secure.n))
    assert used == [drawn], "a seed is drawn once a round"
    assert secure.course.row.step == 1
    assert costs(secure.lab) == {box_id(number): 0.25 for number in range(4)}
    assert secure.lab.rounds._store.rounds(secure.course.id)[0].noise == b""


async def test_a_masked_sum_is_divided_by_the_goal_however_many_came(secure) -> None:
    """Noise of two clip norms on a sum of three, over the four that were wanted."""
    before = as_vector(secure.course.steps.newest.weights)
    await secure.closings._close_masked(secure.course, Masked([0, 1, 2], secure.n))
    moved = as_vector(secure.course.steps.newest.weights) - before
    assert np.std(moved) == pytest.approx(2.0 / 4, rel=0.06)


async def test_a_sum_that_a_box_cannot_pay_for_is_not_released(secure) -> None:
    """Another campaign charged it while it masked: a sum cannot be had without it."""
    secure.course.spent[box_id(1)] = 1e6
    masked = Masked([0, 1, 2], secure.n)
    await secure.closings._close_masked(secure.course, masked)
    assert (masked.n_anew, secure.course.row.step, costs(secure.lab)) == (1, 0, {})
    assert "no privacy left" in secure.course.row.reason


async def test_a_masked_campaign_that_stalls_says_what_its_rounds_lacked(secure) -> None:
    masked = Masked([])
    await secure.closings._close_masked(secure.course, masked)
    assert (masked.n_anew, secure.course.row.state) == (1, "stalled")
    assert "came to no sum: too few dealt. A box masks one input a step" in secure.course.row.reason


async def test_masked_calls_of_one_box_are_bounded(secure) -> None:
    """Each answer may be as long as the roster: a box that asks and asks costs the others nothing."""
    call = SecureCall(epoch="e", task="none", campaign=secure.course.id)
    for _ in range(int(MASKED_CALLS_AT_ONCE)):
        assert (await secure.lab.desk.secure(box_id(0), call)).state == "excluded"
    with pytest.raises(Overloaded, match="masked calls a second"):
        for _ in range(100):
            await secure.lab.desk.secure(box_id(0), call)
    assert (await secure.lab.desk.secure(box_id(1), call)).state == "excluded"
