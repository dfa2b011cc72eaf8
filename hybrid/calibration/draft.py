"""What a calibration has measured so far: kept cut by cut, so that an interrupted one goes on where it stood."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from hybrid.artifact.durable import write_atomically
from hybrid.artifact.plain_file import read_plain
from hybrid.calibration.record import MAX_CALIBRATION_BYTES, Cell
from hybrid.errors import HybridError

_log = logging.getLogger("hybrid.calibration")

_MOST_BYTES: Final = 4 * MAX_CALIBRATION_BYTES
_MOST_DRAFTS: Final = 64


class Draft:
    """The cells of cuts that were measured on all samples, for one model, one set of samples and one wish.

    Args:
        folder: of drafts, in the cache; None keeps nothing on the disk.
        facts: all that the cells depend on; other facts make another draft.
        again: nothing that was measured before counts.
    """

    def __init__(self, folder: Path | None, facts: Sequence[object], *, again: bool = False) -> None:
        name = f"{hashlib.sha256(msgspec.json.encode(facts)).hexdigest()[:32]}.json"
        self._path = folder / name if folder is not None else None
        self._cells: dict[str, list[Cell]] = {} if again or self._path is None else _read(self._path)

    @property
    def cells(self) -> dict[str, list[Cell]]:
        """What is measured, by cut."""
        return dict(self._cells)

    def keep(self, cut: str, cells: list[Cell]) -> None:
        """Keeps a cut's cells; a disk that refuses costs the draft only."""
        self._cells[cut] = cells
        if self._path is None:
            return
        try:
            write_atomically(self._path, msgspec.json.encode(self._cells))
            drafts = sorted(self._path.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)
            for old in drafts[: max(0, len(drafts) - _MOST_DRAFTS)]:
                old.unlink(missing_ok=True)
        except (HybridError, OSError) as exc:
            _log.warning("calibration.draft_not_kept path=%s error=%s", self._path, exc)


def _read(path: Path) -> dict[str, list[Cell]]:
    try:
        found = msgspec.json.decode(read_plain(path, _MOST_BYTES), type=dict[str, list[Cell]])
    except FileNotFoundError:
        return {}
    except (HybridError, OSError, msgspec.MsgspecError, RecursionError) as exc:
        _log.warning("calibration.draft_unreadable path=%s error=%s", path, exc)
        return {}
    return {cut: cells for cut, cells in found.items() if all(cell.cut == cut and cell.is_sound for cell in cells)}
