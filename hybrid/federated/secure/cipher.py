"""The ciphers of a masked round: X25519, HKDF with SHA-256, ChaCha20-Poly1305, and ChaCha20 as a stream of bytes."""

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hybrid.errors import BadMessage, CorruptContent
from hybrid.federated.secure.shamir import is_element
from hybrid.fleet.signing import fields

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)
"""Every key here is derived for one text or one stream, so the nonce says nothing."""
_PROBE: Final = X25519PrivateKey.from_private_bytes(b"\x40" * KEY_BYTES)

Random = Callable[[int], bytes]
"""Gives so many unpredictable bytes: `secrets.token_bytes`, or a seeded one in a test."""


def fresh_secret(random: Random) -> bytes:
    """32 random bytes that can be dealt out in shares.

    Raises:
        BadMessage: the source of randomness gives the same or too few bytes again and again.
    """
    for _ in range(8):
        secret = random(KEY_BYTES)
        if len(secret) == KEY_BYTES and is_element(secret) and any(secret):
            return secret
    raise BadMessage("the source of randomness gives no usable bytes: give a cryptographic one")


def public_key_of(secret: bytes) -> bytes:
    """The X25519 public key of a secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agreed(secret: bytes, public_key: bytes) -> bytes:
    """What a secret and another's public key have in common.

    Raises:
        BadMessage: a public key with which everybody would agree on the same.
    """
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as exc:
        raise BadMessage("a public key of the round is not a usable X25519 key: leave its device out") from exc


def check_public_key(public_key: bytes) -> None:
    """Return if this is a usable X25519 key. Raises `BadMessage`."""
    agreed(_PROBE.private_bytes_raw(), public_key)


def derived(secret: bytes, salt: bytes, *parts: bytes) -> bytes:
    """A key for one purpose, which the parts name (RFC 5869, with SHA-256)."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=fields(*parts)).derive(secret)


def sealed(key: bytes, text: bytes, bound_to: bytes) -> bytes:
    """A text that only who has the key can read or make; a key is for one text (RFC 8439)."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, bound_to)


def opened(key: bytes, sealed_text: bytes, bound_to: bytes) -> bytes:
    """The text. Raises `CorruptContent` where it was made for somebody or something else."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed_text, bound_to)
    except (InvalidTag, ValueError) as exc:
        raise CorruptContent("sealed shares do not open: made for another device or round, or changed") from exc


def keystream(key: bytes) -> CipherContext:
    """ChaCha20's stream under a key that is used for nothing else: what it adds to zeros."""
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


class Stream:
    """Bytes and numbers that follow from a key."""

    def __init__(self, key: bytes) -> None:
        self._context = keystream(key)

    def take(self, n_bytes: int) -> bytes:
        """The next bytes."""
        return self._context.update(bytes(n_bytes))

    def below(self, limit: int) -> int:
        """The next number from 0 to `limit` - 1, each equally likely; `limit` up to 2^32."""
        reach = (1 << 32) - (1 << 32) % limit
        while True:
            number = int.from_bytes(self.take(4), "little")
            if number < reach:
                return number % limit
