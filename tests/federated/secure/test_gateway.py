"""The gateway's side under repetition, disorder, forgery and kills, and what dishonest devices can do to a round."""

import hashlib

import msgspec
import numpy as np
import pytest

from hybrid.errors import BadMessage, Conflict, CorruptContent, Forbidden, TensorMismatch, TooLarge
from hybrid.federated.secure.device import Device
from hybrid.federated.secure.gateway import MOST_ADVERTS, MaskedRound
from hybrid.federated.secure.messages import Advert, Dealt, Masked, Reveal, decoded, encoded
from hybrid.federated.secure.roster import Members
from hybrid.federated.secure.shares import commitment
from hybrid.federated.secure.unmask import unmasked
from hybrid.fleet.signing import box_id_of
from tests.federated.secure.cohort import STAGES, Box, Cohort, task_of


def at(stage: str, n_boxes: int = 4, **changes) -> Cohort:
    cohort = Cohort.of(n_boxes, task_of(8, clip_norm=1e6, **changes))
    for _ in range(STAGES.index(stage)):
        cohort.stage(cohort.boxes)
    return cohort


def next_of(cohort: Cohort, box: Box) -> bytes:
    """The box's message of this stage."""
    state = cohort.round
    return box.begin(cohort.task) if state.stage == "advertise" else box.answer(state.message_for(box.id))


@pytest.mark.parametrize("stage", STAGES)
def test_a_message_sent_again_is_counted_once(stage) -> None:
    """At its own stage and, where the box did not hear that it was taken, at every later one."""
    cohort = at(stage)
    sent = {}
    for box in cohort.boxes:
        sent[box.id] = next_of(cohort, box)
        assert cohort.take(box, sent[box.id])
        assert not cohort.take(box, sent[box.id])
    for later in STAGES[STAGES.index(stage) + 1 :]:
        cohort.close()
        for box in cohort.boxes:
            assert not cohort.take(box, sent[box.id])
            cohort.take(box, next_of(cohort, box))
        assert cohort.round.stage == later
    cohort.close()
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(4)))


def test_a_box_that_began_anew_brings_other_keys_until_the_roster_is_settled() -> None:
    """Its secrets were in memory alone: with its first keys it could deal nothing."""
    cohort = at("advertise")
    for box in cohort.boxes:
        cohort.take(box, box.begin(cohort.task))
    restarted = cohort.boxes[0]
    for _ in range(MOST_ADVERTS - 1):
        assert cohort.take(restarted, restarted.begin(cohort.task))
    last = restarted.state
    with pytest.raises(Conflict, match="8 keys for this attempt"):
        cohort.round.take(restarted.id, restarted.begin(cohort.task))
    restarted.state = last
    assert len(cohort.round.box_ids) == 4
    cohort.close()
    for _ in STAGES[1:]:
        for box in cohort.boxes:
            cohort.take(box, box.answer(cohort.round.message_for(box.id)))
        cohort.close()
    assert cohort.round.stage == "done"


@pytest.mark.parametrize("stage", STAGES[1:3])
def test_another_message_under_the_same_name_is_a_conflict(stage) -> None:
    cohort = at(stage)
    box = cohort.boxes[0]
    message = next_of(cohort, box)
    cohort.take(box, message)
    if stage == "share":
        dealt = decoded(message, Dealt)
        other = encoded(msgspec.structs.replace(dealt, commitment=bytes(32)))
    else:
        masked = decoded(message, Masked)
        other = encoded(msgspec.structs.replace(masked, payload=bytes(len(masked.payload))))
    with pytest.raises(Conflict, match="before"):
        cohort.round.take(box.id, other)


def test_messages_of_other_stages_and_boxes_are_refused() -> None:
    cohort, later = at("share"), at("consent")
    consent = next_of(later, later.boxes[0])
    with pytest.raises(Conflict, match="at stage share"):
        cohort.round.take(cohort.boxes[0].id, consent)
    stranger = Box(99)
    with pytest.raises(Forbidden, match="not in this stage"):
        cohort.round.take(stranger.id, next_of(cohort, cohort.boxes[0]))
    with pytest.raises(Conflict, match="at stage share"):
        cohort.round.take(stranger.id, stranger.begin(cohort.task))
    assert cohort.round.message_for(stranger.id) is None


def test_forged_and_borrowed_keys_are_refused() -> None:
    cohort = at("advertise")
    box, other = cohort.boxes[:2]
    advert = decoded(box.begin(cohort.task), Advert)
    with pytest.raises(Forbidden, match="keys of another box"):
        cohort.round.take(other.id, encoded(advert))
    with pytest.raises(Forbidden, match="not signed by it"):
        cohort.round.take(box.id, encoded(msgspec.structs.replace(advert, mask_key=advert.cipher_key[::-1])))
    with pytest.raises(BadMessage, match="one key twice"):
        cohort.round.take(box.id, encoded(msgspec.structs.replace(advert, mask_key=advert.cipher_key)))
    with pytest.raises(BadMessage, match="not a usable X25519"):
        cohort.round.take(box.id, encoded(msgspec.structs.replace(advert, mask_key=bytes(32))))
    with pytest.raises(Forbidden, match="not on the operator's device list"):
        MaskedRound(cohort.task, listed=frozenset({other.id})).take(box.id, encoded(advert))
    one, two = (
        Device.begin(cohort.task, each.public, sign=each.sign, random=np.random.default_rng(7).bytes).advert()
        for each in (box, other)
    )
    cohort.take(box, one)
    with pytest.raises(BadMessage, match="another box's key"):
        cohort.round.take(other.id, two)
    with pytest.raises(BadMessage, match="advertise the same key"):
        Members(cohort.task, tuple(sorted((decoded(each, Advert) for each in (one, two)), key=_box_id)))


def test_a_consent_to_another_set_and_another_boxs_consent_are_refused() -> None:
    cohort = at("consent")
    with pytest.raises(Forbidden, match="signed another live set"):
        cohort.round.take(cohort.boxes[0].id, next_of(cohort, cohort.boxes[1]))


def test_wrong_shares_are_refused_and_the_others_suffice() -> None:
    cohort = at("unmask")
    liar = cohort.boxes[0]
    reveal = decoded(next_of(cohort, liar), Reveal)
    wrong = (bytes([reveal.shares[0][0] ^ 1]) + reveal.shares[0][1:], *reveal.shares[1:])
    with pytest.raises(CorruptContent, match="reveals a wrong share of device 0"):
        cohort.round.take(liar.id, encoded(Reveal(shares=wrong)))
    with pytest.raises(BadMessage, match="3 shares; device"):
        cohort.round.take(liar.id, encoded(Reveal(shares=reveal.shares[:3])))
    for box in cohort.boxes[1:]:
        cohort.take(box, next_of(cohort, box))
    cohort.close()
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(4)))


@pytest.mark.parametrize("drops", [[], [0]])
def test_a_device_that_deals_shares_of_something_else_is_named(drops) -> None:
    """Its shares fit their fingerprints; what they rebuild tells: the seed of a live one, the key of a dead one."""
    cohort = at("share")
    dealer = cohort.boxes[0]
    for box in cohort.boxes:
        if box is dealer:
            device = box.device
            honest = device._state.secrets
            device._state.secrets = msgspec.structs.replace(honest, seed=b"\x01" * 32, mask=b"\x02" * 32)
            dealt = decoded(device.answer(cohort.round.message_for(box.id), sign=box.sign, levels=None), Dealt)
            device._state.secrets = honest
            index = cohort.round.roster.index_of(box.id)
            dealt = msgspec.structs.replace(dealt, commitment=commitment(cohort.round.roster, honest.seed, index))
            box.state = device.to_bytes()
            cohort.take(box, encoded(dealt))
        else:
            cohort.take(box, next_of(cohort, box))
    cohort.close()
    for _ in range(3):
        cohort.stage([box for number, box in enumerate(cohort.boxes) if number not in drops])
    assert cohort.round.stage == "done"
    with pytest.raises(CorruptContent, match=f"box {dealer.id} dealt shares that do not give"):
        cohort.sum()


def test_shares_and_masks_for_another_roster_or_list_are_refused() -> None:
    cohort, other = at("share"), Cohort.of(5, at("share").task)
    other.stage(other.boxes)
    dealt = decoded(next_of(cohort, cohort.boxes[0]), Dealt)
    with pytest.raises(CorruptContent, match="another roster"):
        other.round.take(other.boxes[0].id, encoded(dealt))
    with pytest.raises(BadMessage, match="2 neighbours; device"):
        cohort.round.take(cohort.boxes[0].id, encoded(msgspec.structs.replace(dealt, sealed=dealt.sealed[:2])))
    cohort = at("mask")
    masked = decoded(next_of(cohort, cohort.boxes[0]), Masked)
    for changed, error in (
        ({"payload": masked.payload[:-1]}, TensorMismatch),
        ({"signature": cohort.boxes[1].sign(b"")}, Forbidden),
    ):
        with pytest.raises(error):
            cohort.round.take(cohort.boxes[0].id, encoded(msgspec.structs.replace(masked, **changed)))
    with pytest.raises(TooLarge):
        cohort.round.take(cohort.boxes[0].id, bytes(cohort.round.most_bytes + 1))


def test_an_input_that_is_not_the_one_that_was_taken_is_found() -> None:
    cohort = at("advertise")
    assert cohort.run().stage == "done"
    first, second = (box.id for box in cohort.boxes[:2])
    with pytest.raises(CorruptContent, match="not the one that was taken"):
        unmasked(cohort.round, (cohort.inputs | {first: cohort.inputs[second]}).__getitem__)
    with pytest.raises(CorruptContent, match="does not parse"):
        unmasked(cohort.round, lambda _box_id: b"\x91")
    with pytest.raises(Conflict, match="at stage consent"):
        unmasked(at("consent").round, cohort.inputs.__getitem__)


def test_garbage_and_unclipped_inputs_fail_the_gate_on_the_sum() -> None:
    cohort = at("mask", 5)
    box = cohort.boxes[0]
    masked = decoded(next_of(cohort, box), Masked)
    garbage = hashlib.shake_128(b"garbage").digest(len(masked.payload))
    cohort.take(box, encoded(msgspec.structs.replace(masked, payload=garbage)))
    for other in cohort.boxes[1:]:
        cohort.take(other, next_of(cohort, other))
    cohort.close()
    for _ in range(2):
        cohort.stage(cohort.boxes)
    with pytest.raises(CorruptContent, match="a device did not follow the round"):
        cohort.sum()
    cohort = Cohort.of(4, task_of(60, clip_norm=0.1))
    cohort.run()
    with pytest.raises(CorruptContent, match="a device did not clip"):
        cohort.sum()


def test_an_ended_round_takes_nothing() -> None:
    cohort = at("advertise")
    cohort.close()
    assert cohort.round.reason == "0 devices came through stage advertise, 3 are wanted"
    with pytest.raises(Conflict, match="is excluded: 0 devices"):
        cohort.round.take(cohort.boxes[0].id, cohort.boxes[0].begin(cohort.task))
    with pytest.raises(Conflict, match="excluded already"):
        cohort.round.close()


def test_who_is_waited_for() -> None:
    cohort = at("share")
    everybody = {box.id for box in cohort.boxes}
    assert cohort.round.waits_for == everybody
    assert not cohort.round.is_enough
    for box in cohort.boxes[:3]:
        cohort.take(box, next_of(cohort, box))
    assert cohort.round.waits_for == {cohort.boxes[3].id}
    assert cohort.round.is_enough
    cohort.close()
    assert cohort.round.waits_for == {box.id for box in cohort.boxes[:3]}
    assert cohort.round.message_for(cohort.boxes[3].id) is None
    with pytest.raises(Forbidden, match="waits for the next round"):
        cohort.round.take(cohort.boxes[3].id, encoded(Masked(signature=bytes(70), payload=b"")))


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91\xa6masked", b"\x92" * 800])
def test_bytes_that_are_no_message(content) -> None:
    with pytest.raises(BadMessage):
        at("advertise").round.take("0" * 32, content)


def test_a_damaged_journal_or_state_is_not_believed() -> None:
    cohort = at("mask")
    _, taken = msgspec.msgpack.decode(cohort.journal[-2])
    of_a_stranger = msgspec.msgpack.encode(["f" * 32, taken])
    with pytest.raises(CorruptContent, match="does not parse"):
        MaskedRound.restored(cohort.task, [*cohort.journal, b"\x91"])
    with pytest.raises(CorruptContent, match="not on its roster"):
        MaskedRound.restored(cohort.task, [*cohort.journal, of_a_stranger])
    with pytest.raises(CorruptContent, match="sit this round out"):
        Device.from_bytes(cohort.boxes[0].state[:-1])
    with pytest.raises(CorruptContent, match="another program"):
        Device.from_bytes(cohort.boxes[0].state.replace(b"\xa7version\x01", b"\xa7version\x02"))


def _box_id(advert: Advert) -> str:
    return box_id_of(advert.box_key)
