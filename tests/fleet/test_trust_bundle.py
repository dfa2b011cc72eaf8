"""Trust bundles: only the root's own, whole, and never an older one."""

import hashlib

import pytest

from hybrid.artifact.signature import key_id, new_private_key, public_key_of
from hybrid.errors import BadMessage, CorruptContent, Forbidden, HybridError
from hybrid.fleet.trust_bundle import DelegatedKey, delegate, opened, opened_by_own_root

ROOT = new_private_key()
ROOT_SHA256 = hashlib.sha256(public_key_of(ROOT)).digest()
PUBLISHER = public_key_of(new_private_key())
ROUNDS = public_key_of(new_private_key())
KEYS = (
    DelegatedKey(public_key=PUBLISHER.hex(), role="publisher", name="team"),
    DelegatedKey(public_key=ROUNDS.hex(), role="rounds"),
)


def test_a_bundle_of_the_root_names_its_keys_by_role() -> None:
    bundle = opened(delegate(ROOT, KEYS, 3), ROOT_SHA256)
    assert bundle.sequence == 3
    assert bundle.trusted("publisher") == {key_id(PUBLISHER): PUBLISHER}
    assert bundle.trusted("rounds") == {key_id(ROUNDS): ROUNDS}


def test_another_root_an_older_sequence_and_a_changed_bundle_are_refused() -> None:
    other = new_private_key()
    with pytest.raises(Forbidden, match="another root"):
        opened(delegate(other, KEYS, 9), ROOT_SHA256)
    with pytest.raises(Forbidden, match="old one"):
        opened(delegate(ROOT, KEYS, 3), ROOT_SHA256, least_sequence=4)
    mine, theirs = delegate(ROOT, (), 5), delegate(ROOT, KEYS, 6)
    import msgspec

    swapped = msgspec.json.decode(mine) | {"bundle": msgspec.json.decode(theirs)["bundle"]}
    with pytest.raises(CorruptContent):
        opened(msgspec.json.encode(swapped), ROOT_SHA256)


def test_every_flipped_byte_is_refused() -> None:
    envelope = delegate(ROOT, KEYS, 1)
    accepted = []
    for at in range(len(envelope)):
        flipped = bytes([*envelope[:at], envelope[at] ^ 0x01, *envelope[at + 1 :]])
        try:
            bundle = opened(flipped, ROOT_SHA256)
        except HybridError:
            continue
        accepted.append((at, bundle.trusted("publisher")))
    # A name of a field of the envelope, or base64's last unused bits, may change; what it says may not.
    assert all(keys == {key_id(PUBLISHER): PUBLISHER} for _, keys in accepted)
    assert len(accepted) <= 2


@pytest.mark.parametrize("envelope", [b"", b"{}", b"[]", b"\xff", b'{"bundle":"e30=","signature":"x"}', b"x" * 200_000])
def test_what_is_none_is_refused(envelope: bytes) -> None:
    with pytest.raises(BadMessage):
        opened_by_own_root(envelope)


def test_keys_that_are_none_are_not_signed() -> None:
    with pytest.raises(BadMessage, match="no public key"):
        delegate(ROOT, [DelegatedKey(public_key="00", role="publisher")], 1)
