"""Opened engine sessions: built once however many ask, kept while memory lasts, the least used leave first."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from hybrid.errors import EngineFailed, HybridError
from hybrid.serving.background import Background
from hybrid.serving.engine_session import EngineSession

_log = logging.getLogger("hybrid.serving")

T = TypeVar("T")

SessionKey = tuple[str, ...]
"""What a session belongs to: (model digest,) for a whole model, (digest, shape id, cut id) for a tail."""


class TaskOwner(Protocol):
    """Owns background tasks and ends them."""

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that ends at the latest with its owner; it must not raise."""
        ...


class SessionCache:
    """An LRU of sessions under a budget in bytes, with one build at a time for each key.

    A session that leaves while a request still runs it lives until that run ends.

    Args:
        budget_bytes: kept sessions cost at most this much together; the newest one stays even when it alone costs more.
        tasks: owns the builds.
        builders: threads in which sessions are opened.
    """

    def __init__(self, *, budget_bytes: int, tasks: TaskOwner, builders: Background) -> None:
        self.budget_bytes = budget_bytes
        self.n_bytes = 0
        self._tasks = tasks
        self._builders = builders
        self._kept: OrderedDict[SessionKey, EngineSession] = OrderedDict()
        self._building: dict[SessionKey, asyncio.Task[EngineSession | HybridError]] = {}

    def get(self, key: SessionKey) -> EngineSession | None:
        """The kept session, now the most recently used one; None when there is none."""
        session = self._kept.get(key)
        if session is not None:
            self._kept.move_to_end(key)
        return session

    async def get_or_open(self, key: SessionKey, build: Callable[[], EngineSession]) -> EngineSession:
        """The kept session, or the one that `build` opens in a thread.

        Raises:
            HybridError: whatever `build` raises, for every waiting caller.
        """
        session = self.get(key)
        if session is not None:
            return session
        # Shielded: one caller that leaves must not end the build that others wait for.
        found = await asyncio.shield(self.start(key, build))
        if isinstance(found, HybridError):
            raise found
        return found

    def start(self, key: SessionKey, build: Callable[[], EngineSession]) -> asyncio.Task[EngineSession | HybridError]:
        """Begin building unless that is under way; the task never raises, an error is its result."""
        task = self._building.get(key)
        if task is None:
            task = self._tasks.spawn(self._build(key, build), name=f"open-{'/'.join(key)}")
            self._building[key] = task
        return task

    def drop(self, digest: str) -> None:
        """Forget all sessions of that model."""
        for key in [key for key in self._kept if key[0] == digest]:
            self.n_bytes -= self._kept.pop(key).n_bytes

    def __len__(self) -> int:
        return len(self._kept)

    async def _build(self, key: SessionKey, build: Callable[[], EngineSession]) -> EngineSession | HybridError:
        try:
            session = await self._builders.run(build)
        except HybridError as exc:
            _log.warning("session.failed key=%s error=%s", "/".join(key), exc.code)
            return exc
        except Exception as exc:  # noqa: BLE001 (a fault of ours must not end the service's task group)
            _log.exception("session.failed key=%s", "/".join(key))
            return EngineFailed(f"the session could not be opened: {type(exc).__name__}")
        finally:
            self._building.pop(key, None)
        self._keep(key, session)
        return session

    def _keep(self, key: SessionKey, session: EngineSession) -> None:
        self._kept[key] = session
        self.n_bytes += session.n_bytes
        while self.n_bytes > self.budget_bytes and len(self._kept) > 1:
            left_key, left = self._kept.popitem(last=False)
            self.n_bytes -= left.n_bytes
            _log.info("session.evicted key=%s n_bytes=%d", "/".join(left_key), left.n_bytes)
