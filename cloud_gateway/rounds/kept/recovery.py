"""What a start finds in the folders of campaigns: those whose rows are gone or damaged, and those never begun."""

import logging
import shutil
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Final

import msgspec

from cloud_gateway.rounds.kept.store import ORDER_FILE, CampaignRow
from cloud_gateway.rounds.origin import PREFIX

STEPS: Final = "steps"
ID_LENGTH: Final = 8
LETTERS: Final = "abcdefghjkmnpqrstuvwxyz23456789"
BEGUN_ANEW: Final = (
    "the database of campaigns was damaged (it lies beside as rounds.db.corrupt-TIME) or gone; campaigns that ran are "
    "lost, their steps so far are in their folders"
)
_LOST: Final = "the database of campaigns was damaged; its steps so far lie in the campaign's folder"
_log = logging.getLogger("hybrid.gateway.rounds")


def lost_rows(folder: Path, known: Mapping[str, CampaignRow], begun: Set[str] | None) -> list[CampaignRow]:
    """Campaigns whose rows the disk has damaged, the oldest first: what was ordered lies in their folders. Blocks.

    Args:
        folder: of all campaigns.
        known: those whose rows were read.
        begun: all that have a row, sound or not; None where the whole database was lost.
    """
    found = []
    for path in sorted(folder.glob(f"*/{ORDER_FILE}")):
        if path.parent.name in known or (begun is not None and path.parent.name not in begun):
            continue
        try:
            row = msgspec.json.decode(path.read_bytes(), type=CampaignRow)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            _log.warning("rounds.order_unread path=%s error=%s", path, exc)
            continue
        found.append(msgspec.structs.replace(row, state="lost", reason=_LOST, step=_newest(path.parent)))
    return sorted(found, key=lambda row: row.made_s)


def sweep(folder: Path, known: Mapping[str, CampaignRow]) -> None:
    """Remove what a process that ended left half-made; blocks."""
    for path in folder.iterdir():
        if path.is_dir() and (path.name.startswith(PREFIX) or _is_unbegun(path, known)):
            shutil.rmtree(path, ignore_errors=True)


def _newest(path: Path) -> int:
    """The newest step that lies in a campaign's folder."""
    stems = [step.stem for step in (path / STEPS).glob("*.step")]
    return max((int(stem) for stem in stems if stem.isdecimal()), default=0)


def _is_unbegun(path: Path, known: Mapping[str, CampaignRow]) -> bool:
    """Whether a folder is that of a campaign which was never begun; one that has learned is never taken for it."""
    is_campaign = len(path.name) == ID_LENGTH and set(path.name) <= set(LETTERS)
    return is_campaign and path.name not in known and len(list((path / STEPS).glob("*.step"))) <= 1
