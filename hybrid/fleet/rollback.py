"""A publisher's word that a box may go back to an older version: signed, for one version, useless after the next.

Design: the word names the highest sequence that it may be used from (`below`). Once a box has committed a newer
version, an old rollback that somebody kept leads nowhere.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from hybrid.artifact.names import check_digest, check_word
from hybrid.artifact.signature import Signature, sign, verify
from hybrid.errors import BadMessage

SCHEMA: Final = "hybrid rollback v1"
_MOST_BYTES: Final = 4096


class Rollback(msgspec.Struct, frozen=True, kw_only=True):
    """The sequence may fall.

    Attributes:
        name: of the model.
        artifact_digest: the version that may be gone back to.
        below: the highest sequence that a box may have had which goes back.
        schema: so that no other signed document reads as this one.
    """

    name: str
    artifact_digest: str
    below: int
    schema: str = SCHEMA

    def allows(self, name: str, artifact_digest: str, had_sequence: int) -> bool:
        """Whether a box that has had this sequence may install this version."""
        return self.name == name and self.artifact_digest == artifact_digest and had_sequence <= self.below


def signed_rollback(rollback: Rollback, private_key: bytes) -> tuple[bytes, str]:
    """Exact bytes and signature text, as `Assigned.rollback` carries them."""
    data = msgspec.json.encode(rollback, order="sorted")
    return data, sign(data, private_key).text


def read_rollback(carried: tuple[bytes, str], publishers: Mapping[str, bytes]) -> Rollback:
    """What a publisher signed.

    Args:
        carried: exact bytes and signature text.
        publishers: key id -> raw public key.

    Raises:
        Forbidden: signed by nobody who is trusted.
        CorruptContent: the signature does not fit.
        BadMessage: no rollback.
    """
    data, text = carried
    if len(data) > _MOST_BYTES:
        raise BadMessage(f"a rollback of {len(data)} bytes is refused; at most {_MOST_BYTES}")
    verify(data, Signature.of_text(text), publishers, what="rollback")
    try:
        rollback = msgspec.json.decode(data, type=Rollback)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessage(f"the rollback does not parse: {exc}") from exc
    if rollback.schema != SCHEMA:
        raise BadMessage(f"a document of kind {rollback.schema[:40]!r} is no rollback")
    check_word(rollback.name)
    check_digest(rollback.artifact_digest)
    return rollback
