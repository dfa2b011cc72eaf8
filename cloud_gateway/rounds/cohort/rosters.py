"""The device lists that secure campaigns carry: who is on one, and whether the fleet's boxes would take it."""

from collections.abc import Iterable
from functools import lru_cache

from hybrid.errors import CampaignImpossible, Forbidden, HybridError
from hybrid.federated.campaign import Campaign
from hybrid.federated.secure.device_list import DeviceList, opened, opened_by_own_root

_HOW = "hybrid keys devices --from LAST --root ROOT.key --out NEW"


@lru_cache(maxsize=32)
def device_list(roster: bytes) -> DeviceList:
    """The list in an order's roster. Raises `BadMessage`, `CorruptContent` for what is none."""
    return opened_by_own_root(roster)


def is_listed(order: Campaign, box_id: str) -> bool:
    """Whether a box may be in a campaign's sums."""
    roster = order.cohort.roster
    return roster is None or box_id in device_list(roster).box_ids


def check_roster(order: Campaign, root_sha256: bytes | None, before: Iterable[Campaign]) -> None:
    """Refuse a secure order that every box of a fleet with a root would refuse.

    Args:
        order: what is ordered.
        root_sha256: fingerprint of the fleet's root; None for a fleet without.
        before: orders of earlier campaigns.

    Raises:
        CampaignImpossible: another root's list, an older one than boxes were given, or none after they were.
        BadMessage, CorruptContent: it is no device list.
    """
    roster = order.cohort.roster
    found = None if roster is None else device_list(roster)
    if root_sha256 is None or not order.privacy.secure:
        return
    if roster is not None:
        try:
            opened(roster, root_sha256)
        except Forbidden as exc:
            raise CampaignImpossible(
                f"{exc} ({root_sha256.hex()[:16]}…): boxes would refuse every round", advice=f"Sign one with it: {_HOW}"
            ) from exc
    newest = max((_sequence(each, root_sha256) for each in before), default=-1)
    if found is None and newest >= 0:
        raise CampaignImpossible(
            f"boxes were given device list {newest} before, and take part in no masked round without one",
            advice="Order it with that list or a newer one: --roster FILE.",
        )
    if found is not None and found.sequence < newest:
        raise CampaignImpossible(
            f"the device list has sequence {found.sequence}, boxes were given {newest} before: they would refuse it",
            advice=f"Take the newest list, or sign a newer one: {_HOW}",
        )


def _sequence(order: Campaign, root_sha256: bytes) -> int:
    """Of an earlier order's list by this root; -1 for none."""
    roster = order.cohort.roster
    if roster is None or not order.privacy.secure:
        return -1
    try:
        return opened(roster, root_sha256).sequence
    except HybridError:  # a list that this root did not sign was refused by boxes
        return -1
