"""State calls that wait for something new: each a future, woken alone when its own answer has changed."""

import asyncio
import random
from collections.abc import Callable

from cloud_gateway.fleet.steering.herd import WAIT_MOST_S, HerdLimits, release_moments

_AT_ONCE = 100
"""So many waiting calls are looked at before others get their turn on the loop."""


class WaitingPolls:
    """The calls that wait, at most one a box: a newer call of a box ends its older one.

    Attributes:
        is_released: no call waits any more; the gateway is about to stop.
    """

    def __init__(self, limits: HerdLimits) -> None:
        self._limits = limits
        self._waiting: dict[str, tuple[asyncio.Future[None], str]] = {}
        self.is_released = False

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, box_id: str) -> bool:
        return box_id in self._waiting

    def box_ids(self) -> tuple[str, ...]:
        """Boxes whose call waits."""
        return tuple(self._waiting)

    async def wait(self, box_id: str, known: str, wait_s: float, n_boxes: int) -> None:
        """Return when this box has something new, when the time is over, or when calls are let go.

        Args:
            box_id: whose call.
            known: the generation that the box has.
            wait_s: how long, cut to 300 s.
            n_boxes: size of the fleet, for the advice in a refusal.

        Raises:
            Overloaded: too many wait already.
        """
        if self.is_released or wait_s <= 0:
            return
        self._let_go(box_id)
        if len(self._waiting) >= self._limits.max_waiting:
            raise self._limits.overloaded(n_boxes)
        future = asyncio.get_running_loop().create_future()
        entry = self._waiting[box_id] = (future, known)
        try:
            async with asyncio.timeout(min(wait_s, WAIT_MOST_S)):
                await future
        except TimeoutError:
            pass  # nothing new: the box is told so
        finally:
            if self._waiting.get(box_id) is entry:
                del self._waiting[box_id]

    def _let_go(self, box_id: str) -> None:
        entry = self._waiting.pop(box_id, None)
        if entry is not None and not entry[0].done():
            entry[0].set_result(None)

    def wake(self, box_id: str) -> None:
        """This box's call is answered now."""
        self._let_go(box_id)

    async def wake_changed(self, generation_of: Callable[[str], str | None]) -> int:
        """Answer those whose generation is another one now, or None; returns how many. Others notice nothing."""
        n_woken = 0
        for at, box_id in enumerate(self.box_ids()):
            entry = self._waiting.get(box_id)
            if entry is not None and generation_of(box_id) != entry[1]:
                self._let_go(box_id)
                n_woken += 1
            if at % _AT_ONCE == _AT_ONCE - 1:
                await asyncio.sleep(0)
        return n_woken

    async def release(self, within_s: float, rng: random.Random) -> None:
        """Let all waiting calls go, in random order, spread over the time; those that come meanwhile do not wait."""
        self.is_released = True
        box_ids = list(self._waiting)
        rng.shuffle(box_ids)
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        for box_id, at_s in zip(box_ids, release_moments(len(box_ids), within_s, rng), strict=True):
            await asyncio.sleep(max(0.0, begun_s + at_s - loop.time()))
            self._let_go(box_id)
