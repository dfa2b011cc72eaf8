"""The form of a token: hyb_ID_SECRET, a public part and a secret part."""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Final

from hybrid.errors import Unauthenticated

_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 20
_FORM: Final = re.compile(r"hyb_([a-z2-7]{8})_([a-z2-7]{32})", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token in its two parts.

    Attributes:
        id: the public part, safe to log and to send to a gateway that has not proved itself.
        secret: the other part; leaves the device only towards a proved gateway, never shown by `repr`.
    """

    id: str
    secret: str = field(repr=False)

    @classmethod
    def fresh(cls) -> "Token":
        """A new token from the system's random source: 40 bits of ID, 160 of secret."""
        return cls(id=_base32(_ID_BYTES), secret=_base32(_SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The parts of a token.

        Raises:
            Unauthenticated: the text is no token; the message does not repeat it.
        """
        found = _FORM.fullmatch(text)
        if found is None:
            raise Unauthenticated(
                "what was given as a token does not read hyb_ID_SECRET; "
                "take one from `hybrid gateway token create`, or the gateway's admin.token"
            )
        return cls(id=found[1], secret=found[2])

    @property
    def text(self) -> str:
        """The token as it stands in an Authorization header."""
        return f"hyb_{self.id}_{self.secret}"

    @property
    def key(self) -> bytes:
        """SHA-256 of the secret: what a gateway stores, and the key of its proof (32 bytes)."""
        return hashlib.sha256(self.secret.encode("ascii")).digest()


def _base32(n_bytes: int) -> str:
    return base64.b32encode(secrets.token_bytes(n_bytes)).decode("ascii").lower()
