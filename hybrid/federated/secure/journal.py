"""What the gateway keeps of a masked round: one entry for every message that it took and every stage that it closed.

Design: the journal is the state. An entry is written once, before the message is acknowledged, so that a round of a
hundred devices does not rewrite its megabyte of shares at every message; a round is restored by reading it.
"""

from typing import Annotated

import msgspec

from hybrid.errors import CorruptContent
from hybrid.federated.secure.messages import Advert, Consent, Dealt, Digest, Reveal, Signature


class MaskedDigest(msgspec.Struct, frozen=True, array_like=True, tag="masked"):
    """A masked input that the caller keeps: SHA-256 of its payload, and its signature."""

    sha256: Digest
    signature: Signature


class Closed(msgspec.Struct, frozen=True, array_like=True, tag="closed"):
    """The end of a stage."""


Taken = Advert | Dealt | MaskedDigest | Consent | Reveal | Closed


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One entry.

    Attributes:
        box_id: whose message; empty where a stage was closed.
        taken: what is kept of it.
    """

    box_id: Annotated[str, msgspec.Meta(max_length=64)]
    taken: Taken

    def to_bytes(self) -> bytes:
        """As it is kept."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Entry":
        """As it was kept. Raises `CorruptContent`."""
        try:
            return msgspec.msgpack.decode(content, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise CorruptContent("an entry of a masked round's journal does not parse: exclude the round") from exc
