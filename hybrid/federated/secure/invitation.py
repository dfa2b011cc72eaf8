"""What a box is told of a masked round before it begins: the task, and the operator's device list where one is used."""

from typing import Final

import msgspec

from hybrid.errors import BadMessage, TooLarge
from hybrid.federated.secure.device_list import MAX_LIST_BYTES
from hybrid.federated.secure.task import MAX_TASK_BYTES, SecureTask

_MOST_BYTES: Final = MAX_LIST_BYTES + MAX_TASK_BYTES


class Invitation(msgspec.Struct, frozen=True, array_like=True):
    """As it travels in a task's `secure`; the same bytes for all boxes.

    Attributes:
        task: of the round.
        device_list: envelope of `hybrid.federated.secure.device_list`; empty without.
    """

    task: SecureTask
    device_list: bytes = b""

    def to_bytes(self) -> bytes:
        """As it travels."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> "Invitation":
        """The invitation in these bytes. Raises `TooLarge` or `BadMessage`."""
        if len(content) > _MOST_BYTES:
            raise TooLarge(f"an invitation to a masked round has {len(content)} bytes; at most {_MOST_BYTES} are taken")
        try:
            return msgspec.msgpack.decode(content, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            raise BadMessage(f"an invitation to a masked round does not parse: {exc}") from exc
