"""Whom a fleet believes: publishers' and rounds' keys, signed by a root that is kept offline.

Design: the signature is over the bundle's exact bytes, as that of a manifest. Bundle and signature travel and lie on
disk as one small JSON envelope, so that they can never be mixed up.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal, get_args

import msgspec

from hybrid.artifact.signature import Signature, key_id, public_key_of, sign, verify
from hybrid.errors import BadMessage, Forbidden

SCHEMA: Final = 1
MAX_BUNDLE_BYTES: Final = 64 << 10
MAX_KEYS: Final = 256
_MAX_NAME: Final = 100

TrustRole = Literal["publisher", "rounds"]
TRUST_ROLES: Final[tuple[TrustRole, ...]] = get_args(TrustRole)


class DelegatedKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that the root vouches for.

    Attributes:
        public_key: raw Ed25519 key, 64 hex digits.
        role: publisher: any artifact; rounds: only what rounds may change of a publisher's.
        name: whose it is, for people.
    """

    public_key: str
    role: TrustRole
    name: str = ""


class TrustBundle(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of a fleet.

    Attributes:
        root_key: raw Ed25519 key of the root, 64 hex digits.
        sequence: never falls on a box.
        keys: those that count; a key that is missing was revoked.
    """

    schema: int
    root_key: str
    sequence: int
    keys: tuple[DelegatedKey, ...] = ()

    @property
    def root_sha256(self) -> bytes:
        """Fingerprint of the root: SHA-256 of its raw public key."""
        return hashlib.sha256(bytes.fromhex(self.root_key)).digest()

    def trusted(self, role: TrustRole) -> Mapping[str, bytes]:
        """Keys of a role as key id -> raw public key, as `hybrid.artifact.signature.verify` takes them."""
        raw = [bytes.fromhex(key.public_key) for key in self.keys if key.role == role]
        return {key_id(one): one for one in raw}


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    bundle: bytes
    signature: str


def delegate(root_private_key: bytes, keys: Iterable[DelegatedKey], sequence: int) -> bytes:
    """A bundle signed by the root: the bytes of its envelope.

    Raises:
        BadMessage: a key or a sequence that no box would take.
    """
    bundle = TrustBundle(
        schema=SCHEMA, root_key=public_key_of(root_private_key).hex(), sequence=sequence, keys=tuple(keys)
    )
    _check(bundle)
    content = msgspec.json.format(msgspec.json.encode(bundle), indent=1)
    return sealed(content, sign(content, root_private_key))


def sealed(bundle: bytes, signature: Signature) -> bytes:
    """A bundle's exact bytes and its signature in their envelope."""
    return msgspec.json.encode(_Envelope(bundle=bundle, signature=signature.text))


def opened(envelope: bytes, root_sha256: bytes, *, least_sequence: int = 0) -> TrustBundle:
    """The bundle in an envelope, once everything about it is right.

    Args:
        envelope: as `delegate` gave it.
        root_sha256: fingerprint of the only root that counts.
        least_sequence: an older bundle is refused.

    Raises:
        BadMessage: it does not parse, or holds what no bundle may hold.
        Forbidden: another root, or an older sequence.
        CorruptContent: the signature does not fit.
    """
    content, signature, bundle = _parts(envelope)
    if bundle.root_sha256 != root_sha256:
        raise Forbidden("the trust bundle is of another root than the one that this fleet was enrolled with")
    root = bytes.fromhex(bundle.root_key)
    verify(content, signature, {key_id(root): root}, what="trust bundle")
    if bundle.sequence < least_sequence:
        raise Forbidden(
            f"the trust bundle has sequence {bundle.sequence}, {least_sequence} was seen before: an old one is refused"
        )
    return bundle


def opened_by_own_root(envelope: bytes) -> TrustBundle:
    """The bundle in an envelope whose signature fits the root that it names itself; says nothing of who that is.

    Raises:
        BadMessage, Forbidden, CorruptContent: as `opened`.
    """
    return opened(envelope, _parts(envelope)[2].root_sha256)


def _parts(envelope: bytes) -> tuple[bytes, Signature, TrustBundle]:
    if len(envelope) > 2 * MAX_BUNDLE_BYTES:
        raise BadMessage(f"a trust bundle of {len(envelope)} bytes is refused; at most {2 * MAX_BUNDLE_BYTES}")
    try:
        outer = msgspec.json.decode(envelope, type=_Envelope)
        bundle = msgspec.json.decode(outer.bundle, type=TrustBundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the trust bundle does not parse: {exc}; take one that `hybrid keys delegate` wrote") from exc
    _check(bundle)
    return outer.bundle, Signature.of_text(outer.signature), bundle


def _check(bundle: TrustBundle) -> None:
    if bundle.schema != SCHEMA:
        raise BadMessage(f"a trust bundle of schema {bundle.schema}; this program reads {SCHEMA}: upgrade it")
    if not 0 <= bundle.sequence < 1 << 53:
        raise BadMessage(f"the trust bundle's sequence is {bundle.sequence}; 0 to 2^53 is wanted")
    if len(bundle.keys) > MAX_KEYS:
        raise BadMessage(f"a trust bundle of {len(bundle.keys)} keys is refused; at most {MAX_KEYS}")
    for text in (bundle.root_key, *(key.public_key for key in bundle.keys)):
        if not _is_key(text):
            raise BadMessage(f"{text[:80]!r} in the trust bundle is no public key of 64 hex digits")
    if any(len(key.name) > _MAX_NAME for key in bundle.keys):
        raise BadMessage(f"a name in the trust bundle is longer than {_MAX_NAME} characters")


def _is_key(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
