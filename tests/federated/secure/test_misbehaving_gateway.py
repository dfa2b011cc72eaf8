"""A gateway that lies as far as one can: devices refuse, and what it gets does not rebuild two secrets of a device."""

import msgspec
import numpy as np
import pytest

from hybrid.errors import BadMessage, Conflict, Forbidden, HybridError, MaskingRefused, TooLarge
from hybrid.federated.secure import device_list
from hybrid.federated.secure.cipher import public_key_of
from hybrid.federated.secure.device import Device, Guard
from hybrid.federated.secure.messages import (
    Advert,
    Consent,
    Delivery,
    LiveSet,
    Masked,
    Parcel,
    Reveal,
    Roster,
    Signed,
    UnmaskCall,
    decoded,
    encoded,
)
from hybrid.federated.secure.shamir import rebuilt
from tests.federated.secure.cohort import STAGES, Box, Cohort, task_of


def at(stage: str, n_boxes: int = 6, **changes) -> Cohort:
    """A cohort whose gateway is about to send what this stage begins with."""
    cohort = Cohort.of(n_boxes, task_of(8, clip_norm=1e6, **changes))
    for _ in range(STAGES.index(stage)):
        cohort.stage(cohort.boxes)
    return cohort


def sent(cohort: Cohort, box: Box):
    """The honest message to a box."""
    kind = Roster | Delivery | LiveSet | UnmaskCall
    return decoded(cohort.round.message_for(box.id), kind)


def refuses(box: Box, message, error=MaskingRefused, match=".") -> None:
    """The box refuses and is left as it was."""
    before = box.state
    with pytest.raises(error, match=match):
        box.answer(encoded(message))
    assert box.state == before


def consents_for(cohort: Cohort, signers, live) -> tuple[Signed, ...]:
    """What these boxes would sign, if they were asked for this live set."""
    members = cohort.round.roster
    text = members.live_bytes(range(len(cohort.boxes)), live)
    indexes = {members.index_of(box.id): box for box in signers}
    return tuple(Signed(index=index, signature=box.sign(text)) for index, box in sorted(indexes.items()))


def test_a_device_listed_both_live_and_dead_is_not_uncovered() -> None:
    """The target, index 0, in both lists: nobody answers, whoever else signs what."""
    cohort = at("unmask")
    honest = sent(cohort, cohort.boxes[0])
    both = UnmaskCall(live=honest.live, dead=(0,), consents=honest.consents)
    for box in cohort.boxes:
        refuses(box, both, match="both live and dead")


def test_two_views_in_turn_give_one_share_of_each_device() -> None:
    """First the target is live, then dead: the second request is refused, and the first gives one secret alone."""
    cohort = at("unmask")
    members = cohort.round.roster
    reveals = {}
    for box in cohort.boxes:
        reveals[members.index_of(box.id)] = decoded(box.answer(encoded(sent(cohort, box))), Reveal)
        live = (1, 2, 3, 4, 5)
        second = UnmaskCall(live=live, dead=(0,), consents=consents_for(cohort, cohort.boxes[:2], live))
        refuses(box, second, match="other shares than before")
        box_shares = reveals[members.index_of(box.id)].shares
        assert box.answer(encoded(sent(cohort, box))) == encoded(Reveal(shares=box_shares))
    got = {index + 1: reveal.shares[0] for index, reveal in reveals.items()}
    threshold = members.plan.threshold
    secret = rebuilt(dict(list(got.items())[:threshold]))
    assert public_key_of(secret) != members.adverts[0].mask_key, "the self seed, not the mask's secret"


def live_set(cohort: Cohort, box: Box, live) -> LiveSet:
    """What the gateway would tell a box of this live set, with its neighbours' true signatures."""
    state = cohort.round
    around = [one for one in live if one in state.masked and one != state.roster.index_of(box.id)]
    return LiveSet(live=live, signatures=tuple(state.masked[one].signature for one in around))


@pytest.mark.parametrize("n_told_live", [1, 2, 3, 4, 5, 6, 7])
def test_a_split_view_never_gives_both_secrets_of_the_target(n_told_live) -> None:
    """Some honest devices hear that the target is live, the others that it is dead; two of ten serve the gateway."""
    cohort = at("consent", 10)
    members, corrupt, honest = cohort.round.roster, cohort.boxes[:2], cohort.boxes[2:]
    everyone = tuple(range(10))
    target = members.index_of(honest[0].id)
    without = tuple(one for one in everyone if one != target)
    told = {box.id: everyone if number < n_told_live else without for number, box in enumerate(honest)}
    signed = {live: list(consents_for(cohort, corrupt, live)) for live in (everyone, without)}
    for box in honest:
        live = told[box.id]
        consent = decoded(box.answer(encoded(live_set(cohort, box, live))), Consent)
        signed[live].append(Signed(index=members.index_of(box.id), signature=consent.signature))
        refuses(box, live_set(cohort, box, without if live == everyone else everyone), match="two different live sets")
    n_shares = {live: len(corrupt) for live in (everyone, without)}
    for box in honest:
        live = told[box.id]
        dead = tuple(sorted(set(everyone) - set(live)))
        call = UnmaskCall(live=live, dead=dead, consents=tuple(signed[live]))
        if len(signed[live]) < members.plan.quorum:
            refuses(box, call, match="consented to this live set")
        else:
            box.answer(encoded(call))
            n_shares[live] += 1
    assert min(n_shares.values()) == len(corrupt) < members.plan.threshold


def test_consents_count_once_and_only_of_the_roster() -> None:
    cohort = at("unmask")
    box, honest = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    one = honest.consents[0]
    forged = tuple(Signed(index=each.index, signature=one.signature) for each in honest.consents)
    refuses(box, msgspec.structs.replace(honest, consents=forged), match="1 devices consented")
    refuses(box, msgspec.structs.replace(honest, consents=(one,) * 4), match="counts a consent twice")
    outside = (*honest.consents[1:], Signed(index=900, signature=one.signature))
    refuses(box, msgspec.structs.replace(honest, consents=outside), match="outside the roster")


def test_only_what_was_consented_to_is_unmasked() -> None:
    """A quorum signed another live set, which this device did not; and dead devices are those who are missing."""
    cohort = at("consent")
    gone, there = cohort.boxes[0], cohort.boxes[1:]
    missing = cohort.round.roster.index_of(gone.id)
    live = tuple(one for one in range(6) if one != missing)
    for box in there:
        box.answer(encoded(live_set(cohort, box, live)))
    everyone = UnmaskCall(live=tuple(range(6)), dead=(), consents=consents_for(cohort, cohort.boxes, tuple(range(6))))
    signed = consents_for(cohort, there, live)
    for box in there:
        refuses(box, everyone, match="not the one that was consented to")
        refuses(box, UnmaskCall(live=live, dead=(), consents=signed), match="dead are not those")
        box.answer(encoded(UnmaskCall(live=live, dead=(missing,), consents=signed)))


def test_a_roster_below_what_the_task_promised_is_refused() -> None:
    cohort = at("share", 6, least_devices=5)
    box, honest = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    mine = cohort.round.roster.index_of(box.id)
    few = sorted([mine, *[one for one in range(6) if one != mine][:3]])
    refuses(box, Roster(adverts=tuple(honest.adverts[one] for one in few)), match="a roster of 4 devices is too small")


def test_a_live_set_is_large_enough_and_of_those_who_dealt() -> None:
    cohort = at("consent")
    box = cohort.boxes[0]
    refuses(box, LiveSet(live=(0, 1), signatures=()), match="too small")
    refuses(box, LiveSet(live=(0, 1, 2, 3, 4, 9), signatures=()), BadMessage, "not ascending, or names one")
    refuses(box, LiveSet(live=(1, 0, 2, 3, 4, 5), signatures=()), BadMessage, "not ascending")
    refuses(box, LiveSet(live=(0, 0, 2, 3, 4, 5), signatures=()), BadMessage, "not ascending")


def test_a_device_that_masked_nothing_is_not_live() -> None:
    cohort = at("mask")
    box = cohort.boxes[0]
    device = box.device
    device.take_delivery(sent(cohort, box))
    with pytest.raises(MaskingRefused, match="masked nothing"):
        device.take_live(LiveSet(live=tuple(range(6)), signatures=()), box.sign)


def test_replaced_keys_are_not_taken() -> None:
    """The gateway puts keys of its own under a device's name, or under the asked one's, or an older advert."""
    cohort = at("share")
    box, honest = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    mine = cohort.round.roster.index_of(box.id)
    other = (mine + 1) % 6
    own = public_key_of(b"\x07" * 32)

    def with_changed(index, **changes):
        adverts = list(honest.adverts)
        adverts[index] = msgspec.structs.replace(adverts[index], **changes)
        return Roster(adverts=tuple(adverts))

    refuses(box, with_changed(other, mask_key=own), Forbidden, "not signed by it for this round")
    refuses(box, with_changed(other, cipher_key=own), Forbidden, "not signed by it for this round")
    refuses(box, with_changed(other, mask_key=bytes(32)), BadMessage, "not a usable X25519 key")
    refuses(box, with_changed(other, box_key=b"\x30" * 91), BadMessage, "not a P-256")
    another_round = cohort.boxes[1]
    old = decoded(Device.begin(
        task_of(8, clip_norm=1e6, attempt=2), another_round.public, sign=another_round.sign, random=another_round.random
    ).advert(), Advert)  # fmt: skip
    index = cohort.round.roster.index_of(another_round.id)
    refuses(box, with_changed(index, **msgspec.structs.asdict(old)), Forbidden, "not signed by it for this round")
    again = decoded(Device.begin(cohort.task, box.public, sign=box.sign, random=box.random).advert(), Advert)
    refuses(box, with_changed(mine, **msgspec.structs.asdict(again)), MaskingRefused, "this device's keys")
    refuses(box, Roster(adverts=honest.adverts[::-1]), BadMessage, "in the order of their ids")
    refuses(box, Roster(adverts=(*honest.adverts, honest.adverts[-1])), BadMessage, "once")
    refuses(box, Roster(adverts=honest.adverts[:2]), HybridError, "2 devices|own keys|this device's keys")


def test_a_second_roster_or_list_of_sharers_is_refused() -> None:
    cohort = at("share")
    box, honest = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    first = box.answer(encoded(honest))
    mine = cohort.round.roster.index_of(box.id)
    fewer = tuple(advert for index, advert in enumerate(honest.adverts) if index == mine or index != (mine + 1) % 6)
    refuses(box, Roster(adverts=fewer), match="two different rosters")
    assert box.answer(encoded(honest)) == first

    cohort = at("mask")
    box, delivery = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    masked = box.answer(encoded(delivery))
    left = next(one for one in range(6) if one != cohort.round.roster.index_of(box.id))
    sharers = tuple(one for one in delivery.sharers if one != left)
    refuses(box, Delivery(sharers=sharers, parcels=delivery.parcels[1:]), match="two different lists")
    assert box.answer(encoded(delivery)) == masked


def test_different_rosters_for_different_devices_end_before_anything_is_masked() -> None:
    """One device is left out of what all others see: nothing that they dealt opens for it, nor the reverse."""
    cohort = at("share")
    box = cohort.boxes[0]
    full = sent(cohort, box)
    mine = cohort.round.roster.index_of(box.id)
    gone = (mine + 1) % 6
    short = Roster(adverts=tuple(advert for index, advert in enumerate(full.adverts) if index != gone))
    box.answer(encoded(short))
    others = [one for one in cohort.boxes if one is not box]
    for other in others:
        cohort.take(other, other.answer(encoded(full)))
    cohort.close()
    parcels = [parcel for other in others[:1] for parcel in sent(cohort, other).parcels]
    assert len(parcels) == 4
    device = box.device
    with pytest.raises(MaskingRefused, match="shares of 0 neighbours open here"):
        device.take_delivery(Delivery(sharers=tuple(range(5)), parcels=tuple(parcels)))


def test_a_device_that_was_told_other_sharers_is_not_uncovered() -> None:
    """The target masks with few devices, is kept from consenting, and exactly those few are declared dead.

    Their mask secrets and the target's seed would leave by the rules, and nothing else covers the target: so its
    neighbours want its word for the sharers that it was told.
    """
    cohort = Cohort.of(12, task_of(8, clip_norm=1e6, corrupt_percent=0))
    for box in cohort.boxes:
        box.guard = Guard(corrupt_percent=0)
    for _ in range(2):
        cohort.stage(cohort.boxes)
    members = cohort.round.roster
    assert members.plan.quorum == 7
    target = cohort.boxes[0]
    mine = members.index_of(target.id)
    others = [one for one in range(12) if one != mine]
    few = sorted([mine, *others[:6]])  # the target is told these, all others everybody
    honest = sent(cohort, target)
    parcels = dict(zip(others, honest.parcels, strict=True))
    narrow = Delivery(sharers=tuple(few), parcels=tuple(parcels[one] for one in few if one != mine))
    wrong = decoded(target.answer(encoded(narrow)), Masked)
    with pytest.raises(Forbidden, match="it was told others"):
        cohort.round.take(target.id, encoded(wrong))
    signatures = {mine: wrong.signature}
    for box in cohort.boxes[1:]:
        masked = decoded(box.answer(cohort.round.message_for(box.id)), Masked)
        signatures[members.index_of(box.id)] = masked.signature
    live = tuple(sorted([mine, *others[5:]]))  # of those whom the target is masked with, one is left
    for box in cohort.boxes[1:]:
        around = [one for one in live if one != members.index_of(box.id)]
        message = LiveSet(live=live, signatures=tuple(signatures[one] for one in around))
        refuses(box, message, match="told it other sharers")


def test_parcels_for_others_or_changed_ones_are_left_out() -> None:
    cohort = at("mask")
    box, honest = cohort.boxes[0], sent(cohort, cohort.boxes[0])
    swapped = (honest.parcels[1], honest.parcels[0], *honest.parcels[2:])
    device = box.device
    device.take_delivery(Delivery(sharers=honest.sharers, parcels=swapped))
    masked = decoded(device.masked(box.levels, box.sign), Masked)
    assert masked.payload == decoded(box.answer(encoded(honest)), Masked).payload, "masks need no shares"
    flipped = bytes([honest.parcels[0].sealed[0] ^ 1]) + honest.parcels[0].sealed[1:]
    bad = tuple(msgspec.structs.replace(parcel, sealed=flipped) for parcel in honest.parcels)
    other = cohort.boxes[1]
    refuses(other, Delivery(sharers=honest.sharers, parcels=bad), match="shares of 0 neighbours open")
    theirs = sent(cohort, other)
    borrowed = honest.parcels[0].fingerprints
    bad = tuple(msgspec.structs.replace(parcel, fingerprints=borrowed) for parcel in theirs.parcels)
    refuses(other, Delivery(sharers=theirs.sharers, parcels=bad), match="shares of 0 neighbours open")
    refuses(other, Delivery(sharers=honest.sharers, parcels=honest.parcels[:2]), BadMessage, "2 parcels for 5")
    refuses(other, Delivery(sharers=(0, 1), parcels=()), MaskingRefused, "2 devices dealt shares")


def test_stages_out_of_order_are_conflicts() -> None:
    cohort, fresh = at("unmask"), at("share").boxes[0]
    unmask = sent(cohort, cohort.boxes[0])
    refuses(fresh, unmask, Conflict, "no roster came yet")
    refuses(fresh, LiveSet(live=(0, 1, 2, 3), signatures=()), Conflict, "no roster came yet")
    refuses(fresh, Delivery(sharers=(0, 1, 2, 3), parcels=()), Conflict, "no roster came yet")
    dealt = at("mask").boxes[0]
    refuses(dealt, unmask, Conflict, "consented to no live set yet")
    refuses(dealt, LiveSet(live=(0, 1, 2, 3), signatures=()), Conflict, "no shares were delivered")
    done = cohort.boxes[0]
    done.answer(encoded(unmask))
    assert done.device.is_done
    refuses(done, Roster(adverts=cohort.round.roster.adverts), Conflict, "secrets are gone")
    refuses(done, Delivery(sharers=tuple(range(6)), parcels=()), Conflict, "secrets are gone")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x93" * 5000,
        b"\x92\xa4live\xdd\xff\xff\xff\xff",
        encoded(LiveSet(live=(0,), signatures=())) + b"x",
        b"\xc1",
    ],
)
def test_bytes_that_are_no_message(content) -> None:
    box = at("consent").boxes[0]
    with pytest.raises(BadMessage):
        box.answer(content)


def test_hostile_sizes_are_refused_before_they_are_parsed() -> None:
    box = at("consent").boxes[0]
    with pytest.raises(TooLarge):
        box.answer(bytes(1 << 20))
    refuses(box, LiveSet(live=(5000,), signatures=()), BadMessage)
    parcel = Parcel(sealed=b"short", fingerprints=None)
    refuses(box, Delivery(sharers=(0,), parcels=(parcel,)), BadMessage)


def test_a_guard_keeps_its_own_floor() -> None:
    box = Box(0)
    box.guard = Guard(least_devices=5)
    with pytest.raises(MaskingRefused, match="order the campaign so"):
        box.begin(task_of())
    box.guard = Guard()
    with pytest.raises(MaskingRefused, match="order the campaign so"):
        box.begin(task_of(corrupt_percent=0))


def test_the_operators_list_keeps_invented_devices_out() -> None:
    root, boxes = b"r" * 32, [Box(number) for number in range(5)]
    from hashlib import sha256

    from hybrid.artifact.signature import public_key_of as root_key_of

    root_sha256 = sha256(root_key_of(root)).digest()
    envelope = device_list.listed(root, [box.id for box in boxes[:4]], 7)
    vouched = device_list.opened(envelope, root_sha256, least_sequence=7)
    assert vouched.box_ids == {box.id for box in boxes[:4]}
    task = task_of(8, clip_norm=1e6, devices_digest=vouched.digest)
    for box in boxes[:4]:
        box.guard = Guard(listed=vouched.box_ids, devices_digest=vouched.digest)
    cohort = Cohort(task, boxes)
    cohort.stage(boxes)
    refuses(boxes[0], sent(cohort, boxes[0]), Forbidden, "not on the operator's device list")
    with pytest.raises(MaskingRefused, match="newest one"):
        boxes[0].begin(task_of(8))
    cohort = Cohort(task, boxes[:4])
    assert cohort.run().stage == "done"
    np.testing.assert_array_equal(cohort.sum().levels, cohort.expected(range(4)))

    with pytest.raises(Forbidden, match="sequence 7, 8 was seen"):
        device_list.opened(envelope, root_sha256, least_sequence=8)
    with pytest.raises(Forbidden, match="another root"):
        device_list.opened(envelope, bytes(32))
    with pytest.raises(HybridError):
        device_list.opened(envelope[:-3] + b"abc", root_sha256)
    with pytest.raises(BadMessage, match="does not parse"):
        device_list.opened(b"\x81", root_sha256)
    with pytest.raises(BadMessage, match="no box id"):
        device_list.listed(root, ["no id"], 0)
