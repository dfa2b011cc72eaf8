"""The enrolment token: one line, or a QR code, that lets a box in and tells it whom to believe.

Design: the token names its authority and its root by fingerprint, so that the person who carries it carries the trust
too, and it ends in a checksum, so that a mistyped one is told from a refused one without asking anybody.
"""

import base64
import binascii
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from hybrid.errors import TokenMistyped

PREFIX: Final = "hybe_"
VERSION: Final = 1
_ID_BYTES: Final = 5
_SECRET_BYTES: Final = 20
_DIGEST_BYTES: Final = 32
_CHECK_BYTES: Final = 4
_MAX_TEXT: Final = 4096
_NO_ROOT: Final = bytes(_DIGEST_BYTES)
MAX_URL_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentToken:
    """A token in its parts.

    Attributes:
        id: public, 8 characters; safe to log.
        secret: 32 characters; leaves the box only towards a gateway that proved itself, never shown by `repr`.
        authority_sha256: of the authority's public key, 32 bytes.
        root_sha256: of the root's public key, None for a fleet without a root.
        url: of the gateway; empty when it is to be discovered.
    """

    id: str
    secret: str = field(repr=False)
    authority_sha256: bytes
    root_sha256: bytes | None = None
    url: str = ""

    @classmethod
    def fresh(
        cls,
        *,
        authority_sha256: bytes,
        root_sha256: bytes | None = None,
        url: str = "",
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> "EnrolmentToken":
        """A new token with 160 bits of secret."""
        token_id, secret = _base32(draw(_ID_BYTES)), _base32(draw(_SECRET_BYTES))
        return cls(id=token_id, secret=secret, authority_sha256=authority_sha256, root_sha256=root_sha256, url=url)

    @classmethod
    def parse(cls, text: str) -> "EnrolmentToken":
        """The parts of a token; case and white space do not matter, so that a scanned or wrapped one is fine.

        Raises:
            TokenMistyped: it is no token, or damaged; the message does not repeat it.
        """
        compact = "".join(text[:_MAX_TEXT].split()).lower()
        if not compact.startswith(PREFIX):
            raise TokenMistyped(
                "what was given is no enrolment token: one begins with hybe_; take the whole line that "
                "`hybrid fleet token create` printed"
            )
        raw = _decoded(compact.removeprefix(PREFIX))
        n_fixed = 1 + _ID_BYTES + _SECRET_BYTES + 2 * _DIGEST_BYTES
        content, check = raw[:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
        if len(content) < n_fixed or hashlib.sha256(content).digest()[:_CHECK_BYTES] != check:
            raise TokenMistyped(
                "the enrolment token is mistyped or cut: its checksum does not fit; copy the whole line again"
            )
        if content[0] != VERSION:
            raise TokenMistyped(
                f"the enrolment token is of form {content[0]}, this program reads {VERSION}; upgrade it"
            )
        parts, at = [], 1
        for n_bytes in (_ID_BYTES, _SECRET_BYTES, _DIGEST_BYTES, _DIGEST_BYTES):
            parts.append(content[at : at + n_bytes])
            at += n_bytes
        token_id, secret, authority, root = parts
        try:
            url = content[at:].decode("utf-8")
        except UnicodeDecodeError as exc:
            raise TokenMistyped("the enrolment token's URL is no text; have a new token made") from exc
        return cls(
            id=_base32(token_id),
            secret=_base32(secret),
            authority_sha256=authority,
            root_sha256=None if root == _NO_ROOT else root,
            url=url,
        )

    @property
    def text(self) -> str:
        """The token as one line."""
        content = (
            bytes([VERSION])
            + _bytes(self.id)
            + _bytes(self.secret)
            + self.authority_sha256
            + (self.root_sha256 or _NO_ROOT)
            + self.url.encode("utf-8")
        )
        return PREFIX + _base32(content + hashlib.sha256(content).digest()[:_CHECK_BYTES])

    @property
    def key(self) -> bytes:
        """SHA-256 of the secret: what the gateway keeps of it."""
        return secret_key(self.secret)


def secret_key(secret: str) -> bytes:
    """SHA-256 of a token's secret as the gateway keeps it."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def qr_lines(text: str) -> str:
    """A token as a QR code for a terminal, dark on light whatever the terminal's colours are.

    Raises:
        ImportError: segno is not installed.
    """
    import io

    import segno
    from segno.consts import MODE_ALPHANUMERIC, MODE_BYTE

    # Upper-case letters take 5.5 bits each instead of 8; the underscore is not among them and is a part of its own.
    upper = text.upper()
    prefix = PREFIX.upper()
    parts: Any = [(prefix, MODE_BYTE), (upper.removeprefix(prefix), MODE_ALPHANUMERIC)]
    code = segno.make(parts, micro=False, error="m")
    drawn = io.StringIO()
    code.terminal(drawn, compact=True)
    return drawn.getvalue().rstrip("\n")


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode("ascii").rstrip("=").lower()


def _bytes(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))


def _decoded(text: str) -> bytes:
    """The bytes of the one base32 text that they have; no other spelling of the same bytes is taken."""
    try:
        raw = _bytes(text)
    except (binascii.Error, ValueError):
        raw = b""
    return raw if _base32(raw) == text else b""
