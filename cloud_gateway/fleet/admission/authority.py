"""Who this gateway is to its boxes: a key that outlives certificates, and the challenges that boxes sign."""

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hybrid.artifact.signature import public_key_of
from hybrid.errors import BadMessage, StaleNonce, StorageError
from hybrid.fleet.messages import PROTOCOL, Hello
from hybrid.fleet.signing import NONCE_BYTES, hello_bytes, time_text
from hybrid.hosting.private_file import write_once

KEY_FILE: Final = "authority.key"
NONCE_LIFE_S: Final = 120.0
_RANDOM_BYTES: Final = 8
_TIME_BYTES: Final = 8
_MOST_SPENT: Final = 200_000


class Authority:
    """The authority of one fleet. Its methods take microseconds and touch no disk.

    Design: a challenge holds its own time and a MAC over it and over the server key of that hello, so that asking for
    one leaves nothing behind here; only those that a box signed are remembered, for as long as they would count.

    Attributes:
        public_key: raw Ed25519 key, 32 bytes.
        fingerprint: SHA-256 of it.
    """

    def __init__(
        self,
        private_key: bytes,
        *,
        wall_s: Callable[[], float],
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = public_key_of(private_key)
        self.fingerprint = hashlib.sha256(self.public_key).digest()
        self._wall_s = wall_s
        self._draw = draw
        self._nonce_key = draw(32)
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def hello(self, client_nonce: bytes, spki_sha256: bytes) -> Hello:
        """The answer to a box's nonce.

        Args:
            client_nonce: 32 bytes that the box drew.
            spki_sha256: SHA-256 of the public key of the certificate that is served with now; empty on plain HTTP.

        Raises:
            BadMessage: no nonce.
        """
        if len(client_nonce) != NONCE_BYTES:
            raise BadMessage(f"a hello is asked for with a nonce of {NONCE_BYTES} bytes in hex")
        time_s = float(time_text(self._wall_s()))
        head = int(time_s * 1000).to_bytes(_TIME_BYTES, "big") + self._draw(_RANDOM_BYTES)
        nonce = head + self._mac(head, spki_sha256)
        signature = self._key.sign(hello_bytes(client_nonce, nonce, spki_sha256, time_s))
        return Hello(protocol=PROTOCOL, authority_key=self.public_key, nonce=nonce, time_s=time_s, signature=signature)

    def issued_s(self, nonce: bytes, spki_sha256: bytes) -> float:
        """When a challenge was given out, in seconds since 1970.

        Raises:
            StaleNonce: it is not of this gateway and this certificate, too old, or spent.
        """
        head, mac = nonce[:-16], nonce[-16:]
        is_ours = len(nonce) == NONCE_BYTES and hmac.compare_digest(mac, self._mac(head, spki_sha256))
        issued_s = int.from_bytes(head[:_TIME_BYTES], "big") / 1000 if is_ours else 0.0
        if not is_ours or not -NONCE_LIFE_S < self._wall_s() - issued_s <= NONCE_LIFE_S or nonce in self._spent:
            raise StaleNonce(
                "the challenge that was signed does not count any more; ask for a new hello and sign again"
            )
        return issued_s

    def spend(self, nonce: bytes) -> None:
        """This challenge was signed and counts no second time."""
        now_s = self._wall_s()
        self._spent[nonce] = now_s
        while self._spent:
            oldest = next(iter(self._spent))
            if len(self._spent) <= _MOST_SPENT and abs(now_s - self._spent[oldest]) <= 2 * NONCE_LIFE_S:
                break
            del self._spent[oldest]

    def _mac(self, head: bytes, spki_sha256: bytes) -> bytes:
        return hmac.digest(self._nonce_key, head + spki_sha256, hashlib.sha256)[:16]


def authority_key(folder: Path) -> bytes:
    """The raw private key in `FOLDER/authority.key`, made at the first start.

    Raises:
        StorageError: it can neither be made nor read, or is no such key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    path = folder / KEY_FILE
    fresh = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    content = write_once(path, fresh)
    try:
        key = load_pem_private_key(content, None)
    except (ValueError, TypeError) as exc:
        raise _unusable(path) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise _unusable(path)
    return key.private_bytes_raw()


def _unusable(path: Path) -> StorageError:
    return StorageError(
        f"{path} holds no Ed25519 key; restore it from a backup: without it no box of the fleet knows this gateway",
        path=str(path),
    )
