"""Masked rounds give the right sum whoever drops when, or end with a reason."""

import numpy as np
import pytest

from hybrid.errors import MaskingRefused
from hybrid.federated.secure import bounds
from hybrid.federated.secure.bounds import plan_for
from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.messages import Delivery, LiveSet, Roster
from hybrid.federated.secure.roster import Members
from tests.federated.secure.cohort import STAGES, Box, Cohort, task_of


def wide(n_elements=40, **changes):
    """A task whose clip lets any levels through: what is tested is the sum."""
    return task_of(n_elements, clip_norm=1e6, **changes)


def test_nobody_drops() -> None:
    cohort = Cohort.of(5, wide())
    assert cohort.run().stage == "done"
    found = cohort.sum()
    np.testing.assert_array_equal(found.levels, cohort.expected(range(5)))
    assert found.n_devices == 5
    np.testing.assert_allclose(found.mean(), cohort.expected(range(5)) / 5 * cohort.task.step_size, rtol=1e-6)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_three_of_ten_drop_at_one_stage(stage) -> None:
    cohort = Cohort.of(10, wide(), seed=STAGES.index(stage))
    rng = np.random.default_rng(3)
    gone = [int(one) for one in rng.permutation(10)[:3]]
    assert cohort.run({stage: gone}, rng).stage == "done"
    counted = range(10) if stage in {"consent", "unmask"} else [one for one in range(10) if one not in gone]
    found = cohort.sum()
    np.testing.assert_array_equal(found.levels, cohort.expected(counted))
    assert found.n_devices == len(counted)


def test_one_drops_at_each_stage_and_they_are_three_in_ten() -> None:
    cohort = Cohort.of(10, wide())
    assert cohort.run({"share": [2], "mask": [7], "unmask": [0]}).stage == "done"
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected([0, 1, 3, 4, 5, 6, 8, 9]))


def test_who_never_advertises_is_simply_not_there() -> None:
    cohort = Cohort.of(10, wide())
    assert cohort.run({"advertise": [0, 1, 2], "mask": [3], "unmask": [4]}).stage == "done"
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(4, 10)))


@pytest.mark.parametrize("stage", STAGES)
def test_too_few_is_an_end_with_a_reason(stage) -> None:
    cohort = Cohort.of(6, wide(8))
    state = cohort.run({stage: [0, 1, 2, 4]})
    assert state.stage == "excluded"
    assert state.message_for(cohort.boxes[5].id) is None
    if stage == "unmask":
        assert "too few shares" in state.reason
    else:
        assert state.reason == f"2 devices came through stage {stage}, {3 if stage == 'advertise' else 4} are wanted"


@pytest.fixture
def _sparse_graphs_for_few(monkeypatch):
    plan_for.cache_clear()
    monkeypatch.setattr(bounds, "COMPLETE_UP_TO", 8)
    yield
    plan_for.cache_clear()


@pytest.mark.usefixtures("_sparse_graphs_for_few")
def test_on_a_sparse_graph_nobody_is_left_with_few_around() -> None:
    """A set that is large enough in all, and leaves one device too few holders: neither masked with nor unmasked."""
    boxes = sorted((Box(number) for number in range(30)), key=lambda box: box.id)
    task, guard = wide(4, corrupt_percent=5, dropout_percent=20), Guard(corrupt_percent=5)
    begun = [Device.begin(task, box.public, sign=box.sign, random=box.random, guard=guard) for box in boxes]
    roster = Roster(adverts=tuple(device._state.advert for device in begun))
    device = begun[0]
    device.take_roster(roster)
    members = Members(task, roster.adverts)
    around = members.graph.neighbours(0)
    gone = set(around[: members.plan.degree + 2 - members.plan.threshold])
    few = tuple(one for one in range(30) if one not in gone)
    assert not members.plan.is_complete
    assert len(few) >= members.least_live
    with pytest.raises(MaskingRefused, match="for or around this one"):
        device.take_delivery(Delivery(sharers=few, parcels=()))
    device._state.sharers, device._state.input_digest = tuple(range(30)), b"masked"
    with pytest.raises(MaskingRefused, match="too few live neighbours"):
        device.take_live(LiveSet(live=few, signatures=()), boxes[0].sign)


@pytest.mark.usefixtures("_sparse_graphs_for_few")
def test_a_sparse_graph_sums_right_with_a_fifth_gone_at_two_stages() -> None:
    """States stay in memory here, where the other tests restore them from bytes at every message."""
    n_boxes, drops = 30, {"mask": range(3), "unmask": range(15, 18)}
    cohort = Cohort.of(n_boxes, wide(12, corrupt_percent=5, dropout_percent=20))
    state, present, devices = cohort.round, list(range(n_boxes)), {}
    for stage in STAGES:
        present = [one for one in present if one not in drops.get(stage, ())]
        for number in present:
            box = cohort.boxes[number]
            if stage == "advertise":
                box.guard = Guard(corrupt_percent=5)
                box.begin(cohort.task)
                devices[number] = box.device
                content = devices[number].advert()
            else:
                levels = box.levels.copy
                content = devices[number].answer(state.message_for(box.id), sign=box.sign, levels=levels)
            cohort.journal.append(state.take(box.id, content))
            if stage == "mask":
                cohort.inputs[box.id] = content
        cohort.journal.append(state.close())
    assert not state.roster.plan.is_complete
    assert state.stage == "done", state.reason
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(3, n_boxes)))


def test_the_clip_bits_are_summed_beside_the_vector() -> None:
    cohort = Cohort.of(4, wide(10, has_clip_bit=True))
    for box, bit in zip(cohort.boxes, (1, -1, 1, 1), strict=True):
        cohort.take(box, box.begin(cohort.task))
        box.levels[-1] = bit
    cohort.close()
    for _ in STAGES[1:]:
        cohort.stage(cohort.boxes)
    assert cohort.sum().bits == 2
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(4))[:10])


def test_a_round_begins_anew_with_those_who_are_left() -> None:
    """Too few dealt shares; nobody masked anything yet, so the same devices may go on with fresh keys."""
    first = Cohort.of(6, wide())
    assert first.run({"share": [0, 1, 2]}).stage == "excluded"
    again = Cohort(wide(attempt=2), first.boxes[3:])
    for box in again.boxes:
        again.take(box, box.begin(again.task))
    again.close()
    for _ in STAGES[1:]:
        again.stage(again.boxes)
    np.testing.assert_array_equal(again.sum().levels, again.expected(range(3)))


def test_a_box_masks_one_input_for_a_step() -> None:
    cohort = Cohort.of(4, wide())
    cohort.run({"consent": [0, 1]})
    assert cohort.round.stage == "excluded"
    box = cohort.boxes[2]
    assert box.device.has_masked
    with pytest.raises(MaskingRefused, match="masked input of this device already"):
        box.begin(wide(attempt=2), n_inputs_before=1)
    box.guard = Guard(most_inputs=2)
    assert box.begin(wide(attempt=2), n_inputs_before=1)


def test_who_was_away_at_the_consent_helps_to_unmask() -> None:
    """Three of ten are lost after they masked; of the other seven one was away for a while."""
    cohort = Cohort.of(10, wide())
    for _ in range(3):
        cohort.stage(cohort.boxes)
    for box in cohort.boxes[:7]:
        cohort.take(box, box.answer(cohort.round.message_for(box.id)))
    cohort.close()
    cohort.stage(cohort.boxes[3:])
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(10)))
