"""What device and gateway say to each other in a masked round, MessagePack; docs/secure_aggregation.md has the stages.

Design: arrays without names of fields, since keys and shares are small. Every length is bounded before and while a
message is parsed.
"""

from typing import Annotated, Any, Final

import msgspec

from hybrid.errors import BadMessage, TooLarge
from hybrid.federated.secure.bounds import MAX_DEVICES
from hybrid.federated.secure.cipher import KEY_BYTES, TAG_BYTES
from hybrid.federated.secure.shamir import SHARE_BYTES

DIGEST_BYTES: Final = 32
FINGERPRINT_BYTES: Final = 16
SEALED_BYTES: Final = 2 * SHARE_BYTES + TAG_BYTES
MASKED_OVERHEAD_BYTES: Final = 160
"""Of a masked input beside its packed elements, at most."""
MAX_KEYS_BYTES: Final = 512 * MAX_DEVICES
"""Of any other message."""

Index = Annotated[int, msgspec.Meta(ge=0, lt=MAX_DEVICES)]
Indexes = Annotated[tuple[Index, ...], msgspec.Meta(max_length=MAX_DEVICES)]
Key = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
Signature = Annotated[bytes, msgspec.Meta(min_length=8, max_length=80)]
Fingerprint = Annotated[bytes, msgspec.Meta(min_length=FINGERPRINT_BYTES, max_length=FINGERPRINT_BYTES)]
Sealed = Annotated[bytes, msgspec.Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]
Share = Annotated[bytes, msgspec.Meta(max_length=SHARE_BYTES)]
Many = msgspec.Meta(max_length=MAX_DEVICES)


class Advert(msgspec.Struct, frozen=True, array_like=True, tag="advert"):
    """Stage 0, device: its keys of this round, signed by its box key.

    Attributes:
        box_key: DER SubjectPublicKeyInfo, P-256.
        cipher_key: X25519, for shares that neighbours send it.
        mask_key: X25519, for masks with neighbours.
        signature: by the box key.
    """

    box_key: Annotated[bytes, msgspec.Meta(max_length=256)]
    cipher_key: Key
    mask_key: Key
    signature: Signature


class Roster(msgspec.Struct, frozen=True, array_like=True, tag="roster"):
    """Stage 1, gateway: all adverts, by box id ascending; the place in it is a device's index."""

    adverts: Annotated[tuple[Advert, ...], Many]


class FingerprintPair(msgspec.Struct, frozen=True, array_like=True):
    """Of one holder's two shares: the self seed's and the mask secret's."""

    seed: Fingerprint
    secret: Fingerprint


class Dealt(msgspec.Struct, frozen=True, array_like=True, tag="dealt"):
    """Stage 1, device: its secrets in shares.

    Attributes:
        roster_digest: which roster it was for.
        commitment: SHA-256 that names the self seed.
        fingerprints: of the shares of every holder (the device itself too), by index ascending.
        sealed: both shares of every neighbour, sealed for it, by index ascending.
    """

    roster_digest: Digest
    commitment: Digest
    fingerprints: Annotated[tuple[FingerprintPair, ...], Many]
    sealed: Annotated[tuple[Sealed, ...], Many]


class Parcel(msgspec.Struct, frozen=True, array_like=True):
    """Two shares of one neighbour, on their way."""

    sealed: Sealed
    fingerprints: FingerprintPair


class Delivery(msgspec.Struct, frozen=True, array_like=True, tag="delivery"):
    """Stage 2, gateway: who dealt shares, and what the device's neighbours among them dealt to it, by index."""

    sharers: Indexes
    parcels: Annotated[tuple[Parcel, ...], Many]


class Masked(msgspec.Struct, frozen=True, array_like=True, tag="masked"):
    """Stage 2, device: its masked levels.

    Attributes:
        signature: by the box key, over who dealt as the gateway told this device: with whom it is masked.
        payload: packed.
    """

    signature: Signature
    payload: bytes


class LiveSet(msgspec.Struct, frozen=True, array_like=True, tag="live"):
    """Stage 3, gateway: whose masked inputs are in the sum.

    Attributes:
        live: by index ascending.
        signatures: of the device's live neighbours, by index ascending: each was told the same sharers.
    """

    live: Indexes
    signatures: Annotated[tuple[Signature, ...], Many]


class Consent(msgspec.Struct, frozen=True, array_like=True, tag="consent"):
    """Stage 3, device: the live set, signed by its box key."""

    signature: Signature


class Signed(msgspec.Struct, frozen=True, array_like=True):
    """One device's consent."""

    index: Index
    signature: Signature


class UnmaskCall(msgspec.Struct, frozen=True, array_like=True, tag="unmask"):
    """Stage 4, gateway: whose self seed (live) and whose mask secret (dead) it needs, and who signed that."""

    live: Indexes
    dead: Indexes
    consents: Annotated[tuple[Signed, ...], Many]


class Reveal(msgspec.Struct, frozen=True, array_like=True, tag="reveal"):
    """Stage 4, device: a share of each device that it holds for, by index; empty where it got no sound one."""

    shares: Annotated[tuple[Share, ...], Many]


DeviceMessage = Advert | Dealt | Masked | Consent | Reveal
GatewayMessage = Roster | Delivery | LiveSet | UnmaskCall


def encoded(message: DeviceMessage | GatewayMessage) -> bytes:
    """As it travels."""
    return msgspec.msgpack.encode(message)


def decoded(content: bytes, kinds: Any, *, most_bytes: int = MAX_KEYS_BYTES) -> Any:
    """The message in these bytes.

    Args:
        content: as it came.
        kinds: what it may be.
        most_bytes: longer ones are not parsed.

    Raises:
        TooLarge: longer.
        BadMessage: it does not parse, or is of another kind.
    """
    if len(content) > most_bytes:
        raise TooLarge(f"a message of a masked round has {len(content)} bytes; at most {most_bytes} are taken")
    try:
        return msgspec.msgpack.decode(content, type=kinds)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"a message of a masked round does not parse: {exc}") from exc
