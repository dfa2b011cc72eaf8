"""The way home that a kill, a full or a damaged disk cut off: it goes on, once, and stops no other campaign."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cloud_gateway.rounds.messages import PromoteWish
from hybrid.errors import DiskFull
from hybrid.federated.campaign import Promotion
from tests.rounds.lab import MODEL, Box, Lab, running, until
from tests.rounds.test_home import PLAIN, learned


class Steering:
    """Begins rollouts, or is cut off while it does."""

    def __init__(self, boxes) -> None:
        self.boxes, self.ledger = boxes, SimpleNamespace(rollouts={}, assignments=[])
        self.faults: list[BaseException] = []
        self.is_begun_first = False

    async def start(self, plan):
        rollout = SimpleNamespace(
            plan=msgspec.structs.replace(plan, id=f"r{len(self.ledger.rollouts)}", made_s=time.time()),
            course=SimpleNamespace(state="halted"),
        )
        if self.is_begun_first or not self.faults:
            self.ledger.rollouts[rollout.plan.id] = rollout
        if self.faults:
            raise self.faults.pop()
        return rollout


@pytest.mark.parametrize("is_begun_first", [False, True])
@pytest.mark.parametrize("fault", [DiskFull("no room"), asyncio.CancelledError()], ids=["full", "killed"])
async def test_a_rollout_that_could_not_begin_begins_later_once(
    tmp_path: Path, monkeypatch, fault: BaseException, is_begun_first: bool
) -> None:
    """The disk is full, or the process ends, before or after it began: there is one in the end."""
    monkeypatch.setattr("cloud_gateway.rounds.service._AGAIN_S", 0.01)
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    steering = Steering(lab.boxes)
    lab.close()
    steering.faults, steering.is_begun_first = [fault], is_begun_first
    lab = Lab(tmp_path, n_boxes=4, steering=steering)
    async with running(lab):
        order = Promotion(policy="rollout", cohort_evaluation=False)
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=order)
        await learned(lab, campaign)
        await until(lambda: not steering.faults)
        if isinstance(fault, DiskFull):
            await until(lambda: campaign not in lab.desk.courses)
    lab.close()
    lab = Lab(tmp_path, n_boxes=4, steering=steering)
    async with running(lab):
        await until(lambda: campaign not in lab.desk.courses)
        (promotion,) = (await lab.shown(campaign)).promotions
    lab.close()
    assert (promotion.state, promotion.rollout, list(steering.ledger.rollouts)) == ("rollout", "r0", ["r0"])


async def test_a_step_that_is_a_version_already_is_that_version_though_more_boxes_took_part_since(lab: Lab) -> None:
    """What is said of a campaign that goes on changes: a version that is there stays as it was signed."""
    campaign = await lab.create(
        goal=2, rounds=5, coding=PLAIN, promotion=Promotion(policy="none", cohort_evaluation=False)
    )
    await learned(lab, campaign)
    course = lab.desk.courses[campaign]
    await lab.rounds.promote(campaign, PromoteWish(step=1), "a person")
    await until(lambda: course.promotion is None)
    first = lab.registry.resolve(MODEL, f"1.r1-{campaign}")
    for number in (2, 3):
        assert (await Box(lab, number).once(campaign)).state == "accepted"
    await until(lambda: course.row.step == 2)
    await lab.rounds.promote(campaign, PromoteWish(step=1), "a person")
    await until(lambda: course.promotion is None)
    (promotion,) = (await lab.shown(campaign)).promotions
    assert (promotion.state, promotion.reason) == ("candidate", "")
    assert lab.registry.resolve(MODEL, f"1.r1-{campaign}") == first


async def test_a_step_that_the_disk_damaged_while_boxes_judged_it_stops_no_other_campaign(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    async with running(lab):
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
        other = await lab.create(goal=2, rounds=1, coding=PLAIN)
        await learned(lab, campaign)
        await until(lambda: lab.desk.courses[campaign].promotion is not None)
    lab.close()
    (tmp_path / "rounds" / campaign / "steps" / "00000001.step").write_bytes(b"no step")
    lab = Lab(tmp_path, n_boxes=4)
    async with running(lab):
        await until(lambda: campaign not in lab.desk.courses)
        for number in range(2):
            assert (await Box(lab, number).once(other)).state == "accepted"
        await until(lambda: other not in lab.desk.courses)
        (promotion,) = (await lab.shown(campaign)).promotions
        view = await lab.shown(other)
    lab.close()
    assert (promotion.state, view.state) == ("refused", "completed")
    assert "damaged" in promotion.reason
