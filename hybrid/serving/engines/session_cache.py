"""Opened engine sessions: built once however many ask, kept while memory lasts, the least worth keeping leave first.

Design: worth is uses × seconds to open again / bytes, on a clock that rises with each departure (GreedyDual-Size-
Frequency), so that a large tail that opens in 20 ms leaves before a small one that takes as long, and nothing stays for
what it was worth long ago. `benchmarks/session_budget.py` holds it against plain LRU. What runs, or waits to run, never
leaves. Source: Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", 1998.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, Protocol, TypeVar

from hybrid.errors import EngineFailed, HybridError, ModelOverBudget, Overloaded
from hybrid.serving.engines.background import Background
from hybrid.serving.engines.session import EngineSession

_log = logging.getLogger("hybrid.serving")

T = TypeVar("T")

SessionKey = tuple[str, ...]
"""What a session belongs to: (model digest,) for a whole model, (digest, shape id, cut id) for a tail."""

FAILURE_KEPT_S: Final = 60.0
ROOM_PATIENCE_S: Final = 5.0
"""How long an opening waits for running sessions to end when only their leaving would make room."""

KEPT_FROM_LOWER_S: Final = 60.0
"""An idle session stays for so long after its last use when one of lower priority wants its memory."""

_POLL_S: Final = 0.02
_MAX_REMEMBERED: Final = 1024


@dataclass(frozen=True, slots=True)
class Opening:
    """A session that could be opened: about what it will hold, and how it is opened in a thread."""

    n_bytes: int
    open: Callable[[], EngineSession]


def worth(clock: float, n_uses: int, opened_s: float, n_bytes: float) -> float:
    """What keeping a session is worth: how often it is used times what each byte of it saves in opening it again."""
    return clock + n_uses * max(opened_s, 1e-4) / max(n_bytes, 1.0)


class TaskOwner(Protocol):
    """Owns background tasks and ends them."""

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start a task that ends at the latest with its owner; it must not raise."""
        ...


@dataclass(slots=True)
class _Kept:
    """A session with its uses, and what the clock showed at the last one."""

    session: EngineSession
    n_uses: int = 0
    n_runs: int = 0
    clock: float = 0.0
    used_s: float = field(default_factory=monotonic)

    def worth(self, clock: float) -> float:
        """Runs for other sessions count as uses; they are looked at here, so that the run itself pays nothing."""
        session = self.session
        if session.n_runs != self.n_runs:
            self.n_runs, self.clock = session.n_runs, clock
        n_uses = self.n_uses + self.n_runs
        return worth(self.clock, n_uses, session.opened_s, session.n_bytes + session.n_gpu_bytes)


class SessionCache:
    """Sessions under one budget for this machine's memory and one for the GPU's, with one build at a time for each key.

    Args:
        budget_bytes: what kept sessions hold together; one that needs more by itself is refused.
        gpu_budget_bytes: the same on the GPU; 0 for no bound.
        priority_of: of the model with a digest: sessions of lower priority leave first, and for one of lower priority
            nothing leaves that was used within `KEPT_FROM_LOWER_S`.
        tasks: owns the builds.
        builders: threads in which sessions are opened.

    Attributes:
        n_bytes, n_gpu_bytes: what the kept sessions hold together, as measured when they were opened.
        shared_bytes: what all sessions share, the arena of activations; the executor measures it.
        n_evicted: sessions that had to leave.
        n_reopened: sessions that were opened again after they had left; `reopen_s` is the time that took.
        on_forget: told of every session that leaves.
    """

    def __init__(
        self,
        *,
        budget_bytes: int,
        tasks: TaskOwner,
        builders: Background,
        gpu_budget_bytes: int = 0,
        priority_of: Callable[[str], int] = lambda _: 0,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.gpu_budget_bytes = gpu_budget_bytes
        self.n_bytes = 0
        self.n_gpu_bytes = 0
        self.shared_bytes = 0
        self.n_evicted = 0
        self.n_reopened = 0
        self.reopen_s = 0.0
        self.on_forget: Callable[[SessionKey], None] = lambda _: None
        self._priority_of = priority_of
        self._tasks = tasks
        self._builders = builders
        self._kept: dict[SessionKey, _Kept] = {}
        self._building: dict[SessionKey, asyncio.Task[EngineSession | HybridError]] = {}
        self._failed: dict[SessionKey, tuple[HybridError, float]] = {}
        self._left: dict[SessionKey, int] = {}
        self._reserved_bytes = 0
        self._clock = 0.0

    def get(self, key: SessionKey) -> EngineSession | None:
        """The kept session, which counts as a use; None when there is none."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        kept.n_uses += 1
        kept.clock = self._clock
        kept.used_s = monotonic()
        return kept.session

    def peek(self, key: SessionKey) -> EngineSession | None:
        """The kept session without counting a use."""
        kept = self._kept.get(key)
        return None if kept is None else kept.session

    def sessions(self) -> list[tuple[SessionKey, EngineSession]]:
        """All kept sessions."""
        return [(key, kept.session) for key, kept in self._kept.items()]

    def failure(self, key: SessionKey) -> HybridError | None:
        """Why this session could not be opened a short while ago; None where it may be tried."""
        found = self._failed.get(key)
        if found is None:
            return None
        if monotonic() - found[1] < FAILURE_KEPT_S:
            return found[0].with_traceback(None)
        del self._failed[key]
        return None

    async def get_or_open(self, key: SessionKey, look: Callable[[], Opening]) -> EngineSession:
        """The kept session, or the one that is opened now.

        Args:
            look: called in a thread; says what opening will cost, and how.

        Raises:
            ModelOverBudget: it alone needs more than the budget.
            Overloaded: all that could leave for it is running.
            HybridError: whatever opening raises, for every waiting caller.
        """
        session = self.get(key)
        if session is not None:
            return session
        # Shielded: one caller that leaves must not end the build that others wait for.
        found = await asyncio.shield(self.start(key, look))
        if isinstance(found, HybridError):
            raise found
        return found

    def start(self, key: SessionKey, look: Callable[[], Opening]) -> asyncio.Task[EngineSession | HybridError]:
        """Begin building unless that is under way; the task never raises, an error is its result."""
        task = self._building.get(key)
        if task is None:
            task = self._tasks.spawn(self._build(key, look), name=f"open-{'/'.join(key)}")
            self._building[key] = task
        return task

    def drop(self, digest: str) -> None:
        """Forget all sessions of that model; those that run live until their runs end."""
        for key in [key for key in self._kept if key[0] == digest]:
            self._forget(key)

    def drop_key(self, key: SessionKey) -> None:
        """Forget one session."""
        if key in self._kept:
            self._forget(key)

    def __len__(self) -> int:
        return len(self._kept)

    async def _build(self, key: SessionKey, look: Callable[[], Opening]) -> EngineSession | HybridError:
        reserved_bytes = 0
        try:
            opening = await self._builders.run(look)
            await self._make_room(key, opening.n_bytes)
            reserved_bytes = opening.n_bytes
            self._reserved_bytes += reserved_bytes
            session = await self._builders.run(opening.open)
            self._reserved_bytes -= reserved_bytes
            reserved_bytes = 0
            self._keep(key, session)
        except HybridError as exc:
            _log.warning("session.failed key=%s error=%s", "/".join(key), exc.code)
            if not isinstance(exc, Overloaded):
                self._failed[key] = (exc, monotonic())
            return exc
        except Exception as exc:  # noqa: BLE001 (a fault of ours must not end the service's task group)
            _log.exception("session.failed key=%s", "/".join(key))
            return EngineFailed(f"the session could not be opened: {type(exc).__name__}")
        finally:
            self._reserved_bytes -= reserved_bytes
            self._building.pop(key, None)
        return session

    async def _make_room(self, key: SessionKey, wanted_bytes: int) -> None:
        if wanted_bytes > self.budget_bytes:
            raise _over_budget(wanted_bytes, self.budget_bytes)
        if self.gpu_budget_bytes and wanted_bytes > self.gpu_budget_bytes:
            raise _over_budget(wanted_bytes, self.gpu_budget_bytes)
        patient_until_s = monotonic() + ROOM_PATIENCE_S
        while not self._evict_down(wanted_bytes, spare=key):
            if monotonic() > patient_until_s:
                raise Overloaded(
                    f"{self.n_bytes} bytes of the {self.budget_bytes} for sessions are in use and {wanted_bytes} more "
                    "are wanted; try again later, or give the gateway more with --session-memory-bytes",
                    retry_after_s=1.0,
                )
            await asyncio.sleep(_POLL_S)

    def _keep(self, key: SessionKey, session: EngineSession) -> None:
        if session.n_bytes > self.budget_bytes:
            raise _over_budget(session.n_bytes, self.budget_bytes)
        if self.gpu_budget_bytes and session.n_gpu_bytes > self.gpu_budget_bytes:
            raise _over_budget(session.n_gpu_bytes, self.gpu_budget_bytes)
        if key in self._left:
            self.n_reopened += 1
            self.reopen_s += session.opened_s
        self._failed.pop(key, None)
        self._kept[key] = _Kept(session, n_uses=self._left.pop(key, 0) + 1, clock=self._clock)
        self.n_bytes += session.n_bytes
        self.n_gpu_bytes += session.n_gpu_bytes
        # It may hold more than its file let expect. What runs now stays above the budget until it ends.
        self._evict_down(0, spare=key)

    def _evict_down(self, wanted_bytes: int, *, spare: SessionKey) -> bool:
        """Let idle sessions leave until so many bytes are free, the least worth first; False where too many run."""
        while self._exceeds(wanted_bytes):
            idle = [key for key in self._kept if key != spare and self._may_leave(key, spare)]
            if not idle:
                return False
            key = min(idle, key=lambda known: (self._priority_of(known[0]), self._kept[known].worth(self._clock)))
            kept = self._kept[key]
            self._clock = max(self._clock, kept.worth(self._clock))
            self._left[key] = kept.n_uses // 2
            while len(self._left) > _MAX_REMEMBERED:
                del self._left[next(iter(self._left))]
            self.n_evicted += 1
            self._forget(key)
            _log.info("session.evicted key=%s n_bytes=%d", "/".join(key), kept.session.n_bytes)
        return True

    def _may_leave(self, key: SessionKey, newcomer: SessionKey) -> bool:
        kept = self._kept[key]
        if kept.session.n_users:
            return False
        if self._priority_of(key[0]) <= self._priority_of(newcomer[0]):
            return True
        return monotonic() - kept.used_s > KEPT_FROM_LOWER_S

    def _exceeds(self, wanted_bytes: int) -> bool:
        wanted_bytes += self._reserved_bytes
        if not self._kept:  # the arena leaves room for one model at least
            return wanted_bytes > self.budget_bytes
        if self.n_bytes + self.shared_bytes + wanted_bytes > self.budget_bytes:
            return True
        return bool(self.gpu_budget_bytes) and self.n_gpu_bytes + wanted_bytes > self.gpu_budget_bytes

    def _forget(self, key: SessionKey) -> None:
        session = self._kept.pop(key).session
        self.on_forget(key)
        self.n_bytes -= session.n_bytes
        self.n_gpu_bytes -= session.n_gpu_bytes
        for kept in self._kept.values():
            kept.session.part_from(session)


def _over_budget(wanted_bytes: int, budget_bytes: int) -> ModelOverBudget:
    return ModelOverBudget(
        f"this model needs {wanted_bytes} bytes of memory and the gateway may use {budget_bytes} for models; serve a "
        "smaller one, or give it more with --session-memory-bytes (--gpu-memory-bytes on a GPU)",
        wanted_bytes=wanted_bytes,
        budget_bytes=budget_bytes,
    )
