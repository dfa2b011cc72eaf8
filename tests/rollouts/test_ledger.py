"""Assignments and rollouts as people order them, and as boxes come, go and change their tags meanwhile."""

import random

import pytest

from cloud_gateway.fleet.assignments import Assignment, deciding, may_meet, parse_tags, shown
from cloud_gateway.fleet.steering import ledger as rollouts_ledger
from cloud_gateway.fleet.steering.desired import desired, generation_of
from hybrid.errors import BadMessage, Conflict, NotFound
from tests.rollouts.fleet_making import NEW, OLD, Boxes, box, ledger_of, plan, say, told, wanted


def assignment(version, number=1, **selector):
    return Assignment(id=number, model="detector", version=version, artifact_digest=version * 64, selector=selector)


@pytest.mark.parametrize(
    ("tags", "version"),
    [
        ({}, "1"),
        ({"site": "a"}, "2"),
        ({"site": "a", "gpu": "1"}, "3"),
        ({"site": "a", "line": "9"}, "2"),
        ({"line": "9"}, "4"),
        ({"site": "b"}, "1"),
    ],
)
def test_the_narrowest_assignment_counts(tags, version):
    made = [
        assignment("1", 9),
        assignment("2", 2, site="a"),
        assignment("3", 3, site="a", gpu="1"),
        assignment("4", 1, line="9"),
    ]
    for _ in range(3):
        random.Random(1).shuffle(made)
        assert deciding(made, tags)["detector"].version == version


def test_of_equally_narrow_assignments_the_latest_counts():
    tags = {"site": "a", "line": "9"}
    assert deciding([assignment("1", 5, site="a"), assignment("2", 6, line="9")], tags)["detector"].version == "2"
    assert deciding([assignment("1", 7, site="a"), assignment("2", 6, line="9")], tags)["detector"].version == "1"


def test_tags_are_read_and_shown():
    assert parse_tags("a=1, b=2") == {"a": "1", "b": "2"}
    assert parse_tags("all") == parse_tags("") == {}
    assert shown({"b": "2", "a": "1"}) == "a=1,b=2"
    assert shown({}) == "all"
    for text in ("a", "a=1=2 3", "a b=1", "=1"):
        with pytest.raises(BadMessage):
            parse_tags(text)


def test_selectors_that_cannot_meet():
    assert may_meet({}, {"a": "1"})
    assert may_meet({"a": "1"}, {"b": "2"})
    assert not may_meet({"a": "1"}, {"a": "2"})


def test_a_generation_names_the_state_and_nothing_else():
    made = [assignment("1"), assignment("2", 2, site="a")]
    one = desired("x", {"site": "a"}, made, [])
    assert generation_of(one, {"site": "a"}) == generation_of(desired("y", {"site": "a"}, made, []), {"site": "a"})
    assert generation_of(one, {"site": "a"}) != generation_of(one, {"site": "a", "b": "c"})
    assert generation_of(one, {}) != generation_of(desired("x", {}, made, []), {})


def test_a_second_rollout_of_a_model_is_refused_or_queued():
    boxes = Boxes(*(box(i, site="a" if i % 2 else "b") for i in range(8)))
    ledger = ledger_of(boxes)
    first = ledger.start(plan(id="first", selector={"site": "a"}), queue=False)
    with pytest.raises(Conflict, match="first"):
        ledger.start(plan(id="second"), queue=False)
    with pytest.raises(Conflict, match="first"):
        ledger.assign(assignment("3"))
    ledger.start(plan(id="other", selector={"site": "b"}), queue=False)  # no box can be in both
    queued = ledger.start(plan(id="third"), queue=True)
    assert queued.course.state == "queued"
    ledger.abort("other", "me")
    ledger.advance(1.0)
    assert queued.course.state == "queued"
    ledger.complete("first", "me")
    ledger.advance(1.0)
    assert (first.course.state, queued.course.state) == ("completed", "running")


def test_a_rollout_to_nobody_is_refused():
    with pytest.raises(NotFound, match="no admitted box"):
        ledger_of(Boxes(box(1, admission="waiting"))).start(plan(), queue=False)


def test_a_halted_rollout_takes_its_boxes_back_and_never_goes_on():
    boxes = Boxes(*(box(i) for i in range(20)))
    ledger = ledger_of(boxes)
    rollout = ledger.start(plan(), queue=False)
    (first,) = [m.box_id for m in rollout.members.values() if m.stage == 0]
    assert wanted(ledger, boxes.find(first)) == "2"
    say(ledger, first, told(phase="rolled_back", wanted_digest=NEW, code="engine_crashed"))
    assert ledger.advance(5.0) == [rollout]
    assert rollout.course.state == "halted"
    assert {wanted(ledger, one) for one in boxes.all()} == {"1"}
    for order in (ledger.resume, ledger.pause, ledger.complete, ledger.abort):
        with pytest.raises(Conflict, match="halted"):
            order("r", "me")
    assert ledger.advance(5.0) == []
    kinds = [entry.kind for entry in ledger.take_changes().history]
    assert kinds == ["started", "box_failed", "halted"]


def test_a_pause_gives_it_to_nobody_else_and_stops_the_clock():
    boxes = Boxes(*(box(i) for i in range(4)))
    ledger = ledger_of(boxes)
    rollout = ledger.start(plan(stages=(0.5, 1.0)), queue=False)
    one, other = (m.box_id for m in rollout.members.values() if m.stage == 0)
    say(ledger, one)
    ledger.pause("r", "me")
    assert (wanted(ledger, boxes.find(one)), wanted(ledger, boxes.find(other))) == ("2", "1")
    say(ledger, other)
    ledger.advance(10_000.0)
    assert (rollout.course.state, rollout.course.clock_s) == ("paused", 0.0)
    assert wanted(ledger, boxes.find(other)) == "1"
    ledger.resume("r", "me")
    assert wanted(ledger, boxes.find(other)) == "2"


def test_a_person_may_let_all_boxes_have_it():
    boxes = Boxes(*(box(i) for i in range(9)))
    ledger = ledger_of(boxes)
    ledger.start(plan(), queue=False)
    before = {one.id: ledger.desired(one) for one in boxes.all() if wanted(ledger, one) == "2"}
    ledger.complete("r", "me")
    assert {wanted(ledger, one) for one in boxes.all()} == {"2"}
    for key, state in before.items():
        assert ledger.desired(boxes.find(key)) == state, "for boxes that had it nothing changed"
    late = boxes.add(box(77))
    assert wanted(ledger, late) == "2"


def test_a_box_with_a_narrower_assignment_takes_no_part():
    boxes = Boxes(*(box(i, site="a") for i in range(5)), box(9, site="a", gpu="1"))
    ledger = ledger_of(boxes)
    ledger.assign(assignment("7", site="a", gpu="1"))
    rollout = ledger.start(plan(selector={"site": "a"}), queue=False)
    assert boxes.all()[-1].id not in rollout.members
    ledger.complete("r", "me")
    assert wanted(ledger, boxes.all()[-1]) == "7"


def test_a_box_whose_narrower_assignment_ends_comes_into_the_rollout():
    boxes = Boxes(*(box(i, site="a") for i in range(5)), box(9, site="a", gpu="1"))
    ledger = ledger_of(boxes)
    ledger.assign(assignment("7", site="a", gpu="1"))
    rollout = ledger.start(plan(selector={"site": "a"}), queue=False)
    ledger.unassign("detector", {"site": "a", "gpu": "1"})
    assert boxes.all()[-1].id in rollout.members


def test_a_box_that_gets_or_loses_the_tags_joins_or_leaves():
    boxes = Boxes(*(box(i, site="a") for i in range(10)))
    ledger = ledger_of(boxes)
    rollout = ledger.start(plan(selector={"site": "a"}, stages=(0.99, 1.0)), queue=False)
    leaver = next(boxes.find(m.box_id) for m in rollout.members.values() if m.stage == 0)
    assert wanted(ledger, leaver) == "2"
    leaver.tags = {}
    ledger.note_box(leaver.id)
    assert wanted(ledger, leaver) == "1"
    comers = [boxes.add(box(100 + i, site="a")) for i in range(5)]
    for one in comers:
        ledger.note_box(one.id)
    assert {wanted(ledger, one) for one in comers} <= {"1", "2"}
    assert sum(wanted(ledger, one) == "2" for one in comers) == sum(
        rollout.members[one.id].stage == 0 for one in comers
    )
    comers[0].admission = "quarantined"
    ledger.note_box(comers[0].id)
    assert ledger.desired(comers[0]) == ()
    assert rollout.members[comers[0].id].is_gone


def test_unassigning_takes_the_model_away():
    boxes = Boxes(box(1))
    ledger = ledger_of(boxes)
    assert wanted(ledger, boxes.all()[0]) == "1"
    with pytest.raises(NotFound, match="site=a"):
        ledger.unassign("detector", {"site": "a"})
    assert ledger.unassign("detector", {}).artifact_digest == OLD
    assert wanted(ledger, boxes.all()[0]) is None


def test_a_fault_of_ours_pauses_one_rollout_and_stops_nothing_else(monkeypatch):
    boxes = Boxes(*(box(i, site="a" if i % 2 else "b") for i in range(8)))
    ledger = ledger_of(boxes)
    first = ledger.start(plan(id="first", selector={"site": "a"}), queue=False)
    other = ledger.start(plan(id="other", selector={"site": "b"}), queue=False)
    real = rollouts_ledger.step

    def step(made, course, members):
        if made.id == "first":
            raise ZeroDivisionError
        return real(made, course, members)

    monkeypatch.setattr(rollouts_ledger, "step", step)
    ledger.advance(5.0)
    assert (first.course.state, other.course.state) == ("paused", "running")
    assert "log says more" in first.course.waiting
