"""SIGHUP: settings are read again, and those that may change while the agent runs do."""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields, replace
from typing import Final

from edge_agent.config import AgentConfig
from edge_agent.part import Problem

_log = logging.getLogger("hybrid.agent")

CHANGEABLE: Final = frozenset({
    "learn", "metered", "on_battery", "transfer_hours", "log_level", "model", "objective", "placement", "token",
    "max_uplink_bytes_per_s", "keep_inputs_here",
})  # fmt: skip
"""What a reload takes over; the others wait for the next start."""

Change = Callable[[AgentConfig], Awaitable[None]]


class Reloading:
    """Hears SIGHUP while it runs; a `Part`.

    Args:
        config: the settings of the start.
        read_again: reads file and environment again; raises `ValueError`.
        change: takes over new settings.
        telling: called before and after.
    """

    name = "reloading"

    def __init__(
        self,
        config: AgentConfig,
        read_again: Callable[[], AgentConfig],
        change: Change,
        telling: tuple[Callable[[], None], Callable[[], None]],
    ) -> None:
        self._config = config
        self._read_again = read_again
        self._change = change
        self._before, self._after = telling
        self._asked = asyncio.Event()
        self._refused = ""
        self._waiting: tuple[str, ...] = ()
        self.n_reloads = 0

    async def run(self) -> None:
        """See `Part`."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._asked.set)
        try:
            while True:
                await self._asked.wait()
                self._asked.clear()
                self._before()
                try:
                    await self.reload()
                finally:
                    self._after()
        finally:
            loop.remove_signal_handler(signal.SIGHUP)

    async def reload(self) -> None:
        """Read again, and take over what may change."""
        try:
            found = await asyncio.to_thread(self._read_again)
        except ValueError as exc:
            self._refused = str(exc)
            _log.error("agent.not_reloaded reason=%s", exc)
            return
        changed = [spec.name for spec in fields(found) if getattr(found, spec.name) != getattr(self._config, spec.name)]
        self._refused, self._waiting = "", tuple(name for name in changed if name not in CHANGEABLE)
        taken = {name: getattr(found, name) for name in changed if name in CHANGEABLE}
        self._config = replace(self._config, **taken)
        await self._change(self._config)
        self.n_reloads += 1
        _log.info("agent.reloaded changed=%s waiting=%s", ",".join(taken) or "-", ",".join(self._waiting) or "-")

    def problems(self) -> Sequence[Problem]:
        """See `Part`."""
        found = []
        if self._refused:
            what = f"the settings were not taken over: {self._refused}"
            found.append(Problem(code="settings_refused", what=what, do="Mend them and send SIGHUP again."))
        if self._waiting:
            what = f"changed settings wait for the next start: {', '.join(self._waiting)}"
            found.append(Problem(code="restart_needed", what=what, do="Restart the agent when it suits."))
        return tuple(found)

    def status(self) -> object:
        """See `Part`."""
        return {"n_reloads": self.n_reloads, "waiting": list(self._waiting)}
