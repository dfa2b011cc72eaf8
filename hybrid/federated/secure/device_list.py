"""The operator's list of a fleet's boxes, signed by the offline root: devices refuse invented neighbours by it.

Design: as the trust bundle (`hybrid.fleet.trust_bundle`), the signature is over the list's exact bytes, both travel as
one envelope, and the sequence never falls on a box. It holds box ids, since an id is the beginning of its key's digest.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from hybrid.artifact.signature import Signature, key_id, public_key_of, sign, verify
from hybrid.errors import BadMessage, Forbidden

SCHEMA: Final = 1
KIND: Final = "hybrid device list"
MAX_BOXES: Final = 20_000
MAX_LIST_BYTES: Final = 1 << 20


class _List(msgspec.Struct, frozen=True, kw_only=True):
    kind: str
    schema: int
    root_key: str
    sequence: int
    box_ids: tuple[str, ...]


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    content: bytes
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceList:
    """The boxes that an operator vouches for.

    Attributes:
        box_ids: as `hybrid fleet boxes ls` tells them.
        sequence: never falls on a box.
        digest: SHA-256 of the list's bytes in hex, as a `SecureTask` names it.
    """

    box_ids: frozenset[str]
    sequence: int
    digest: str


def listed(root_private_key: bytes, box_ids: Iterable[str], sequence: int) -> bytes:
    """A list signed by the root: the bytes of its envelope.

    Args:
        root_private_key: raw Ed25519, kept offline.
        box_ids: 32 hex digits each.
        sequence: above that of the list before.

    Raises:
        BadMessage: an id that is none, too many, or a sequence below 0.
    """
    ids = tuple(sorted(set(box_ids)))
    made = _List(
        kind=KIND, schema=SCHEMA, root_key=public_key_of(root_private_key).hex(), sequence=sequence, box_ids=ids
    )
    _check(made)
    content = msgspec.msgpack.encode(made)
    return msgspec.msgpack.encode(_Envelope(content=content, signature=sign(content, root_private_key).text))


def opened(envelope: bytes, root_sha256: bytes, *, least_sequence: int = 0) -> DeviceList:
    """The list in an envelope, once everything about it is right.

    Args:
        envelope: as `listed` gave it.
        root_sha256: SHA-256 of the raw key of the only root that counts.
        least_sequence: an older list is refused.

    Raises:
        BadMessage: it does not parse, or holds what no list may hold.
        Forbidden: another root, or an older sequence.
        CorruptContent: the signature does not fit.
    """
    if len(envelope) > MAX_LIST_BYTES:
        raise BadMessage(f"a device list of {len(envelope)} bytes is refused; at most {MAX_LIST_BYTES}")
    try:
        outer = msgspec.msgpack.decode(envelope, type=_Envelope)
        found = msgspec.msgpack.decode(outer.content, type=_List)
        root = bytes.fromhex(found.root_key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise BadMessage(f"the device list does not parse: {exc}; have the root sign a new one") from exc
    if hashlib.sha256(root).digest() != root_sha256:
        raise Forbidden("the device list is of another root than this fleet's")
    verify(outer.content, Signature.of_text(outer.signature), {key_id(root): root}, what="device list")
    _check(found)
    if found.sequence < least_sequence:
        raise Forbidden(f"the device list has sequence {found.sequence}, {least_sequence} was seen before")
    return DeviceList(
        box_ids=frozenset(found.box_ids),
        sequence=found.sequence,
        digest=hashlib.sha256(outer.content).hexdigest(),
    )


def opened_by_own_root(envelope: bytes) -> DeviceList:
    """The list in an envelope whose signature fits the root that it names itself; says nothing of who that is.

    Raises:
        BadMessage, Forbidden, CorruptContent: as `opened`.
    """
    try:
        inner = msgspec.msgpack.decode(envelope[: 2 * MAX_LIST_BYTES], type=_Envelope).content
        root = bytes.fromhex(msgspec.msgpack.decode(inner, type=_List).root_key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise BadMessage(f"the device list does not parse: {exc}; have the root sign a new one") from exc
    return opened(envelope, hashlib.sha256(root).digest())


def _check(made: _List) -> None:
    if made.kind != KIND or made.schema != SCHEMA:
        raise BadMessage(f"{made.kind[:40]!r} of schema {made.schema} is not a device list that this program reads")
    if not 0 <= made.sequence < 1 << 53:
        raise BadMessage(f"the device list's sequence is {made.sequence}; 0 to 2^53 is wanted")
    if len(made.box_ids) > MAX_BOXES:
        raise BadMessage(f"a device list of {len(made.box_ids)} boxes is refused; at most {MAX_BOXES}")
    for box_id in made.box_ids:
        if len(box_id) != 32 or set(box_id) - set("0123456789abcdef"):
            raise BadMessage(
                f"{box_id[:80]!r} is no box id of 32 hex digits: `hybrid fleet boxes ls --json` tells them"
            )
