"""Signs of life: what systemd is told, when a crash loop is over, and when the service is better restarted.

Design: a sign of life is sent from the event loop and only while nothing hangs that the loop cannot see. So a blocked
loop, a run of an engine that never ends and a process that was stopped all end the same way: systemd starts it anew.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from edge_agent.living.crash_guard import CrashGuard
from edge_agent.part import Problem
from hybrid.hosting.systemd import Notifier

_PAUSE_S: Final = 10.0
_AGAIN_S: Final = 60.0
_PER_WATCHDOG: Final = 3
"""Signs of life within the time that the watchdog gives: one that is lost is no restart."""
_log = logging.getLogger("hybrid.agent.living")


class LivingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """`mode`: normal, safe or bare; `n_early`: starts before this one that ended early; `hangs`: what does now."""

    mode: str
    n_early: int
    watchdog_s: float
    hangs: str = ""


class Living:
    """A `Part`.

    Args:
        notifier: to systemd.
        guard: of crash loops; its `begin` was called.
        hangs: what hangs now, in words; empty while nothing does. Asked on the event loop, answers from memory.
        summary: one line for `systemctl status`.
        resumed: called once when an agent that began with less may do everything again.
        look: called with every sign of life.
    """

    name = "living"

    def __init__(
        self,
        notifier: Notifier,
        guard: CrashGuard,
        *,
        hangs: Callable[[], str] = str,
        summary: Callable[[], str] = str,
        resumed: Callable[[], Awaitable[None]] | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._notifier, self._guard, self._hangs, self._summary = notifier, guard, hangs, summary
        self._resumed, self._look = resumed, look
        self._seen = ""
        self._is_settled = False

    def ready(self, text: str) -> None:
        """The service serves."""
        self._notifier.ready(text)

    def reloading(self) -> None:
        """Settings are about to be read anew."""
        self._notifier.reloading()

    def reloaded(self, text: str = "") -> None:
        """They were, or were refused."""
        self._notifier.ready(text)

    async def stopping(self) -> None:
        """An orderly stop has begun."""
        self._notifier.stopping()
        await asyncio.to_thread(self._guard.end)

    async def run(self) -> None:
        """See `Part`."""
        async with asyncio.TaskGroup() as group:
            await self._beat(group)

    async def _beat(self, group: asyncio.TaskGroup) -> None:
        pause_s = self._notifier.watchdog_s / _PER_WATCHDOG or _PAUSE_S
        loop = asyncio.get_running_loop()
        settled_s = loop.time() + self._guard.settled_after_s
        while True:
            seen = self._hangs()
            if seen and seen != self._seen:
                _log.error("living.hangs what=%r watchdog_s=%.0f", seen, self._notifier.watchdog_s)
            self._seen = seen
            if not seen:
                self._notifier.alive()
            self._notifier.status(seen or self._summary())
            self._look()
            if not self._is_settled and loop.time() >= settled_s:
                self._is_settled = True
                group.create_task(self._settle(), name="settled")  # models may take longer than the watchdog waits
            await asyncio.sleep(min(pause_s, _PAUSE_S))

    async def _settle(self) -> None:
        began_with_less = self._guard.mode != "normal"
        await asyncio.to_thread(self._guard.settled)
        if not began_with_less:
            return
        _log.warning("living.resumed all models and updates are tried again")
        while self._resumed is not None:
            try:
                await self._resumed()
                return
            except Exception:  # noqa: BLE001 (signs of life go on; it is tried again)
                _log.exception("living.not_resumed again_s=%.0f", _AGAIN_S)
            await asyncio.sleep(_AGAIN_S)

    def problems(self) -> Sequence[Problem]:
        """See `Part`."""
        found = []
        if self._seen:
            found.append(
                Problem(code="engine_hangs", what=self._seen, do="the watchdog restarts the service", blocks=True)
            )
        if self._guard.mode != "normal":
            less = "only committed versions, no downloads" if self._guard.mode == "safe" else "no models"
            what = f"{self._guard.n_early} starts in a row ended early; this one runs with {less}"
            do = "see the log (journalctl -u hybrid-agent) for the cause; all of it is tried again in some minutes"
            found.append(Problem(code="crash_loop", what=what, do=do, blocks=self._guard.mode == "bare"))
        return found

    def status(self) -> LivingStatus:
        """See `Part`."""
        return LivingStatus(
            mode=self._guard.mode,
            n_early=self._guard.n_early,
            watchdog_s=self._notifier.watchdog_s,
            hangs=self._seen,
        )
