"""The keys of masks and shares, and a device's two secrets dealt out to its neighbours."""

import hashlib
from typing import Final

import msgspec

from hybrid.errors import CorruptContent
from hybrid.federated.secure.cipher import Stream, agreed, derived, opened, sealed
from hybrid.federated.secure.messages import FINGERPRINT_BYTES, Dealt, FingerprintPair, Parcel
from hybrid.federated.secure.roster import Members
from hybrid.federated.secure.shamir import SHARE_BYTES, dealt
from hybrid.fleet.signing import fields

PAIR_LABEL: Final = b"hybrid secure pair mask v1"
SELF_LABEL: Final = b"hybrid secure self mask v1"
SHARE_LABEL: Final = b"hybrid secure share v1"
DEAL_LABEL: Final = b"hybrid secure dealing v1"
COMMITMENT_LABEL: Final = b"hybrid secure commitment v1"
FINGERPRINT_LABEL: Final = b"hybrid secure fingerprint v1"


class Secrets(msgspec.Struct, frozen=True, array_like=True):
    """What a device keeps to itself in a round; 32 bytes each.

    Attributes:
        cipher: X25519, for shares.
        mask: X25519, for pairwise masks; dealt out.
        seed: of its own mask; dealt out.
        dealing: what the shares are drawn from, so that they are the same when they are asked for again.
    """

    cipher: bytes
    mask: bytes
    seed: bytes
    dealing: bytes


class SharePair(msgspec.Struct, frozen=True, array_like=True):
    """A holder's two shares of one device; it reveals one of them at most."""

    seed: bytes
    secret: bytes


def pair_key(members: Members, mask_secret: bytes, index: int, other: int) -> bytes:
    """Key of the mask that two devices have in common, by the secret of either."""
    low, high = sorted((index, other))
    common = agreed(mask_secret, members.adverts[other].mask_key)
    return derived(common, members.digest, PAIR_LABEL, _number(low), _number(high))


def self_key(members: Members, seed: bytes, index: int) -> bytes:
    """Key of a device's own mask."""
    return derived(seed, members.digest, SELF_LABEL, _number(index))


def commitment(members: Members, seed: bytes, index: int) -> bytes:
    """What names a self seed without telling it."""
    return hashlib.sha256(fields(COMMITMENT_LABEL, members.digest, _number(index), seed)).digest()


def fingerprint(members: Members, share: bytes, kind: bytes, dealer: int, holder: int) -> bytes:
    """What names one share without telling it; `kind` is `seed` or `secret`."""
    text = fields(FINGERPRINT_LABEL, members.digest, kind, _number(dealer), _number(holder), share)
    return hashlib.sha256(text).digest()[:FINGERPRINT_BYTES]


def dealing(members: Members, index: int, secrets: Secrets) -> tuple[Dealt, SharePair]:
    """What a device sends to deal its secrets out, and its own shares of them; always the same for the same roster.

    Raises:
        BadMessage: a neighbour's key is not usable.
    """
    holders = members.graph.holders(index)
    points = [holder + 1 for holder in holders]
    pairs = []
    for kind, secret in ((b"seed", secrets.seed), (b"secret", secrets.mask)):
        stream = Stream(derived(secrets.dealing, members.digest, DEAL_LABEL, kind))
        pairs.append(dealt(secret, members.plan.threshold, points, stream.take))
    own, parcels, prints = SharePair(seed=b"", secret=b""), [], []
    for holder, seed_share, secret_share in zip(holders, *pairs, strict=True):
        pair = SharePair(seed=seed_share, secret=secret_share)
        prints.append(fingerprints(members, pair, index, holder))
        if holder == index:
            own = pair
            continue
        key, bound_to = _share_key(members, secrets.cipher, index, holder, sends=True)
        parcels.append(sealed(key, seed_share + secret_share, bound_to))
    message = Dealt(
        roster_digest=members.digest,
        commitment=commitment(members, secrets.seed, index),
        fingerprints=tuple(prints),
        sealed=tuple(parcels),
    )
    return message, own


def fingerprints(members: Members, pair: SharePair, dealer: int, holder: int) -> FingerprintPair:
    """Of both shares of one holder."""
    return FingerprintPair(
        seed=fingerprint(members, pair.seed, b"seed", dealer, holder),
        secret=fingerprint(members, pair.secret, b"secret", dealer, holder),
    )


def received(members: Members, parcel: Parcel, secrets: Secrets, dealer: int, holder: int) -> SharePair:
    """The shares in a parcel.

    Raises:
        CorruptContent: it was not made by this dealer for this holder and roster, or its fingerprints do not fit.
        BadMessage: the dealer's key is not usable.
    """
    key, bound_to = _share_key(members, secrets.cipher, holder, dealer, sends=False)
    text = opened(key, parcel.sealed, bound_to)
    pair = SharePair(seed=text[:SHARE_BYTES], secret=text[SHARE_BYTES:])
    if fingerprints(members, pair, dealer, holder) != parcel.fingerprints:
        raise CorruptContent(f"shares of device {dealer} do not fit their fingerprints")
    return pair


def _share_key(members: Members, secret: bytes, index: int, other: int, *, sends: bool) -> tuple[bytes, bytes]:
    """Key of a parcel between this device and another, and what it is bound to: roster, sender and receiver."""
    ends = (index, other) if sends else (other, index)
    named = (SHARE_LABEL, *(members.box_ids[end].encode() for end in ends))
    common = agreed(secret, members.adverts[other].cipher_key)
    return derived(common, members.digest, *named), fields(members.digest, *named)


def _number(index: int) -> bytes:
    return index.to_bytes(2, "big")
