"""The demo's link: what it is like in each phase, and when the phases begin."""

from dataclasses import dataclass
from typing import Final

from devices.shape import Direction, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stretch of time with one shape of the link.

    Attributes:
        name: `good`, `poor` or `dead`.
        says: the shape in a few words.
        shape: rate and delay of both directions.
        begins_s: seconds after the start.
        ends_s: seconds after the start.
    """

    name: str
    says: str
    shape: Shape
    begins_s: float
    ends_s: float


def _shape(up_bps: float, down_bps: float, delay_s: float, *, is_open: bool = True) -> Shape:
    return Shape(
        up=Direction(rate_bps=up_bps, delay_s=delay_s, open=is_open),
        down=Direction(rate_bps=down_bps, delay_s=delay_s, open=is_open),
    )


GOOD: Final = _shape(20e6, 60e6, 0.010)
_POOR: Final = _shape(1e6, 6e6, 0.075)
_DEAD: Final = _shape(20e6, 60e6, 0.010, is_open=False)

_PLAN: Final = (
    ("good", "20 Mbit/s up, 20 ms round trip", GOOD, 0.25),
    ("poor", "1 Mbit/s up, 150 ms round trip", _POOR, 0.2),
    ("dead", "nothing passes", _DEAD, 0.20),
    ("good", "20 Mbit/s up, 20 ms round trip", GOOD, 0.35),
)


def schedule(seconds: float) -> tuple[Phase, ...]:
    """Good, poor, dead and good again, together so many seconds."""
    phases: list[Phase] = []
    at_s = 0.0
    for name, says, shape, share in _PLAN:
        phases.append(Phase(name=name, says=says, shape=shape, begins_s=at_s, ends_s=at_s + share * seconds))
        at_s += share * seconds
    return tuple(phases)


def phase_at(phases: tuple[Phase, ...], at_s: float) -> int:
    """Index of the phase at this second; before the first it is the first, after the last the last."""
    return next((index for index, phase in enumerate(phases) if at_s < phase.ends_s), len(phases) - 1)
