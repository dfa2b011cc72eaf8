"""The key by which a gateway signs what its fleet has learned; a root delegates its public part."""

from pathlib import Path
from typing import Final

from cloud_gateway.rounds.messages import RoundsKey
from hybrid.artifact.publishers import read_key
from hybrid.artifact.signature import Signature, key_id, public_key_of, sign
from hybrid.errors import BadMessage, CorruptContent
from hybrid.hosting.private_file import write_once

KEY_FILE: Final = "rounds.key"


class Signer:
    """The `rounds` key in a folder, made at the first start."""

    def __init__(self, folder: Path) -> None:
        """Blocks.

        Raises:
            StorageError, Forbidden: it can neither be made nor read.
        """
        path = folder / KEY_FILE
        write_once(path, _fresh())
        try:
            self._private = read_key(path)
        except BadMessage as exc:
            raise CorruptContent(
                f"{path} is damaged: no private key can be read from it",
                path=str(path),
                advice="Put its backup back. Without one: move it away, start the gateway, and delegate the new key"
                " that `hybrid rounds key` shows; what the old one signed stays valid while its key is delegated.",
            ) from exc
        public = public_key_of(self._private)
        self.public = RoundsKey(public_key=public.hex(), key_id=key_id(public))

    def signature(self, manifest: bytes) -> Signature:
        """Over a manifest's exact bytes."""
        return sign(manifest, self._private)


def _fresh() -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
