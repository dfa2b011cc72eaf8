"""What box and gateway sign, byte by byte, and the signatures of a box's key: no I/O.

Design: every field is preceded by its length and the first one says what is signed, so that no signature is good for
anything else; the key of the TLS connection is among them, so that a relay, which must use its own, gains nothing.
"""

import hashlib
from typing import Final

from hybrid.errors import BadMessage

HELLO_LABEL: Final = b"hybrid fleet hello v1"
ENROLL_LABEL: Final = b"hybrid fleet enroll v1"
ACCESS_LABEL: Final = b"hybrid fleet access v1"
NONCE_BYTES: Final = 32
_MAX_KEY_BYTES: Final = 256


def fields(*parts: bytes) -> bytes:
    """Byte strings one behind the other, each with its length in 4 bytes before it."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def time_text(time_s: float) -> str:
    """Seconds as they are signed: decimal text with milliseconds."""
    return f"{time_s:.3f}"


def hello_bytes(client_nonce: bytes, nonce: bytes, spki_sha256: bytes, time_s: float) -> bytes:
    """What the authority signs in a hello."""
    return fields(HELLO_LABEL, client_nonce, nonce, spki_sha256, time_text(time_s).encode("ascii"))


def enroll_bytes(token_id: str, nonce: bytes, spki_sha256: bytes, epoch: str) -> bytes:
    """What a box signs when it asks to be admitted."""
    return fields(ENROLL_LABEL, token_id.encode(), nonce, spki_sha256, epoch.encode())


def access_bytes(box_id: str, epoch: str, run: str, nonce: bytes, spki_sha256: bytes) -> bytes:
    """What a box signs when it asks for a token."""
    return fields(ACCESS_LABEL, box_id.encode(), epoch.encode(), run.encode(), nonce, spki_sha256)


def box_id_of(public_key: bytes) -> str:
    """A box's id: the first 32 hex digits of SHA-256 over its public key (DER SubjectPublicKeyInfo)."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def check_box_key(public_key: bytes) -> None:
    """Return if these bytes are the public key of a box in the one form that there is of it.

    Raises:
        BadMessage: they are not P-256's DER SubjectPublicKeyInfo, or the same key in another form.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

    try:
        if len(public_key) > _MAX_KEY_BYTES:
            raise ValueError("too long")
        key = load_der_public_key(public_key)
        is_sound = (
            isinstance(key, ec.EllipticCurvePublicKey)
            and isinstance(key.curve, ec.SECP256R1)
            and key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == public_key
        )
    except (ValueError, TypeError, UnsupportedAlgorithm):
        is_sound = False
    if not is_sound:
        raise BadMessage("the box's key is not a P-256 public key in DER form (SubjectPublicKeyInfo)")


def is_signed(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether a box's key signed these bytes (ECDSA with SHA-256, DER)."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    key = load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        return False
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def is_signed_by_authority(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether an authority's key (raw Ed25519) signed these bytes."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
