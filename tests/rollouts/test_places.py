"""Which box is in which stage: stable, exact, never two, and the control group last."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud_gateway.fleet.rollouts.rollout import check_stages, late_seat, place, seats
from tests.rollouts.fleet_making import NEW, Boxes, box, ledger_of, plan, say, told, wanted

DEEDS = st.tuples(st.integers(0, 39), st.sampled_from(["tell", "fail", "leave", "come", "late"]))
SHARES = st.lists(st.floats(0.01, 0.99), max_size=4).map(lambda xs: (*sorted({round(x, 2) for x in xs}), 1.0))


@given(st.integers(0, 300), SHARES, st.text("abc", min_size=1, max_size=4))
def test_every_box_has_one_stage_and_the_control_group_the_last(n, stages, rollout):
    made = plan(id=rollout, stages=stages)
    members = seats(made, [f"{i:032x}" for i in range(n)])
    assert sorted(m.box_id for m in members) == [f"{i:032x}" for i in range(n)]
    n_first = sum(m.stage == 0 for m in members)
    n_control = sum(m.is_control for m in members)
    assert all(m.stage == made.last_stage for m in members if m.is_control)
    assert all(0 <= m.stage <= made.last_stage for m in members)
    if n and len(stages) > 1:
        assert n_first >= 1
        assert n_control >= (n >= 2)
        assert n_control <= n_first
    again = seats(made, [f"{i:032x}" for i in reversed(range(n))])
    assert {m.box_id: m.stage for m in again} == {m.box_id: m.stage for m in members}


@given(st.integers(2, 400))
def test_shares_are_exact(n):
    members = seats(plan(stages=(0.05, 0.25, 1.0)), [f"{i:032x}" for i in range(n)])
    first = -(-n // 20)
    assert sum(m.stage == 0 for m in members) == max(1, first) if n > 2 else True
    assert sum(m.is_control for m in members) == max(1, first)


@pytest.mark.parametrize(("n", "stages"), [(1, [0]), (2, [0, 2]), (3, [0, 2, 2])])
def test_small_fleets(n, stages):
    members = seats(plan(), [f"{i:032x}" for i in range(n)])
    assert sorted(m.stage for m in members) == stages
    assert sum(m.is_control for m in members) == (n >= 2)


def test_a_late_box_has_the_stage_of_its_place_and_moves_nobody():
    made = plan(stages=(0.1, 0.5, 1.0))
    for i in range(300):
        member = late_seat(made, f"{i:032x}")
        at = place("r", f"{i:032x}")
        assert member.stage == (0 if at < 0.1 else 1 if at < 0.5 else 2)
        assert member.is_control == (at >= 0.9)
        assert member == late_seat(made, f"{i:032x}")


def test_places_of_two_rollouts_have_nothing_to_do_with_one_another():
    n = 400
    first = [place("one", f"{i:032x}") < 0.5 for i in range(n)]
    other = [place("two", f"{i:032x}") < 0.5 for i in range(n)]
    assert 0.4 < sum(a == b for a, b in zip(first, other, strict=True)) / n < 0.6


@pytest.mark.parametrize("stages", [[], [0.5, 0.2], [0.5, 0.5], [-0.1, 1.0], [0.0], [1.0, 1.0], [2.0]])
def test_stages_that_do_not_rise_are_refused(stages):
    if not stages:
        assert check_stages(stages) == (1.0,)
        return
    with pytest.raises(ValueError, match="must rise"):
        check_stages(stages)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.lists(DEEDS, max_size=60), st.integers(0, 10**6))
def test_whatever_boxes_do_stages_only_grow_and_control_waits(n, deeds, seed):
    """Who was offered the version keeps it while the rollout goes on; control gets it in the last stage only."""
    boxes = Boxes(*(box(i, site="a") for i in range(n)))
    ledger = ledger_of(boxes)
    rollout = ledger.start(plan(id=f"r{seed}", selector={"site": "a"}), queue=False)
    control = {key for key, member in rollout.members.items() if member.is_control}
    stages, offered = {}, set()
    for number, deed in deeds:
        one = boxes.find(f"{number % n:032x}")
        if deed == "leave":
            one.tags = {}
            ledger.note_box(one.id)
            offered.discard(one.id)
        elif deed == "come":
            one.tags = {"site": "a"}
            ledger.note_box(one.id)
        elif deed == "late":
            ledger.note_box(boxes.add(box(n + number, site="a")).id)
        elif wanted(ledger, one) == "2":
            say(ledger, one.id, told(NEW) if deed == "tell" else told(phase="failed", wanted_digest=NEW, code="x"))
        for other in boxes.all():
            if other.tags and wanted(ledger, other) == "1" and rollout.course.state == "running":
                say(ledger, other.id, told())
        ledger.advance(300.0)
        if rollout.course.state not in ("running", "paused"):
            break
        for key, member in rollout.members.items():
            assert stages.setdefault(key, member.stage) == member.stage
        now = {other.id for other in boxes.all() if wanted(ledger, other) == "2"}
        assert offered <= now, "a box that was offered the version keeps it"
        offered = now
        if rollout.course.stage < rollout.plan.last_stage:
            assert not now & control
    if rollout.course.state == "halted":
        assert all(wanted(ledger, one) in ("1", None) for one in boxes.all())
