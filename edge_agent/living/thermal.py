"""How hot this machine is, and whether it slows itself down for it, as Linux says under /sys."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

ZONES: Final = Path("/sys/class/thermal")
CORES: Final = Path("/sys/devices/system/cpu")
_LIMITING: Final = ("hot", "critical")


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """The hottest zone against its own limit.

    Attributes:
        celsius: of that zone; None where the machine tells none.
        limit_celsius: at which the machine protects itself; None where it tells none.
        clock_ratio: highest clock allowed now over the highest there is; 1 where nobody holds it down.
    """

    celsius: float | None = None
    limit_celsius: float | None = None
    clock_ratio: float = 1.0


def look(zones: Path = ZONES, cores: Path = CORES) -> Heat:
    """How hot it is now; what the machine does not tell is left out."""
    hottest: tuple[float, float, float | None] | None = None
    for zone in sorted(zones.glob("thermal_zone*")):
        celsius = _thousandths(zone / "temp")
        if celsius is None or not -40 < celsius < 200:
            continue
        limits = [
            limit
            for kind in sorted(zone.glob("trip_point_*_type"))
            if _text(kind) in _LIMITING
            and (limit := _thousandths(kind.with_name(kind.name.replace("_type", "_temp")))) is not None
            and limit > 0
        ]
        limit_celsius = min(limits, default=None)
        margin = (limit_celsius if limit_celsius is not None else 100.0) - celsius
        if hottest is None or margin < hottest[0]:
            hottest = (margin, celsius, limit_celsius)
    ratio = min((_ratio(policy) for policy in sorted(cores.glob("cpufreq/policy*"))), default=1.0)
    if hottest is None:
        return Heat(clock_ratio=ratio)
    return Heat(celsius=hottest[1], limit_celsius=hottest[2], clock_ratio=ratio)


def _ratio(policy: Path) -> float:
    allowed, most = _thousandths(policy / "scaling_max_freq"), _thousandths(policy / "cpuinfo_max_freq")
    return min(1.0, allowed / most) if allowed and most else 1.0


def _thousandths(path: Path) -> float | None:
    try:
        return int(_text(path)) / 1000
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
