"""Detached Ed25519 signatures over a manifest's exact bytes, with the id of the key that made them."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from hybrid.errors import BadMessage, CorruptContent, Forbidden

ALGORITHM: Final = "ed25519"
MAX_SIGNATURE_BYTES: Final = 4096
"""Of a signature's file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Who vouches for some bytes: `key_id` (16 hex digits) and the 64 bytes of the signature."""

    key_id: str
    signature: bytes

    @property
    def text(self) -> str:
        """`KEYID:BASE64`, the form of the HTTP header."""
        return f"{self.key_id}:{base64.b64encode(self.signature).decode()}"

    @classmethod
    def of_text(cls, text: str) -> "Signature":
        """The signature that an HTTP header holds.

        Raises:
            BadMessage: not of the form `KEYID:BASE64`.
        """
        key_id, _, encoded = text.partition(":")
        try:
            raw = base64.b64decode(encoded, validate=True)
            is_sound = len(raw) == 64 and len(key_id) == 16 and int(key_id, 16) >= 0
        except (binascii.Error, ValueError):
            is_sound = False
        if not is_sound:
            raise BadMessage("the signature is not of the form KEYID:BASE64 (16 hex digits, 64 bytes)")
        return cls(key_id=key_id, signature=raw)

    @property
    def file_bytes(self) -> bytes:
        """What stands in `manifest.sig`."""
        encoded = base64.b64encode(self.signature).decode()
        return msgspec.json.encode(_SignatureFile(algorithm=ALGORITHM, key_id=self.key_id, signature=encoded))

    @classmethod
    def of_file_bytes(cls, data: bytes) -> "Signature":
        """The signature that `manifest.sig` holds.

        Raises:
            BadMessage: another form or algorithm.
        """
        if len(data) > MAX_SIGNATURE_BYTES:
            raise BadMessage(f"a signature file of {len(data)} bytes is refused; at most {MAX_SIGNATURE_BYTES}")
        try:
            file = msgspec.json.decode(data, type=_SignatureFile)
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadMessage(f"the signature file does not parse: {exc}") from exc
        if file.algorithm != ALGORITHM:
            raise BadMessage(f"signature algorithm {file.algorithm[:40]!r} is not known; {ALGORITHM} is wanted")
        return cls.of_text(f"{file.key_id}:{file.signature}")


class _SignatureFile(msgspec.Struct, frozen=True, kw_only=True):
    algorithm: str
    key_id: str
    signature: str


def key_id(public_key: bytes) -> str:
    """Name of a key: the first 16 hex digits of the SHA-256 of the raw 32-byte public key."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def new_private_key() -> bytes:
    """A fresh Ed25519 private key, 32 raw bytes; keep it secret."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key_of(private_key: bytes) -> bytes:
    """The raw 32-byte public key of a raw 32-byte private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def sign(data: bytes, private_key: bytes) -> Signature:
    """Sign exact bytes with a raw 32-byte private key."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(private_key)
    return Signature(key_id=key_id(key.public_key().public_bytes_raw()), signature=key.sign(data))


def verify(data: bytes, signature: Signature | None, trusted: Mapping[str, bytes], *, what: str = "artifact") -> str:
    """The id of the trusted key that signed these exact bytes.

    Args:
        data: what was signed.
        signature: what came with it.
        trusted: key id -> raw public key.
        what: it is, for the message.

    Raises:
        Forbidden: unsigned, or signed by a key that is not trusted.
        CorruptContent: the key is trusted, the signature is not its.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if signature is None:
        raise Forbidden(f"the {what} is not signed, and only signed ones are accepted here; sign it")
    public_key = trusted.get(signature.key_id)
    if public_key is None or key_id(public_key) != signature.key_id:
        raise Forbidden(f"the {what} is signed by key {signature.key_id}, which is not trusted here")
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature.signature, data)
    except InvalidSignature as exc:
        raise CorruptContent(f"the signature by key {signature.key_id} does not fit the {what}'s bytes") from exc
    return signature.key_id
