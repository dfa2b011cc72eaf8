"""The devices of a masked round and their keys, as every device checks them, and what they sign."""

import hashlib
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Final

from hybrid.errors import BadMessage, Forbidden, HybridError
from hybrid.federated.secure.bounds import Plan, plan_for
from hybrid.federated.secure.cipher import check_public_key
from hybrid.federated.secure.graph import Graph
from hybrid.federated.secure.messages import Advert
from hybrid.federated.secure.ring import ring_bits
from hybrid.federated.secure.task import SecureTask
from hybrid.fleet.signing import box_id_of, check_box_key, fields, is_signed

ADVERT_LABEL: Final = b"hybrid secure advert v1"
ROSTER_LABEL: Final = b"hybrid secure roster v1"
SHARERS_LABEL: Final = b"hybrid secure sharers v1"
MASKED_LABEL: Final = b"hybrid secure masked v1"
LIVE_LABEL: Final = b"hybrid secure live v1"


def advert_bytes(task: SecureTask, box_key: bytes, cipher_key: bytes, mask_key: bytes) -> bytes:
    """What a box key signs in an advert."""
    return fields(ADVERT_LABEL, task.digest, box_key, cipher_key, mask_key)


def check_advert(advert: Advert, task: SecureTask, listed: Collection[str] | None) -> str:
    """The box id of an advert that is sound in itself.

    Args:
        advert: as it came.
        task: that it must be signed for.
        listed: box ids of the operator's device list, None where none is used.

    Raises:
        BadMessage: keys that are none.
        Forbidden: not signed by its box key for this task, or a box that is not on the list.
    """
    check_box_key(advert.box_key)
    box_id = box_id_of(advert.box_key)
    if advert.cipher_key == advert.mask_key:
        raise BadMessage(f"box {box_id} advertises one key twice: leave it out")
    for key in (advert.cipher_key, advert.mask_key):
        check_public_key(key)
    signed = advert_bytes(task, advert.box_key, advert.cipher_key, advert.mask_key)
    if not is_signed(advert.box_key, advert.signature, signed):
        raise Forbidden(f"the keys of box {box_id} are not signed by it for this round: they were changed, or are old")
    if listed is not None and box_id not in listed:
        raise Forbidden(f"box {box_id} is not on the operator's device list: leave it out, or have the root list it")
    return box_id


class Members:
    """A roster that was checked: indexes, graph and what there is to sign.

    Args:
        task: of the round.
        adverts: of the roster, in its order.

    Raises:
        BadMessage: not in the order of box ids, a device twice, or too few or too many.
    """

    def __init__(self, task: SecureTask, adverts: tuple[Advert, ...]) -> None:
        self.task = task
        self.adverts = adverts
        self.box_ids = tuple(box_id_of(advert.box_key) for advert in adverts)
        if any(one >= other for one, other in zip(self.box_ids, self.box_ids[1:], strict=False)):
            raise BadMessage("a roster names its devices once, in the order of their ids")
        keys = {key for advert in adverts for key in (advert.cipher_key, advert.mask_key)}
        if len(keys) != 2 * len(adverts):
            raise BadMessage("two devices of a roster advertise the same key: leave them out")
        self.plan: Plan = plan_for(
            len(adverts), dropout_percent=task.dropout_percent, corrupt_percent=task.corrupt_percent
        )
        self.bits = ring_bits(task.n_levels, len(adverts))
        parts = (part for one in adverts for part in (one.box_key, one.cipher_key, one.mask_key))
        self.digest = hashlib.sha256(fields(ROSTER_LABEL, task.digest, *parts)).digest()

    @cached_property
    def graph(self) -> Graph:
        """Who is whose neighbour."""
        return Graph(self.plan, self.digest)

    @property
    def least_live(self) -> int:
        """Fewest devices in the sum."""
        return max(self.plan.quorum, self.task.least_devices)

    def index_of(self, box_id: str) -> int | None:
        """Index of a box, None where it is not on the roster."""
        return self._indexes.get(box_id)

    @cached_property
    def _indexes(self) -> dict[str, int]:
        return {box_id: index for index, box_id in enumerate(self.box_ids)}

    def sharers_digest(self, sharers: Iterable[int]) -> bytes:
        """Names roster and those who dealt shares."""
        return hashlib.sha256(fields(SHARERS_LABEL, self.digest, _text(sharers))).digest()

    def masked_bytes(self, sharers: Iterable[int]) -> bytes:
        """What a device signs when it masks: with whom, as it was told."""
        return fields(MASKED_LABEL, self.sharers_digest(sharers))

    def live_bytes(self, sharers: Iterable[int], live: Iterable[int]) -> bytes:
        """What a device signs when it consents to a live set: task and roster are in the digest."""
        return fields(LIVE_LABEL, self.sharers_digest(sharers), _text(live))

    def is_signed_by(self, index: int, signature: bytes, message: bytes) -> bool:
        """Whether the box of this index signed these bytes."""
        try:
            return is_signed(self.adverts[index].box_key, signature, message)
        except (HybridError, ValueError):
            return False


def check_indexes(indexes: tuple[int, ...], among: Collection[int], what: str) -> frozenset[int]:
    """A list of indexes as a set.

    Raises:
        BadMessage: not ascending, one twice, or one that is not among those.
    """
    found = frozenset(indexes)
    if tuple(sorted(found)) != indexes or not found <= frozenset(among):
        raise BadMessage(f"the list of the {what} devices is not ascending, or names one that is not in the round")
    return found


def _text(indexes: Iterable[int]) -> bytes:
    return b"".join(index.to_bytes(2, "big") for index in indexes)
