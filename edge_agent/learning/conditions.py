"""Whether this box may learn now: power, heat, link and room on its disk, looked at every half minute."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from devices.power_supply import battery_ratio, is_on_battery
from edge_agent.disk import Disk
from edge_agent.living import thermal
from hybrid.federated.messages import Condition

LOOK_S: Final = 30.0
FRESH_S: Final = 1.0
"""So long a look is believed: steps of one task follow one another in milliseconds."""

LEAST_BATTERY_RATIO: Final = 0.5
NEAR_CELSIUS: Final = 8.0
LEAST_CLOCK_RATIO: Final = 0.9
RESERVE_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Senses:
    """What is asked of the machine; all of it blocks.

    Attributes:
        on_battery: whether the battery is being emptied.
        battery_ratio: how full it is, None where nobody says so.
        heat: how hot it is.
    """

    on_battery: Callable[[], bool] = is_on_battery
    battery_ratio: Callable[[], float | None] = battery_ratio
    heat: Callable[[], thermal.Heat] = thermal.look


class Conditions:
    """What was found when it was last looked at.

    Args:
        folder: of what learning keeps.
        disk: on which that is.
        is_metered: whether the link costs by the byte; from memory.
        senses: of the machine.
        now_s: a clock that only runs forward.

    Attributes:
        condition: what the gateway is told.
        why_not: what keeps this box from learning, in words; empty where nothing does.
    """

    def __init__(
        self,
        folder: Path,
        disk: Disk,
        *,
        is_metered: Callable[[], bool],
        senses: Senses | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._disk = folder, disk
        self._is_metered = is_metered
        self._senses = senses or Senses()
        self._now_s = now_s
        self._looked_s = float("-inf")
        self.condition = Condition()
        self.why_not = "the machine was not looked at yet"

    async def lately(self) -> str:
        """What keeps this box from learning, seen within the last second; but the link's kind is asked each time."""
        if self._now_s() - self._looked_s >= FRESH_S:
            return await self.look()
        if self.condition.is_metered != self._is_metered():
            self.condition = msgspec.structs.replace(self.condition, is_metered=self._is_metered())
        return self.why_not

    async def look(self) -> str:
        """See how things are now; what keeps this box from learning."""
        looked_s = self._now_s()
        is_on_battery, why = await asyncio.to_thread(self._seen)
        self.why_not, self._looked_s = why, looked_s
        self.condition = Condition(is_on_mains=not is_on_battery, is_metered=self._is_metered(), is_well=not why)
        return why

    def _seen(self) -> tuple[bool, str]:
        senses = self._senses
        is_emptied = senses.on_battery()
        level = senses.battery_ratio() if is_emptied else None
        if is_emptied and (level is None or level <= LEAST_BATTERY_RATIO):
            full = "" if level is None else f", {level:.0%} full"
            return is_emptied, f"this box runs on its battery{full}; it learns on mains or above half"
        heat = senses.heat()
        limit_celsius = heat.limit_celsius
        if heat.celsius is not None and limit_celsius is not None and heat.celsius > limit_celsius - NEAR_CELSIUS:
            return is_emptied, f"this box is hot: {heat.celsius:.0f} °C of {limit_celsius:.0f}"
        if heat.clock_ratio < LEAST_CLOCK_RATIO:
            return is_emptied, f"this box is held at {heat.clock_ratio:.0%} of its clock, for heat or power"
        try:
            free_bytes = self._disk.free_bytes(self._folder)
        except OSError as exc:
            return is_emptied, f"the disk does not say how much room it has: {exc}"
        if free_bytes < RESERVE_BYTES:
            return is_emptied, f"{free_bytes >> 20} MB are free on the disk, {RESERVE_BYTES >> 20} MB are wanted"
        return is_emptied, ""
