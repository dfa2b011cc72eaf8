"""A step comes home: judged, made a version that boxes accept, signed by the gateway's rounds key, rolled out."""

import asyncio
import time
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest

from cloud_gateway.fleet.admission.store import open_store
from cloud_gateway.fleet.admission.trust_desk import TrustDesk
from cloud_gateway.fleet.assignments import Assignment
from cloud_gateway.rounds.commands.telling import promotion_lines
from cloud_gateway.rounds.home.promotion import rollout_tags
from cloud_gateway.rounds.messages import PromoteWish
from edge_agent.install.rules import Papers, check_learned
from hybrid.artifact.manifest import parse
from hybrid.artifact.signature import key_id, new_private_key, public_key_of, sign
from hybrid.errors import Conflict, NotFound, StorageError
from hybrid.federated.campaign import Campaign, Coding, Cohort, Promotion
from hybrid.federated.messages import Offer
from hybrid.federated.privacy.statement import read
from hybrid.fleet.trust_bundle import DelegatedKey, delegate
from tests.rounds.lab import MODEL, Box, Lab, running, until
from tests.rounds.test_thin_path import evaluation_set

PUBLISHER = new_private_key()
PLAIN = Coding(up="float32", down="int8")


class Trust:
    """A publisher's key, and the gateway's rounds key as a root delegated it."""

    def __init__(self, lab: Lab) -> None:
        rounds = bytes.fromhex(lab.rounds.key.public_key)
        self._keys = {"publisher": public_key_of(PUBLISHER), "rounds": rounds}

    def trusted(self, role: str) -> dict[str, bytes]:
        return {key_id(self._keys[role]): self._keys[role]}


@pytest.fixture
async def lab(tmp_path: Path):
    made = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    async with running(made):
        yield made
    made.close()


async def learned(lab: Lab, campaign: str, *, vector: np.ndarray | None = None) -> None:
    course = lab.desk.courses[campaign]
    for at in range(2):
        box = Box(lab, at)
        await box.send(box.update(await box.task(), vector, n_samples=10))
    await until(lambda: course.row.step == 1)


async def test_a_completed_campaign_becomes_a_version_that_boxes_take(lab: Lab) -> None:
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    await learned(lab, campaign)
    await until(lambda: lab.desk.courses[campaign].promotion is not None)
    weights = lab.desk.courses[campaign].steps.newest.weights
    for at in range(3):
        box = Box(lab, at)
        task = await box.task()
        assert task is not None
        assert (task.kind, task.weights.whole) == ("evaluate", weights)
        assert await box.evaluate(task, n_won=2, n_lost=1) == "accepted"
    await until(lambda: campaign not in lab.desk.courses)
    view = await lab.shown(campaign)
    promotion = view.promotions[0]
    assert (promotion.state, promotion.version) == ("candidate", f"{MODEL}:1.r1-{campaign}")
    assert (promotion.n_won, promotion.n_lost, promotion.n_boxes) == (6, 3, 3)
    record = lab.registry.resolve(MODEL)
    assert record.version == f"1.r1-{campaign}"
    manifest = lab.registry.manifest_bytes(record.artifact_digest)
    papers = Papers(manifest=manifest, signature=lab.registry.signature(record.artifact_digest))
    base = lab.registry.manifest_bytes(lab.digest)
    check_learned(papers, (Papers(manifest=base, signature=sign(base, PUBLISHER)),), Trust(lab))
    statement = read(parse(manifest).lineage[-1].detail)
    assert statement is not None
    assert (statement.rounds, statement.boxes, statement.secure) == (1, 2, False)
    assert "box" not in parse(manifest).lineage[-1].step
    path = lab.registry.find_blob(parse(manifest).files["head.bin"].sha256)
    assert path is not None
    assert path.read_bytes() == weights


async def test_a_candidate_that_boxes_lose_by_is_refused(lab: Lab) -> None:
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    await learned(lab, campaign)
    await until(lambda: lab.desk.courses[campaign].promotion is not None)
    for at in range(3):
        box = Box(lab, at)
        await box.evaluate(await box.task(), n_won=1, n_lost=2)
    await until(lambda: campaign not in lab.desk.courses)
    promotion = (await lab.shown(campaign)).promotions[0]
    assert promotion.state == "refused"
    assert "won 3" in promotion.reason
    assert lab.registry.resolve(MODEL).version == "1"


async def test_a_candidate_worse_on_the_gateways_set_is_refused(lab: Lab) -> None:
    x = np.random.default_rng(0).random((64, 64), np.float32)
    session = onnxruntime.InferenceSession(str(lab.folder / "made" / "model.onnx"), providers=["CPUExecutionProvider"])
    wanted = evaluation_set(lab, x, session.run(None, {"image": x})[0].argmax(axis=1))
    campaign = await lab.create(wanted, goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    assert (await lab.shown(campaign)).base_accuracy == 1.0
    push = np.frombuffer(lab.desk.courses[campaign].steps.newest.weights, "<f4") * np.float32(-2)
    await learned(lab, campaign, vector=push)
    await until(lambda: campaign not in lab.desk.courses)
    view = await lab.shown(campaign)
    assert view.rounds[0].accuracy == 0.0
    assert view.promotions[0].state == "refused"
    assert "the base has" in view.promotions[0].reason


async def test_a_person_promotes_a_step_of_a_stopped_campaign(lab: Lab) -> None:
    campaign = await lab.create(
        goal=2, rounds=5, coding=PLAIN, promotion=Promotion(policy="none", cohort_evaluation=False)
    )
    with pytest.raises(NotFound):
        await lab.rounds.promote(campaign, PromoteWish())
    await learned(lab, campaign)
    await lab.rounds.order("stop", campaign)
    assert campaign not in lab.desk.courses
    with pytest.raises(NotFound):
        await lab.rounds.promote(campaign, PromoteWish(step=2))
    await lab.rounds.promote(campaign, PromoteWish(policy="rollout"))
    await until(lambda: campaign not in lab.desk.courses)
    promotion = (await lab.shown(campaign)).promotions[0]
    assert (promotion.state, promotion.version) == ("candidate", f"{MODEL}:1.r1-{campaign}")
    assert "steers no fleet" in promotion.reason


async def test_an_older_step_that_a_person_took_home_does_not_stand_for_the_newest(lab: Lab) -> None:
    """Its promotion is the last one told; the newest step still comes home by the order's own policy."""
    campaign = await lab.create(
        goal=2, rounds=2, coding=PLAIN, promotion=Promotion(policy="candidate", cohort_evaluation=False)
    )
    await learned(lab, campaign)
    with pytest.raises(NotFound, match="steps 1 to 1, not 0"):
        await lab.rounds.promote(campaign, PromoteWish(step=0))
    await lab.rounds.promote(campaign, PromoteWish())
    await until(lambda: lab.desk.courses[campaign].promotion is None)
    for at in range(2):
        await Box(lab, at).once(campaign)
    await until(lambda: campaign not in lab.desk.courses)
    assert [each.version for each in (await lab.shown(campaign)).promotions] == [
        f"{MODEL}:1.r1-{campaign}", f"{MODEL}:1.r2-{campaign}",
    ]  # fmt: skip
    await lab.rounds.promote(campaign, PromoteWish(step=1))
    await until(lambda: campaign not in lab.desk.courses)
    assert (await lab.shown(campaign)).promotions[-1].step == 1, "the newest wish is told last"


async def test_the_version_that_is_meant_is_one_that_boxes_hold(lab: Lab) -> None:
    """A candidate that nobody rolled out is the newest version, and on no box."""
    first = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(cohort_evaluation=False))
    await learned(lab, first)
    await until(lambda: first not in lab.desk.courses)
    candidate = lab.registry.resolve(MODEL)
    assert candidate.version == f"1.r1-{first}"
    assert (await lab.shown(await lab.create(goal=2))).order.version == "1", "most boxes told that they hold the base"
    assert (await lab.shown(await lab.create(goal=2, version=candidate.version))).order.version == candidate.version
    lab.desk.asked.clear()
    assert (await lab.shown(await lab.create(goal=2))).order.version == "1", "nobody told: the publisher's"
    offer = Offer(model=MODEL, artifact_digest=candidate.artifact_digest, variant="original", n_samples=100)
    await Box(lab, 0).task(offers=(offer,))
    await Box(lab, 1).task()
    assert (await lab.shown(await lab.create(goal=2))).order.version == "1", "both of them can train with the base"
    await Box(lab, 1).task(offers=(offer,))
    assert (await lab.shown(await lab.create(goal=2))).order.version == candidate.version, "of equals the newest"


async def test_what_came_to_a_round_that_a_person_stopped_is_told(lab: Lab) -> None:
    campaign = await lab.create(goal=3, rounds=2, coding=PLAIN)
    first, second = Box(lab, 0), Box(lab, 1)
    await first.once(campaign)
    task = await second.task()
    await second.send(second.update(task, np.full(650, np.nan, np.float32)))
    await lab.rounds.order("stop", campaign)
    (view,) = (await lab.shown(campaign)).rounds
    assert (view.state, view.n_counted, view.outcomes) == ("abandoned", 1, {"accepted": 1, "rejected:finite": 1})


async def test_a_campaign_without_a_step_says_so(lab: Lab) -> None:
    campaign = await lab.create(goal=2, rounds=2, coding=PLAIN)
    with pytest.raises(NotFound, match="no step yet"):
        await lab.rounds.promote(campaign, PromoteWish())
    with pytest.raises(NotFound, match="no step yet"):
        await lab.rounds.exports.part(campaign, None, 0)


async def test_a_result_whose_way_home_a_kill_cut_off_before_it_began_comes_home(tmp_path: Path, monkeypatch) -> None:
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    order = Promotion(policy="candidate", cohort_evaluation=False)

    async def killed(*_: object) -> None:
        raise StorageError("the process ended here")

    monkeypatch.setattr(lab.rounds._promotions, "begin", killed)
    async with running(lab):
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=order)
        await learned(lab, campaign)
        await until(lambda: lab.alarms == ["campaign_not_promoted"])
    lab.close()
    lab = Lab(tmp_path, n_boxes=4)
    async with running(lab):
        await until(lambda: campaign not in lab.desk.courses)
        view = await lab.shown(campaign)
    lab.close()
    assert (view.state, view.promotions[0].state) == ("completed", "candidate")


@pytest.mark.parametrize(
    "fault", [ValueError("an engine's own"), StorageError("no room"), NotFound("the base is gone")]
)
async def test_what_fails_on_the_way_home_is_told_or_tried_again(lab: Lab, monkeypatch, fault: Exception) -> None:
    monkeypatch.setattr("cloud_gateway.rounds.service._AGAIN_S", 0.01)
    made, calls = lab.rounds._promotions._made, []

    def failing(*words: object) -> tuple[str, str]:
        calls.append(words)
        if len(calls) == 1:
            raise fault
        return made(*words)

    monkeypatch.setattr(lab.rounds._promotions, "_made", failing)
    order = Promotion(policy="candidate", cohort_evaluation=False)
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=order)
    await learned(lab, campaign)
    await until(lambda: campaign not in lab.desk.courses)
    promotion = (await lab.shown(campaign)).promotions[0]
    if isinstance(fault, StorageError):
        assert (promotion.state, promotion.reason, len(calls)) == ("candidate", "", 2)
    else:
        assert (promotion.state, len(calls)) == ("refused", 1)
        assert str(fault) in promotion.reason


async def test_no_rollout_begins_that_boxes_would_refuse(tmp_path: Path) -> None:
    """Where the root did not delegate this gateway's key, the version is a candidate, and the words say what to do."""
    desk = TrustDesk(open_store(tmp_path / "trust")[0], time.time)
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"), is_delegated=desk.is_rounds_key)
    key = bytes.fromhex(lab.rounds.key.public_key)
    assert desk.is_rounds_key(key_id(key)), "a fleet without a root asks for no key"
    root = new_private_key()
    desk.take(delegate(root, [DelegatedKey(public_key=public_key_of(PUBLISHER).hex(), role="publisher")], 1))
    async with running(lab):
        order = Promotion(policy="rollout", cohort_evaluation=False)
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=order)
        await learned(lab, campaign)
        await until(lambda: campaign not in lab.desk.courses)
        promotion = (await lab.shown(campaign)).promotions[0]
    lab.close()
    assert promotion.state == "candidate"
    assert f"--rounds {key.hex()}" in promotion.reason
    desk.take(delegate(root, [DelegatedKey(public_key=key.hex(), role="rounds")], 2))
    assert desk.is_rounds_key(key_id(key))


async def test_a_promotion_goes_on_after_a_restart(tmp_path: Path) -> None:
    lab = Lab(tmp_path, n_boxes=4, learns=("w2", "b2"))
    async with running(lab):
        campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
        await learned(lab, campaign)
        await until(lambda: lab.desk.courses[campaign].promotion is not None)
        box = Box(lab, 0)
        await box.evaluate(await box.task(), n_won=1, n_lost=0)
        with pytest.raises(Conflict):
            await lab.rounds.promote(campaign, PromoteWish())
        view = await lab.shown(campaign)
        assert view.promotions[0].n_boxes == 1
        assert promotion_lines(view) == ["step 1: evaluating, 1 box tried it so far"]
    lab.close()
    lab = Lab(tmp_path, n_boxes=4)
    async with running(lab):
        await until(lambda: lab.desk.courses[campaign].promotion is not None)
        assert [each.state for each in (await lab.shown(campaign)).rounds] == ["closed"]
        assert await Box(lab, 0).task() is None
        for at in (1, 2):
            box = Box(lab, at)
            await box.evaluate(await box.task(), n_won=1, n_lost=0)
        await until(lambda: campaign not in lab.desk.courses)
        assert (await lab.shown(campaign)).promotions[0].n_boxes == 3
        await asyncio.sleep(0)
    lab.close()


async def test_boxes_that_cannot_evaluate_are_not_waited_for(lab: Lab) -> None:
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    await learned(lab, campaign)
    await until(lambda: lab.desk.courses[campaign].promotion is not None)
    for at in range(2):
        box = Box(lab, at)
        task = await box.task()
        assert task is not None
        assert await box.task(refused=(task.id,)) is None
    assert await Box(lab, 2).task(offers=()) is None, "it has nothing of the model, or lacks what it learns with"
    last = Box(lab, 3)
    await last.evaluate(await last.task(), n_won=1, n_lost=0)
    await until(lambda: campaign not in lab.desk.courses)
    promotion = (await lab.shown(campaign)).promotions[0]
    assert (promotion.state, promotion.n_boxes) == ("candidate", 1)


async def test_a_candidate_that_no_box_could_try_at_this_moment_waits_for_one_until_the_deadline(lab: Lab) -> None:
    """Boxes that take the model up anew, or another variant, tell for a while that they have nothing of it."""
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    await learned(lab, campaign)
    course = lab.desk.courses[campaign]
    await until(lambda: course.promotion is not None)
    for at in range(4):
        assert await Box(lab, at).task(offers=()) is None
    is_due = lab.rounds._promotions.is_due
    assert not is_due(course)
    lab.later_s += course.order.deadline_s
    assert is_due(course)
    lab.later_s = 0.0
    last = Box(lab, 3)
    await last.evaluate(await last.task(), n_won=1, n_lost=0)
    await until(lambda: campaign not in lab.desk.courses)
    promotion = (await lab.shown(campaign)).promotions[0]
    assert (promotion.state, promotion.n_boxes) == ("candidate", 1)


async def test_a_candidate_that_every_box_gave_up_waits_for_none(lab: Lab) -> None:
    campaign = await lab.create(goal=2, rounds=1, coding=PLAIN, promotion=Promotion(policy="candidate"))
    await learned(lab, campaign)
    await until(lambda: lab.desk.courses[campaign].promotion is not None)
    for at in range(4):
        box = Box(lab, at)
        task = await box.task()
        assert task is not None
        await box.task(refused=(task.id,))
    await until(lambda: campaign not in lab.desk.courses)
    assert (await lab.shown(campaign)).promotions[0].state == "candidate"


def assignment(at: int, **selector: str) -> Assignment:
    return Assignment(id=at, model=MODEL, version="1", artifact_digest="0" * 64, selector=selector)


def test_a_rollout_goes_where_the_assignment_of_the_base_goes() -> None:
    order = Campaign(model=MODEL, version="1", variant="original")
    lab, oslo = {"site": "lab"}, {"site": "oslo"}
    assert rollout_tags(order, [lab, lab], [assignment(1, site="lab")]) == lab
    assert rollout_tags(order, [lab, oslo], [assignment(1)]) == {}
    assert rollout_tags(order, [lab, oslo], [assignment(1), assignment(2, site="lab")]) == {}
    narrow = msgspec.structs.replace(order, cohort=Cohort(tags=oslo))
    assert rollout_tags(narrow, [oslo], [assignment(1)]) == oslo
    with pytest.raises(Conflict, match="site=lab; site=oslo"):
        rollout_tags(order, [lab, oslo], [assignment(1, site="lab"), assignment(2, site="oslo")])
