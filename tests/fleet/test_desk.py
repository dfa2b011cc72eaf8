"""The front desk of a fleet, asked directly: who is let in, who is told apart, who is let out."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from cloud_gateway.fleet.admission.alarms import Alarm
from cloud_gateway.fleet.admission.boxes import Box
from hybrid.errors import (
    BadMessage,
    Conflict,
    Forbidden,
    NotAdmitted,
    NotFound,
    StaleNonce,
    Unauthenticated,
    VersionUnsupported,
)
from hybrid.fleet.messages import PROTOCOL, EnrollCall
from hybrid.hosting.identity import Identity
from hybrid.transport.token import Token
from tests.fleet_lab import SPKI, Caller, Desk, SteppedWall


@pytest.fixture
def wall() -> SteppedWall:
    return SteppedWall()


@pytest.fixture
def desk(tmp_path: Path, wall: SteppedWall) -> Iterator[Desk]:
    made = Desk(tmp_path, wall)
    yield made
    made.database.close()


def holder(desk: Desk, text: str) -> Identity | None:
    """Who holds an access token now."""
    token = Token.parse(text)
    found = desk.access_tokens.find(token.id)
    return found[1] if found is not None and found[0] == token.key else None


def alarms(desk: Desk) -> tuple[Alarm, ...]:
    return desk.alarms.listed(with_acked=False)


# -- tokens -----------------------------------------------------------------------------------------------------------


def test_a_box_whose_answer_was_lost_asks_again_and_gets_the_same(desk: Desk, wall: SteppedWall) -> None:
    token, box = desk.token(tags={"site": "oslo"}), Caller()
    first = box.enroll(desk, token)
    wall.at_s += 400 * 86400  # long after the token expired, and after it was revoked
    desk.revoke_token(token.id, "tester")
    assert box.enroll(desk, token) == first
    assert (first.admission, first.tags, first.box_id) == ("admitted", {"site": "oslo"}, box.box_id)
    assert len(desk.boxes.all()) == 1


def test_one_message_for_used_up_expired_revoked_and_unknown_tokens(desk: Desk, wall: SteppedWall) -> None:
    used, expired, revoked = desk.token(), desk.token(expires_in_s=60.0), desk.token()
    Caller().enroll(desk, used)
    desk.revoke_token(revoked.id, "tester")
    wall.at_s += 61
    other = desk.token()
    calls = [
        Caller().enroll_call(desk, used),
        Caller().enroll_call(desk, expired),
        Caller().enroll_call(desk, revoked),
        Caller().enroll_call(desk, other, secret="a" * 32),
        Caller().enroll_call(desk, msgspec_token(other, "aaaaaaaa")),
    ]
    told = set()
    for call in calls:
        with pytest.raises(Forbidden) as caught:
            desk.enroll(call, SPKI)
        told.add((str(caught.value), caught.value.advice))
    assert len(told) == 1
    assert len(desk.boxes.all()) == 1


def msgspec_token(token, token_id):
    import dataclasses

    return dataclasses.replace(token, id=token_id)


def test_a_bulk_token_lets_in_as_many_as_it_says(desk: Desk) -> None:
    token = desk.token(count=3, tags={"line": "2"})
    boxes = [Caller() for _ in range(3)]
    answers = [box.enroll(desk, token) for box in boxes]
    assert len({answer.name for answer in answers}) == 3  # they all wished for the same one
    with pytest.raises(Forbidden):
        Caller().enroll(desk, token)
    assert boxes[1].enroll(desk, token) == answers[1]
    (record,) = desk.tokens.listed()
    assert (record.n_used, record.n_allowed) == (3, 3)


def test_of_many_keys_at_once_as_many_come_in_as_the_token_says(desk: Desk) -> None:
    token = desk.token(count=3)
    calls = [Caller().enroll_call(desk, token) for _ in range(12)]

    def ask(call: EnrollCall) -> bool:
        try:
            return desk.enroll(call, SPKI).admission == "admitted"
        except Forbidden:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(ask, calls)) == 3
    assert len(desk.boxes.all()) == 3


def test_a_box_with_a_second_token_frees_no_place_on_the_first(desk: Desk) -> None:
    first, second, box = desk.token(), desk.token(tags={"site": "bergen"}), Caller()
    box.enroll(desk, first)
    assert box.enroll(desk, second).tags == {"site": "bergen"}
    with pytest.raises(Forbidden):
        Caller().enroll(desk, first)
    assert box.enroll(desk, first).box_id == box.box_id


def test_boxes_wait_for_a_person(desk: Desk) -> None:
    token, box = desk.token(approve=True), Caller()
    assert box.enroll(desk, token).admission == "waiting"
    assert box.access(desk) == msgspec.structs.replace(box.access(desk), admission="waiting", token="")
    desk.admit(box.box_id, "tester")
    assert box.enroll(desk, token).admission == "admitted"
    assert holder(desk, box.access(desk).token) is not None


@pytest.mark.parametrize(
    "wish",
    [{"count": 0}, {"expires_in_s": 0.0}, {"url": "ftp://x"}, {"tags": {"a b": "c"}}, {"url": "https://" + "x" * 600}],
)
def test_wishes_that_make_no_sense_are_refused(desk: Desk, wish: dict[str, object]) -> None:
    with pytest.raises(BadMessage):
        desk.token(**wish)


def test_a_fleet_with_a_root_needs_its_bundle_first(desk: Desk) -> None:
    with pytest.raises(BadMessage, match="no trust bundle"):
        desk.token(needs_root=True)


def test_an_enrolment_is_signed_by_its_key_for_this_gateway_now(desk: Desk, wall: SteppedWall) -> None:
    token, box = desk.token(), Caller()
    with pytest.raises(Unauthenticated):
        desk.enroll(box.enroll_call(desk, token, box_key=Caller().key.public_key), SPKI)
    with pytest.raises(Unauthenticated):
        desk.enroll(box.enroll_call(desk, token, epoch="0" * 32), SPKI)
    with pytest.raises(StaleNonce):  # a hello under another certificate: what a relay would bring
        desk.enroll(box.enroll_call(desk, token, spki=bytes(32)), SPKI)
    late = box.enroll_call(desk, token)
    wall.at_s += 121
    with pytest.raises(StaleNonce):
        desk.enroll(late, SPKI)
    call = box.enroll_call(desk, token)
    desk.enroll(call, SPKI)
    with pytest.raises(StaleNonce):
        desk.enroll(call, SPKI)
    for protocol in (PROTOCOL + 1, PROTOCOL - 3, -5):
        with pytest.raises(VersionUnsupported) as caught:
            desk.enroll(box.enroll_call(desk, token, protocol=protocol), SPKI)
        assert caught.value.fields == {"mine": PROTOCOL, "theirs": protocol}


# -- access, clones ---------------------------------------------------------------------------------------------------


@pytest.fixture
def box(desk: Desk) -> Caller:
    made = Caller()
    made.enroll(desk, desk.token())
    return made


def test_a_token_is_good_for_an_hour_and_a_renewal_leaves_it_good(desk: Desk, wall: SteppedWall, box: Caller) -> None:
    first = box.access(desk).token
    wall.at_s += 1800
    second = box.access(desk).token
    assert holder(desk, first) is not None
    wall.at_s += 1801
    assert holder(desk, first) is None
    assert holder(desk, second) == Identity(token_id=second[4:12], role="box", name="box", box_id=box.box_id)


def test_a_connection_that_is_open_for_days_goes_on(desk: Desk, wall: SteppedWall, box: Caller) -> None:
    identity = holder(desk, box.access(desk).token)
    assert identity is not None
    for _ in range(100):
        wall.at_s += 1800
        box.access(desk)
    assert desk.access_tokens.stands(identity)


def test_a_new_run_ends_the_tokens_of_the_one_before(desk: Desk, box: Caller) -> None:
    first = box.access(desk).token
    identity = holder(desk, first)
    assert identity is not None
    second = box.restarted().access(desk).token
    assert holder(desk, first) is None
    assert not desk.access_tokens.stands(identity)  # on open connections too
    assert holder(desk, second) is not None
    assert alarms(desk) == ()


def test_boxes_are_known_after_the_gateway_restarts(desk: Desk, box: Caller, tmp_path: Path, wall: SteppedWall) -> None:
    text = box.access(desk).token
    again = Desk(tmp_path, wall)
    try:
        assert again.authority.fingerprint == desk.authority.fingerprint
        assert holder(again, text) is not None
        old = box.access_call(desk)
        with pytest.raises(StaleNonce):  # the challenge was the other's; one more round trip brings a new one
            again.access(old, SPKI)
        assert box.access(again).token
    finally:
        again.database.close()


def test_two_machines_with_one_key_are_quarantined_and_a_person_says_which(
    desk: Desk, box: Caller, wall: SteppedWall
) -> None:
    token = box.access(desk).token
    clone = box.restarted(epoch="c" * 32)  # it found itself on another machine
    wall.at_s += 10
    assert clone.access(desk).admission == "admitted"  # as yet nobody can tell
    wall.at_s += 10
    answer = box.access(desk)
    assert (answer.admission, answer.token) == ("quarantined", "")
    assert clone.access(desk).admission == "quarantined"
    assert holder(desk, token) is None
    with pytest.raises(NotAdmitted, match="two machines"):
        desk.box(Identity(token_id="x", role="box", box_id=box.box_id))
    assert [(alarm.kind, alarm.box_id, alarm.n) for alarm in alarms(desk)] == [("clone", box.box_id, 1)]
    desk.alarms.acknowledge(alarms(desk)[0].id, "tester")
    desk.admit(box.box_id, "tester")
    wall.at_s += 10
    assert box.access(desk).admission == "admitted"  # the first that calls is the box
    wall.at_s += 10
    assert box.access(desk).token
    assert clone.access(desk).admission == "quarantined"
    assert [alarm.n for alarm in alarms(desk)] == [1]


def test_a_restored_old_image_is_noticed(desk: Desk, box: Caller, wall: SteppedWall) -> None:
    box.access(desk)
    wall.at_s += 10
    newer = box.restarted(epoch="e" * 32)
    newer.access(desk)
    wall.at_s += 10
    restored = newer.restarted(epoch=box.epoch)  # a new run, but the epoch of before
    assert restored.access(desk).admission == "quarantined"
    assert "old image" in alarms(desk)[0].text


def test_a_letter_that_comes_late_is_no_clone(desk: Desk, box: Caller, wall: SteppedWall) -> None:
    box.access(desk)
    late = box.access_call(desk)  # signed by the old run, stuck in the network while the box starts again
    wall.at_s += 10
    again = box.restarted()
    assert again.access(desk).token
    wall.at_s += 10
    with pytest.raises(StaleNonce):
        desk.access(late, SPKI)
    assert again.access(desk).token
    assert alarms(desk) == ()


def test_a_hundred_starts_are_no_clone(desk: Desk, box: Caller, wall: SteppedWall) -> None:
    for _ in range(100):
        wall.at_s += 1
        box = box.restarted()
        assert box.access(desk).token
    assert alarms(desk) == ()


def test_a_revoked_box_gets_nothing_until_it_is_admitted(desk: Desk, box: Caller, wall: SteppedWall) -> None:
    token = box.access(desk).token
    identity = holder(desk, token)
    assert identity is not None
    assert desk.access_tokens.stands(identity)
    desk.revoke(box.box_id, "tester", "stolen")
    assert not desk.access_tokens.stands(identity)
    assert holder(desk, token) is None
    assert box.access(desk).admission == "revoked"
    with pytest.raises(Forbidden):  # a token that lies on a stolen box opens no door again
        box.enroll(desk, desk.token())
    desk.admit(box.box_id, "tester")
    assert holder(desk, token) is None  # what it was lent before stays over
    assert not desk.access_tokens.stands(identity)
    assert box.access(desk).token


def test_what_a_box_that_is_not_known_is_told(desk: Desk) -> None:
    with pytest.raises(NotFound, match="knows no such box"):
        Caller().access(desk)


def test_the_epoch_of_a_call_is_that_of_the_access(desk: Desk, box: Caller) -> None:
    identity = holder(desk, box.access(desk).token)
    assert identity is not None
    assert desk.check_epoch(identity, box.epoch).id == box.box_id
    with pytest.raises(Unauthenticated):
        desk.check_epoch(identity, "f" * 32)
    with pytest.raises(Forbidden):
        desk.box(Identity(token_id="x", role="device"))


# -- people -----------------------------------------------------------------------------------------------------------


def test_names_tags_and_what_happened(desk: Desk, box: Caller) -> None:
    changed: list[str] = []
    desk.boxes.on_change(changed.append)
    other = Caller()
    other.enroll(desk, desk.token())
    desk.boxes.rename(box.box_id, "camera-7")
    with pytest.raises(Conflict):
        desk.boxes.rename(other.box_id, "camera-7")
    for name in ("", " ", "a\nb", "x" * 65):
        with pytest.raises(BadMessage):
            desk.boxes.rename(other.box_id, name)
    desk.boxes.set_tags(box.box_id, {"site": "oslo"})
    desk.boxes.set_tags(box.box_id, {"site": "oslo"})  # nothing changed: nobody is told
    assert changed == [other.box_id, box.box_id, box.box_id]
    assert desk.boxes.named("camera-7") == desk.boxes.named(box.box_id[:8]) == desk.boxes.find(box.box_id)
    for text in ("", "x", box.box_id[:7], "camera-8"):
        with pytest.raises(NotFound):
            desk.boxes.named(text)
    assert [event.what for event in desk.audit.of_box(box.box_id)] == ["enrolled"]


def test_tags_that_two_people_change_at_once_are_both_changed(desk: Desk, box: Caller) -> None:
    take = desk.boxes.take

    def take_slowly(changed: Box) -> None:
        time.sleep(0.002)
        take(changed)

    desk.boxes.take = take_slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: desk.boxes.change_tags(box.box_id, {f"n{n}": "x"}, ()), range(16)))
    changed = desk.boxes.change_tags(box.box_id, {"n0": "y", "m": ""}, ("n1", "m", "none"))
    assert changed.tags == {"n0": "y"} | {f"n{n}": "x" for n in range(2, 16)}
    with pytest.raises(NotFound):
        desk.boxes.change_tags("0" * 32, {"a": "b"}, ())


def test_memory_and_disk_say_the_same_whatever_happens_at_once(desk: Desk, tmp_path: Path, wall: SteppedWall) -> None:
    boxes = [Caller() for _ in range(4)]
    token = desk.token(count=4)
    for box in boxes:
        box.enroll(desk, token)

    def access(number: int) -> None:
        boxes[number % 4].access(desk)

    def rename(number: int) -> None:
        desk.boxes.rename(boxes[number % 4].box_id, f"box {number}")
        desk.boxes.set_tags(boxes[number % 4].box_id, {"n": str(number)})

    take = desk.boxes.take

    def take_slowly(box: Box) -> None:
        time.sleep(0.002)  # between the disk and the memory, where another one could come in
        take(box)

    desk.boxes.take = take_slowly  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        for work in [pool.submit(act, number) for number in range(24) for act in (access, rename)]:
            work.result()
    again = Desk(tmp_path, wall)
    assert {box.id: box for box in again.boxes.all()} == {box.id: box for box in desk.boxes.all()}
    again.database.close()


def test_an_alarm_that_repeats_is_counted_until_it_was_seen(desk: Desk) -> None:
    for _ in range(3):
        desk.alarms.raise_alarm("clone", "b", "twice")
    desk.alarms.raise_alarm("clone", "c", "another")
    assert [(alarm.box_id, alarm.n) for alarm in alarms(desk)] == [("b", 3), ("c", 1)]
    desk.alarms.acknowledge(alarms(desk)[0].id, "tester")
    assert desk.alarms.n_open == 1
    desk.alarms.raise_alarm("clone", "b", "again")
    assert [(alarm.box_id, alarm.n) for alarm in alarms(desk)] == [("c", 1), ("b", 1)]
    assert len(desk.alarms.listed(with_acked=True)) == 3
    with pytest.raises(NotFound):
        desk.alarms.acknowledge(99, "tester")
