"""Engine runs for threads that are not the loop's, each in its turn among the requests that wait.

Design: sessions compute heads, hedged runs and measurements on threads of their own. They go through the same queue as
everything else that this box computes, so that there is one order of priority, and measurements come last.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.route.engine import Engine
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.model_facts import facts_of
from hybrid.serving.engines.opening import open_engine
from hybrid.serving.engines.session import EngineSession

LEAST = 0
"""Priority of work that no request waits for."""

_priority: ContextVar[int] = ContextVar("priority", default=LEAST)


@contextmanager
def at_priority(priority: int) -> Iterator[None]:
    """Runs that this task, or a thread for it, asks for inside the block have this priority."""
    token = _priority.set(priority)
    try:
        yield
    finally:
        _priority.reset(token)


def priority_now() -> int:
    """Of this task's runs."""
    return _priority.get()


class Turns:
    """Makes engines whose runs wait for their turn. Make it on the event loop; engines are for other threads only."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._loop = asyncio.get_running_loop()

    def whole(self, opened: EngineSession, open_again: Callable[[], Awaitable[EngineSession]]) -> Engine:
        """An engine for a whole model, which may leave memory between runs."""
        return Engine(session=opened.engine, run=self._run(open_again), inputs=tuple(opened.inputs))

    def piece(self, path: Path, *, has_arena: bool = True) -> Engine:  # noqa: ARG002 (one arena for all)
        """An engine for a head or rest."""
        settings = self._executor.settings.engine
        opened = open_engine(path, settings, facts_of(path, wants_bounds=False))

        async def kept() -> EngineSession:
            return opened

        return Engine(session=opened.engine, run=self._run(kept), inputs=tuple(opened.inputs))

    def _run(self, find: Callable[[], Awaitable[EngineSession]]) -> Callable[..., list[np.ndarray]]:
        async def compute(
            names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], options: Any, priority: int
        ) -> list[np.ndarray]:
            session = await find()
            computed = await self._executor.compute(session, feeds, names, priority=priority, options=options)
            return computed.outputs

        def run(names: Sequence[str] | None, feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
            work = compute(names, feeds, options, _priority.get())
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()

        return run
