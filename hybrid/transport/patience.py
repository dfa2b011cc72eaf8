"""How a transfer waits out what passes: growing pauses with jitter, for as long as nothing moves."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from hybrid.errors import HybridError, LinkError, Overloaded

_T = TypeVar("_T")
CONTACT_S: Final = 2.0
"""Patience with a gateway that has not answered yet: most often the address is wrong, and its user is waiting."""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 3.0


class Patience:
    """Waits between attempts; gives up `patience_s` after the last step forward."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._moved_s = time.monotonic()
        self._n_pauses = 0

    def moved(self) -> None:
        """A step forward: the patience begins anew."""
        self._moved_s = time.monotonic()
        self._n_pauses = 0

    async def wait(self, reason: HybridError) -> None:
        """Pause before the next attempt: exponential with full jitter.

        Raises:
            HybridError: `reason` itself, when the patience is at its end.
        """
        left_s = self._patience_s - (time.monotonic() - self._moved_s)
        if left_s <= 0:
            raise reason
        longest_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._n_pauses, left_s)
        self._n_pauses += 1
        await asyncio.sleep(random.uniform(longest_s / 10, longest_s))  # noqa: S311 (spreads attempts, keeps no secret)


async def patiently(call: Callable[[], Awaitable[_T]], patience_s: float) -> _T:
    """The call's result, tried again while the link or the gateway is away.

    Raises:
        HybridError: what the last attempt said.
    """
    patience = Patience(patience_s)
    while True:
        try:
            return await call()
        except (LinkError, Overloaded) as exc:
            await patience.wait(exc)


class Meter:
    """Tells a progress display how far one file is, never backwards."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance
        self._told_bytes = 0

    def reach(self, offset: int) -> bool:
        """Whether this offset is farther than any before."""
        if offset <= self._told_bytes:
            return False
        self._advance(offset - self._told_bytes)
        self._told_bytes = offset
        return True
