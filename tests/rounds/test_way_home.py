"""The way home that a kill, a full or a damaged disk cut off: it goes on, once, and stops no other campaign."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from cloud_gateway.rounds.messages import PromoteWish
from edge_agent.learning.offers import Candidate
from hybrid.artifact.manifest import parse
from hybrid.errors import DiskFull
from hybrid.federated.campaign import Promotion
from hybrid.federated.messages import Offer
from tests.rounds.lab import MODEL, Box, Lab, running, until
from tests.rounds.test_home import PLAIN, learned


def offered(digest: str) -> Offer:
    return Offer(model=MODEL, artifact_digest=digest, variant="original", n_samples=100)


async def learned_anew(lab: Lab, campaign: str, digest: str) -> None:
    """The first round of a campaign, by two boxes that hold another version than the lab's first."""
    course = lab.desk.courses[campaign]
    for at in range(2):
        box = Box(lab, at)
        task = (await lab.desk.task(box.id, box.call(offers=(offered(digest),)))).task
        assert task is not None
        box.terms[campaign] = task.terms
        await box.send(box.update(task))
    await until(lambda: course.row.step == 1)


class Steering:
    """Begins rollouts, or is cut off while it does."""

    def __init__(self, boxes) -> None:
        self.boxes, self.ledger = boxes, SimpleNamespace(rollouts={}, assignments=[])
        self.faults: list[BaseException] = []
        self.is_begun_first = False

    async def start(self, plan):
        rollout = SimpleNamespace(
            plan=msgspec.structs.replace(plan, id=f"r{len(self.ledger.rollouts)}", made_s=0.0),
            course=SimpleNamespace(state="running"),
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


async def test_a_rollout_that_halted_before_its_row_was_kept_is_not_begun_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cloud_gateway.rounds.service._AGAIN_S", 0.01)
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    steering = Steering(lab.boxes)
    lab.close()
    lab = Lab(tmp_path, n_boxes=4, steering=steering)
    keep, states = lab.rounds._promotions._keep, []

    async def full(course, view):
        states.append(view.state)
        if states.count("rollout") == 1:
            steering.ledger.rollouts["r0"].course.state = "halted"
            raise DiskFull("no room")
        await keep(course, view)

    monkeypatch.setattr(lab.rounds._promotions, "_keep", full)
    async with running(lab):
        order = Promotion(policy="rollout", cohort_evaluation=False)
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=order)
        await learned(lab, campaign)
        await until(lambda: campaign not in lab.desk.courses)
        (promotion,) = (await lab.shown(campaign)).promotions
    lab.close()
    assert states == ["evaluating", "rollout", "rollout"]
    assert (promotion.state, promotion.rollout, list(steering.ledger.rollouts)) == ("rollout", "r0", ["r0"])


async def test_a_step_that_is_a_version_already_is_that_version_though_more_boxes_took_part_since(lab: Lab) -> None:
    """What is said of a campaign that goes on changes: a version that is there stays as it was signed."""
    campaign = await lab.create(
        goal=2, rounds=5, coding=PLAIN, promotion=Promotion(policy="none", cohort_evaluation=False)
    )
    await learned(lab, campaign)
    course = lab.desk.courses[campaign]
    await lab.rounds.promote(campaign, PromoteWish(step=1))
    await until(lambda: course.promotion is None)
    first = lab.registry.resolve(MODEL, f"1.r1-{campaign}")
    for number in (2, 3):
        assert (await Box(lab, number).once(campaign)).state == "accepted"
    await until(lambda: course.row.step == 2)
    await lab.rounds.promote(campaign, PromoteWish(step=1))
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


async def test_a_campaign_that_began_with_a_learned_version_comes_home_as_any(tmp_path: Path) -> None:
    """`base` names the publisher's version alone: what was learned from which is in the lineage."""
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    async with running(lab):
        home = Promotion(policy="candidate", cohort_evaluation=False)
        first = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=home)
        await learned(lab, first)
        await until(lambda: first not in lab.desk.courses)
        base = lab.registry.resolve(MODEL)
        assert base.version == f"1.r1-{first}"
        campaign = await lab.create(
            goal=2, rounds=2, version=base.version, coding=PLAIN, promotion=Promotion(policy="none")
        )
        await learned_anew(lab, campaign, base.artifact_digest)
        course = lab.desk.courses[campaign]
        for _ in range(2):
            await lab.rounds.promote(campaign, PromoteWish())
            course.declined |= {box.id for box in lab.boxes.all()}
            await until(lambda: course.promotion is None)
            (told,) = (await lab.shown(campaign)).promotions
            assert (told.state, told.version) == ("candidate", f"{MODEL}:{base.version}.r1-{campaign}"), told.reason
        version = lab.registry.resolve(MODEL)
    lab.close()
    lab = Lab(tmp_path, n_boxes=4)
    async with running(lab):
        box = Box(lab, 2)
        task = (await lab.desk.task(box.id, box.call(offers=(offered(version.artifact_digest),)))).task
        assert task is not None, "a box that took what was learned meanwhile goes on"
        manifest = parse(lab.registry.manifest_bytes(version.artifact_digest))
        here = SimpleNamespace(name=MODEL, artifact_digest=version.artifact_digest)
        candidate = Candidate(version=here, manifest=manifest, variant="original")  # type: ignore[arg-type]
        assert candidate.fits(task.terms)
        assert not candidate.fits(msgspec.structs.replace(task.terms, artifact_digest="0" * 64))
    lab.close()


async def test_a_version_of_a_learned_version_takes_part_in_a_campaign_with_the_first_base(lab: Lab) -> None:
    order = {"goal": 2, "coding": PLAIN, "promotion": Promotion(policy="candidate", cohort_evaluation=False)}
    first = await lab.create(rounds=1, **order)
    await learned(lab, first)
    await until(lambda: first not in lab.desk.courses)
    base = lab.registry.resolve(MODEL)
    second = await lab.create(rounds=2, version=base.version, **order)
    await learned_anew(lab, second, base.artifact_digest)
    course = lab.desk.courses[second]
    other = await lab.create(version="1", **order)
    await lab.rounds.order("pause", second)
    await lab.rounds.promote(second, PromoteWish())
    await until(lambda: course.promotion is None)
    version = lab.registry.resolve(MODEL)
    assert version.version == f"{base.version}.r1-{second}"
    box = Box(lab, 2)
    task = (await lab.desk.task(box.id, box.call(offers=(offered(version.artifact_digest),)))).task
    assert task is not None
    assert task.campaign == other
