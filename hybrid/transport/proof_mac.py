"""The bytes of a gateway's proof, as both ends compute them: no I/O.

Design: every field is preceded by its length, so that no two different proofs share their bytes; the server's public
key is among them, so that a relay, which must use a key of its own towards the device, obtains a proof of no use.
"""

import hashlib
import hmac
from typing import Final

LABEL: Final = b"hybrid gateway proof v1"
NONCE_BYTES: Final = 32


def proof_mac(key: bytes, *, token_id: str, client_nonce: bytes, server_nonce: bytes, spki_sha256: bytes) -> bytes:
    """The proof's authentication code (32 bytes).

    Args:
        key: SHA-256 of the token's secret.
        token_id: the public part of the token.
        client_nonce: fresh bytes chosen by the device.
        server_nonce: fresh bytes chosen by the gateway.
        spki_sha256: SHA-256 of the public key (DER SubjectPublicKeyInfo) that the TLS connection uses.
    """
    fields = (LABEL, token_id.encode("ascii"), client_nonce, server_nonce, spki_sha256)
    message = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return hmac.digest(key, message, hashlib.sha256)


def spki_sha256(certificate_der: bytes) -> bytes:
    """SHA-256 of the DER SubjectPublicKeyInfo of a certificate (32 bytes).

    Raises:
        ValueError: the bytes are no certificate, or hold a key of an unknown kind.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    try:
        key = x509.load_der_x509_certificate(certificate_der).public_key()
        return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    except UnsupportedAlgorithm as exc:
        raise ValueError(f"certificate with a key of an unknown kind: {exc}") from exc
