"""Whether this machine runs on its battery, and how full that is, as Linux says under `/sys/class/power_supply`."""

from pathlib import Path
from typing import Final

FOLDER: Final = Path("/sys/class/power_supply")

_FEEDING: Final = ("Mains", "USB", "Wireless", "UPS")


def is_on_battery(folder: Path = FOLDER) -> bool:
    """Whether a battery of the machine itself is being emptied, and nothing feeds it; False where nobody says so.

    A mouse's battery is none of the machine's (its `scope` is `Device`). Costs some tens of microseconds where there is
    a battery, next to nothing elsewhere.

    Args:
        folder: for tests.
    """
    try:
        supplies = list(folder.iterdir())
    except OSError:
        return False
    is_discharging = False
    for supply in supplies:
        kind = _text(supply / "type")
        if kind in _FEEDING and _text(supply / "online") == "1":
            return False
        if kind == "Battery" and _text(supply / "scope") != "Device":
            is_discharging |= _text(supply / "status") == "Discharging"
    return is_discharging


def battery_ratio(folder: Path = FOLDER) -> float | None:
    """How full the machine's own battery is, 0 to 1, the emptiest of several; None where nobody says so."""
    try:
        supplies = sorted(folder.iterdir())
    except OSError:
        return None
    levels = [
        _text(supply / "capacity")
        for supply in supplies
        if _text(supply / "type") == "Battery" and _text(supply / "scope") != "Device"
    ]
    return min((int(level) / 100 for level in levels if level.isdigit() and int(level) <= 100), default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
