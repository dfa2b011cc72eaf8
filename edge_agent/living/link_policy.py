"""What may travel now: a metered link, the battery and hours of the day decide, whatever else wants to be sent.

Design: reports, results and the enrolment always travel: they are small, and somebody waits for them. Models, samples
and telemetry wait for a link that costs nothing by the byte, for mains, for the hours that the operator named. What
inference sends is the planner's business (setting `max_uplink_bytes_per_s`).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from devices.power_supply import is_on_battery
from edge_agent.link_rules import LinkRules, windows
from edge_agent.living.system_bus import BusUnavailable, property_number
from edge_agent.part import Problem

LOOK_S: Final = 30.0
EVERYTHING: Final = 4
RESULTS: Final = 2
_KNOWN_SINCE_S: Final = 1_760_000_000.0
"""A clock that shows less was not set: hours of the day mean nothing then."""
_METERED: Final = frozenset({1, 3})
"""NetworkManager's `yes` and `guessed yes`."""
_log = logging.getLogger("hybrid.agent.link")


class LinkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what follows from it; `held` is empty while everything travels."""

    metered: bool
    on_battery: bool
    held: str = ""


def network_manager_metered() -> bool | None:
    """Whether NetworkManager says that the link costs by the byte; None where it says nothing. Blocks up to 2 s."""
    place = "org.freedesktop.NetworkManager"
    try:
        return property_number(place, "/org/freedesktop/NetworkManager", f"{place}.Metered") in _METERED
    except BusUnavailable:
        return None


def _nothing() -> None:
    """Nobody waits."""


class LinkPolicy:
    """A `Part`: looks at link and battery every half minute; what it is asked in between it answers from memory.

    Attributes:
        freed: called when what waited may travel again.
    """

    name = "link"

    def __init__(
        self,
        rules: LinkRules,
        *,
        wall_s: Callable[[], float] = time.time,
        metered: Callable[[], bool | None] = network_manager_metered,
        on_battery: Callable[[], bool] = is_on_battery,
        look_s: float = LOOK_S,
    ) -> None:
        self._rules, self._wall_s, self._look_s = rules, wall_s, look_s
        self._ask_metered, self._ask_battery = metered, on_battery
        self._is_metered = rules.metered == "yes"
        self._is_on_battery = False
        self._looked = asyncio.Event()
        self._was_held = False
        self.freed: Callable[[], None] = _nothing

    def set_rules(self, rules: LinkRules) -> None:
        """New wishes of the operator; they count at once."""
        self._rules = rules
        self._is_metered = rules.metered == "yes" or (rules.metered == "auto" and self._is_metered)
        self._looked.set()

    def may_download(self) -> str:
        """Empty when models may be fetched now; else why they wait."""
        if self._is_metered:
            return "the link is metered; models wait for another one (setting `metered`)"
        if self._is_on_battery and self._rules.on_battery == "hold":
            return "this box runs on its battery; models wait for mains (setting `on_battery`)"
        if not self._is_in_hours():
            return f"models travel at {self._rules.transfer_hours} only (setting `transfer_hours`)"
        return ""

    def least_important(self) -> int:
        """The lowest priority of the outbox that may travel now: 4 is everything, 2 is reports and results."""
        return RESULTS if self.may_download() else EVERYTHING

    async def run(self) -> None:
        """See `Part`."""
        while True:
            await self.look()
            self._looked.clear()
            try:
                async with asyncio.timeout(self._look_s):
                    await self._looked.wait()
            except TimeoutError:
                continue

    async def look(self) -> None:
        """See how link and battery are now."""
        rules = self._rules
        said = await asyncio.to_thread(self._ask_metered) if rules.metered == "auto" else None
        if rules is self._rules:
            self._is_metered = bool(said) if rules.metered == "auto" else rules.metered == "yes"
        self._is_on_battery = await asyncio.to_thread(self._ask_battery)
        held = self.may_download()
        if bool(held) != self._was_held:
            _log.info("link.policy held=%r", held)
            self._was_held = bool(held)
            if not held:
                self.freed()

    def problems(self) -> Sequence[Problem]:
        """See `Part`: to wait as one was told to is no problem."""
        return ()

    def status(self) -> LinkStatus:
        """See `Part`."""
        return LinkStatus(metered=self._is_metered, on_battery=self._is_on_battery, held=self.may_download())

    def _is_in_hours(self) -> bool:
        wanted = windows(self._rules.transfer_hours)
        now_s = self._wall_s()
        if not wanted or now_s < _KNOWN_SINCE_S:
            return True
        local = datetime.fromtimestamp(now_s).astimezone()
        minute = (local - local.replace(hour=0, minute=0, second=0, microsecond=0)) // timedelta(minutes=1)
        return any(begin <= minute < end if begin <= end else minute >= begin or minute < end for begin, end in wanted)
