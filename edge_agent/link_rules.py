"""What an operator wishes about a box's link: when it costs, what waits on battery, at which hours models travel."""

import re
from dataclasses import dataclass
from typing import Final, Literal

Metered = Literal["auto", "yes", "no"]
OnBattery = Literal["hold", "go"]

_HOURS: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRules:
    """What an operator wishes.

    Attributes:
        metered: whether the link costs by the byte; auto: what NetworkManager says, and no where there is none.
        on_battery: hold: models, samples and telemetry wait for mains; go: they do not.
        transfer_hours: `22:00-06:00`, several with commas: models and samples travel only then; empty: always.
    """

    metered: Metered = "auto"
    on_battery: OnBattery = "hold"
    transfer_hours: str = ""

    def check(self) -> None:
        """Refuse what means nothing. Raises `ValueError`."""
        for name, known in (("metered", ("auto", "yes", "no")), ("on_battery", ("hold", "go"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use {', '.join(known)}")
        windows(self.transfer_hours)


def windows(text: str) -> tuple[tuple[int, int], ...]:
    """Hours of the day as minutes since midnight; one that ends before it begins runs over midnight.

    Raises:
        ValueError: not of the form 22:00-06:00.
    """
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = _HOURS.fullmatch(part)
        if match is None:
            raise ValueError(f"transfer_hours {part!r} is not of the form 22:00-06:00")
        a, b, c, d = map(int, match.groups())
        found.append((a * 60 + b, c * 60 + d))
    return tuple(found)
