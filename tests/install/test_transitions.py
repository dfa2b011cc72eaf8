"""The table of an installation's states: all of it, and every state that events can lead to."""

from collections import deque
from typing import get_args

import pytest
from msgspec.structs import replace

from edge_agent.install import transitions
from edge_agent.install.records import SLOTS, Held, Slots, Wanted, decode, encode
from edge_agent.install.transitions import (
    TABLE,
    TASKS,
    Assign,
    Crash,
    Damage,
    Defer,
    Event,
    Fill,
    Filled,
    Prove,
    Rehearsed,
    Retry,
    Spoil,
    Warmed,
    Withdraw,
    step,
    task_of,
)
from hybrid.errors import BadMessage
from hybrid.fleet.messages import Phase

DIGESTS = ("1" * 64, "2" * 64, "3" * 64)
PHASES = get_args(Phase)

WANTED_TABLE = {
    "removed": {Assign, Withdraw, Damage},
    "downloading": {Assign, Withdraw, Damage, Defer, Fill, Filled, Spoil, Crash},
    "verified": {Assign, Withdraw, Damage, Rehearsed, Spoil, Defer, Crash},
    "warming": {Assign, Withdraw, Damage, Warmed, Spoil, Defer, Crash},
    "trial": {Assign, Withdraw, Damage, Prove, Spoil, Crash},
    "committed": {Assign, Withdraw, Damage, Crash},
    "failed": {Assign, Withdraw, Damage, Retry, Crash},
    "rolled_back": {Assign, Withdraw, Damage, Retry, Crash},
    "deferred": {Assign, Withdraw, Damage, Retry, Crash},
}


def wanted(number: int) -> Wanted:
    return Wanted(artifact_digest=DIGESTS[number], version=str(number))


def held(number: int) -> Held:
    return Held(artifact_digest=DIGESTS[number], version=str(number), sequence=number)


def events(slots: Slots) -> list[Event]:
    """Everything that can happen in a state: what the installer raises there, and what comes from outside."""
    found: list[Event] = [Assign(wanted(number)) for number in range(3)]
    found += [Withdraw(), Retry(), Crash(False, 1.0), Crash(True, 1.0), *(Damage(slot) for slot in SLOTS)]
    if slots.wanted is not None:
        number = DIGESTS.index(slots.wanted.artifact_digest)
        is_filled = slots.slot_of(DIGESTS[number]) == slots.free
        found += [Spoil("engine_failed", "x", 1.0), Defer("disk_full", "x", 1.0), Prove(), Fill()]
        found += [Filled(held(number))] if slots.phase == "downloading" else []
        found += [Rehearsed(), Warmed()] if is_filled else []
    return found


def reachable() -> dict[Slots, Slots | None]:
    start = Slots(name="net")
    found: dict[Slots, Slots | None] = {start: None}
    waiting = deque([start])
    while waiting:
        slots = waiting.popleft()
        for event in events(slots):
            after = step(slots, event)
            if after.phase != "trial":  # what is counted decides there alone
                after = replace(after, n_crashes=0, n_reboots=0)
            if after.n_crashes and after.n_reboots:
                continue
            key = replace(after, failure=None if after.failure is None else replace(after.failure, detail="", code=""))
            if key not in found:
                found[key] = slots
                waiting.append(key)
    return found


@pytest.fixture(scope="module")
def states() -> dict[Slots, Slots | None]:
    return reachable()


def test_the_table_holds_these_transitions_and_no_others() -> None:
    assert set(TABLE) == {(phase, kind) for phase, kinds in WANTED_TABLE.items() for kind in kinds}
    assert set(TASKS) == set(PHASES)


def test_what_comes_late_changes_nothing(states: dict[Slots, Slots | None]) -> None:
    for slots in states:
        for event in events(slots):
            if (slots.phase, type(event)) not in TABLE:
                assert step(slots, event) == slots


def test_every_phase_is_reached_and_every_transition_taken(states: dict[Slots, Slots | None]) -> None:
    assert {slots.phase for slots in states} == set(PHASES)
    taken = {(slots.phase, type(event)) for slots in states for event in events(slots)}
    assert taken >= set(TABLE)


def test_in_every_state_that_events_lead_to_the_promises_hold(states: dict[Slots, Slots | None]) -> None:
    assert len(states) > 500
    for slots in states:
        answering = slots.answering
        assert (answering is None) == (slots.answers == "")
        if slots.phase == "trial":
            assert answering is not None
            assert slots.wanted is not None
            assert slots.wanted.artifact_digest == answering.artifact_digest
        elif answering is not None:
            assert answering.is_good, "what was never committed answers on trial only"
        if slots.next is not None:
            assert slots.phase == "trial"
            assert slots.wanted is not None
            assert slots.next.artifact_digest != slots.wanted.artifact_digest
            assert slots.held(slots.free) is None or not slots.held(slots.free).is_good
        if slots.phase in ("verified", "warming"):
            free = slots.held(slots.free)
            assert free is not None
            assert slots.wanted is not None
            assert free.artifact_digest == slots.wanted.artifact_digest
        if slots.phase == "committed":
            assert answering is not None
            assert slots.wanted is not None
            assert answering.artifact_digest == slots.wanted.artifact_digest
        if slots.phase == "removed":
            assert answering is None
        assert decode(encode(slots), "net") == slots


def test_no_event_takes_a_good_version_away_but_its_own_damage_or_its_successor(
    states: dict[Slots, Slots | None],
) -> None:
    for slots in states:
        good = slots.answering
        if good is None or not good.is_good:
            continue
        for event in events(slots):
            after = step(slots, event)
            if isinstance(event, Withdraw) or event == Damage(slots.answers or "a"):
                continue
            other = slots.held(slots.free)
            if slots.phase == "trial" and isinstance(event, Spoil | Crash) and other is not None and other.is_good:
                continue  # it lost its trial, against another good one
            assert after.slot_of(good.artifact_digest) is not None, (slots, event)
            if not isinstance(event, Warmed):
                assert after.answering == good, (slots, event)


def test_no_assignment_drops_the_only_version_that_answers(states: dict[Slots, Slots | None]) -> None:
    """Neither another version nor another rollout of the same one: a box on trial goes on, or back to a good one."""
    for slots in states:
        if slots.answering is None:
            continue
        for number in range(3):
            for other in (wanted(number), replace(wanted(number), rollout="r2")):
                after = step(slots, Assign(other))
                assert after.answering is not None, (slots, other)
                assert after.answering == slots.answering or after.answering.is_good


def test_what_waits_for_a_trial_begins_when_it_is_over_however_it_ends() -> None:
    slots = Slots(name="net")
    for event in (Assign(wanted(0)), Fill(), Filled(held(0)), Rehearsed(), Warmed(), Assign(wanted(1))):
        slots = step(slots, event)
    assert (slots.phase, slots.answers, slots.next) == ("trial", "a", wanted(1))
    assert step(slots, Assign(wanted(0))).next is None
    assert step(slots, Assign(wanted(2))).next == wanted(2)
    proved = step(slots, Prove())
    assert (proved.phase, proved.wanted, proved.next, proved.sequence) == ("downloading", wanted(1), None, 0)
    assert proved.answering == replace(held(0), is_good=True)
    lost = step(slots, Spoil("engine_failed", "x", 1.0))
    assert (lost.phase, lost.wanted, lost.next, lost.answers) == ("downloading", wanted(1), None, "")
    assert step(slots, Damage("a")).phase == "downloading"


def test_from_every_state_the_next_version_can_be_committed(states: dict[Slots, Slots | None]) -> None:
    """A failed version never blocks the next."""
    for slots in states:
        current = slots
        for number in range(3):
            if slots.wanted is None or slots.wanted.artifact_digest != DIGESTS[number]:
                current = step(slots, Assign(wanted(number)))
                if current.next is not None:  # nothing else answers here: it waits for the trial's end
                    current = step(current, Prove())
                for event in (Fill(), Filled(held(number)), Rehearsed(), Warmed(), Prove()):
                    if current.phase == "committed":
                        break
                    if isinstance(event, Fill | Filled) and current.phase != "downloading":
                        continue
                    current = step(current, event)
                assert current.phase == "committed", (slots, number)
                assert current.answering is not None
                assert current.answering.artifact_digest == DIGESTS[number]


def test_what_failed_is_not_tried_again_before_a_day_or_another_assignment(states: dict[Slots, Slots | None]) -> None:
    for slots in states:
        if slots.phase not in ("failed", "rolled_back"):
            continue
        assert slots.wanted is not None
        assert task_of(slots) == "wait"
        again = step(slots, Assign(slots.wanted))
        assert (again.phase, again.answers) == (slots.phase, slots.answers)
        assert step(slots, Assign(replace(slots.wanted, rollout="r2"))).phase in (
            "downloading",
            "verified",
            "committed",
        )
        assert step(slots, Retry()).phase in ("downloading", "verified", "committed")


def test_a_trial_ends_with_two_crashes_of_the_service_but_not_with_four_power_cuts() -> None:
    slots = Slots(name="net", a=replace(held(0), is_good=True), answers="a", phase="committed", wanted=wanted(0))
    for event in (Assign(wanted(1)), Fill(), Filled(held(1)), Rehearsed(), Warmed()):
        slots = step(slots, event)
    assert (slots.phase, slots.answers) == ("trial", "b")
    cut = slots
    for _ in range(4):
        cut = step(cut, Crash(True, 1.0))
    assert cut.phase == "trial"
    assert step(cut, Crash(True, 1.0)).phase == "rolled_back"
    once = step(slots, Crash(False, 1.0))
    assert once.phase == "trial"
    twice = step(once, Crash(False, 1.0))
    assert (twice.phase, twice.answers) == ("rolled_back", "a")
    assert twice.failure is not None
    assert twice.failure.code == "engine_crashed"


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:40],
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b'"schema": 1', b'"schema": 9'),
        lambda data: data.replace(b'"net"', b'"other"'),
        lambda data: data.replace(b'"answers": "a"', b'"answers": "b"'),
        lambda data: data.replace(DIGESTS[0].encode(), b"../../etc"),
        lambda data: data.replace(b'"phase": "committed"', b'"phase": "dancing"'),
        lambda data: data.replace(
            b'"next": null', b'"next": {"artifact_digest": "' + b"2" * 64 + b'", "version": "2"}'
        ),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change) -> None:
    slots = Slots(name="net", a=replace(held(0), is_good=True), answers="a", phase="committed", wanted=wanted(0))
    data = encode(slots)
    assert change(data) != data
    with pytest.raises(BadMessage):
        decode(change(data), "net")


def test_the_module_says_what_each_task_is() -> None:
    for task in get_args(transitions.Task):
        assert task in set(TASKS.values())
