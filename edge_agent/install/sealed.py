"""Small records with their own digest, so that a bit that flipped on the disk is noticed and never obeyed."""

import hashlib
from typing import Final

from hybrid.errors import BadMessage

_MARK: Final = b"\nsha256 "


def sealed(content: bytes) -> bytes:
    """A record as it lies on the disk: its content, and a last line with the digest of that."""
    return content + _MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unsealed(data: bytes) -> bytes:
    """The content of a record.

    Raises:
        BadMessage: it is not what was written.
    """
    content, mark, digest = data.rpartition(_MARK)
    if not mark or digest != hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise BadMessage("the record is damaged: its digest is not that of its content; it is set aside")
    return content
