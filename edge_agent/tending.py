"""Runs the agent's parts: one that breaks is shown as a problem and run again, later and later."""

import asyncio
import logging
from collections.abc import Sequence
from random import Random
from typing import Final

from edge_agent.part import Part, Problem
from hybrid.errors import HybridError

_log = logging.getLogger("hybrid.agent")

_FIRST_PAUSE_S: Final = 1.0
_MOST_PAUSE_S: Final = 60.0
_STEADY_S: Final = 300.0
"""A part that ran so long before it broke is begun again soon."""


class Tending:
    """The parts of one agent.

    Args:
        parts: to be run.
        rng: of the pauses.
    """

    def __init__(self, parts: Sequence[Part], rng: Random) -> None:
        self.parts = tuple(parts)
        self._rng = rng
        self._broken: dict[str, Problem] = {}
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Run all parts until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for part in self.parts:
                group.create_task(self._tend(part), name=part.name)

    def add(self, part: Part) -> None:
        """Run one more."""
        if part not in self.parts:
            self.parts = (*self.parts, part)
            if self._group is not None:
                self._group.create_task(self._tend(part), name=part.name)

    def problems(self) -> tuple[Problem, ...]:
        """Of all parts, those that block first."""
        found = [*self._broken.values(), *(problem for part in self.parts for problem in self._asked(part))]
        return tuple(sorted(found, key=lambda problem: not problem.blocks))

    def status(self) -> dict[str, object]:
        """Of all parts, by name."""
        return {part.name: self._told(part) for part in self.parts}

    def _asked(self, part: Part) -> Sequence[Problem]:
        try:
            return part.problems()
        except Exception as exc:  # noqa: BLE001 (health answers whatever one part does)
            _log.exception("part.untold name=%s", part.name)
            return (_failure(part, exc),)

    def _told(self, part: Part) -> object:
        try:
            return part.status()
        except Exception:  # noqa: BLE001 (as above)
            _log.exception("part.untold name=%s", part.name)
            return {}

    async def _tend(self, part: Part) -> None:
        loop = asyncio.get_running_loop()
        n_failures = 0
        while True:
            began_s = loop.time()
            try:
                await part.run()
            except (Exception, asyncio.CancelledError) as exc:  # whatever breaks in one part, the others go on
                if _is_cancelled(exc):
                    raise
                _log.exception("part.failed name=%s", part.name)
                self._broken[part.name] = _failure(part, exc)
            else:
                _log.error("part.ended name=%s", part.name)
                self._broken[part.name] = _failure(part, RuntimeError("it ended by itself"))
            n_failures = 0 if loop.time() - began_s > _STEADY_S else n_failures
            most_s = min(_MOST_PAUSE_S, _FIRST_PAUSE_S * 2**n_failures)
            n_failures += 1
            await asyncio.sleep(most_s * (0.5 + 0.5 * self._rng.random()))
            # It is whole until it breaks again: a part says itself what keeps it from its work.
            self._broken.pop(part.name, None)


def _is_cancelled(exc: BaseException) -> bool:
    """Whether the agent ends the part; a cancelled task that it waited for is no reason to end for ever."""
    task = asyncio.current_task()
    return isinstance(exc, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def _failure(part: Part, exc: BaseException) -> Problem:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]  # a group says only that something in it broke
    code = exc.code if isinstance(exc, HybridError) else "internal"
    return Problem(
        code=code,
        what=f"the part {part.name!r} of the agent failed: {exc}",
        do="It is begun again by itself. If it goes on, look at the agent's log.",
        blocks=part.name in ("install", "outbox"),
    )
