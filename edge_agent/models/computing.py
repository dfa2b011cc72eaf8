"""Computes the box's requests: by priority on this machine, or where a session knows a better place."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from edge_agent.models.source import Answering, served
from edge_agent.models.turns import Turns, at_priority
from edge_agent.models.version import PersonalCopy, Runs
from hybrid.errors import DeadlinePassed, EngineFailed, HybridError, Overloaded, TensorMismatch
from hybrid.schedule.options import Options
from hybrid.serving.computing import Asked
from hybrid.serving.engines.executor import Computed, Executor, Place
from hybrid.serving.engines.served_model import ServedModel
from hybrid.serving.engines.session import EngineSession
from hybrid.serving.engines.session_cache import SessionKey

if TYPE_CHECKING:  # loaded when somebody can be asked
    from hybrid.session.connected import Neighbourhood
    from hybrid.session.hosted import HostedSession

_log = logging.getLogger("hybrid.agent.models")

OnHard = Callable[[ServedModel, Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]
CLOSE_WAIT_S: Final = 1.0
N_LATEST: Final = 256
_HERE: Final = Place()


class _Request(NamedTuple):
    """What is to be computed, and how important it is."""

    session: EngineSession
    feeds: Mapping[str, np.ndarray]
    names: Sequence[str]
    priority: int
    n_checked_bytes: int


class BoxCompute:
    """A `Compute` for the models of a box.

    Args:
        executor: this machine's engine.
        answering: priorities of models.
        options: objective and constraints of sessions.

    Attributes:
        neighbourhood: who may be asked now; None for nobody. A change of it makes sessions anew.
        on_asked: told when a request comes (True), and when it was answered or failed (False).
        on_personal_failure: told of runs that failed by a personal copy and not by its version.
        on_hard: told of requests of which a cascade's small model was not sure: the model, inputs, the answer.
        sessions: by model digest, of models that were asked for while somebody could be asked.
    """

    def __init__(self, executor: Executor, answering: Answering, options: Options) -> None:
        self._executor = executor
        self._answering = answering
        self._options = options
        self.neighbourhood: Callable[[], Neighbourhood | None] = _nobody
        self.on_asked: Callable[[bool], None] = _unasked
        self.on_hard: OnHard = _unheard
        self.on_personal_failure: Callable[[PersonalCopy, HybridError], None] = _untold
        self._turns = Turns(executor)
        self._runs: dict[str, Runs] = {}
        self._known: Neighbourhood | None = None
        self.sessions: dict[str, HostedSession] = {}
        executor.sessions.on_forget = self._forgotten

    async def __call__(
        self,
        model: ServedModel,
        session: EngineSession,
        feeds: Mapping[str, np.ndarray],
        names: Sequence[str],
        asked: Asked,
        *,
        n_checked_bytes: int = -1,
    ) -> Computed:
        """See `Compute`."""
        self.on_asked(True)
        try:
            return await self._counted(model, session, asked, feeds, names, n_checked_bytes)
        finally:
            self.on_asked(False)

    async def _counted(  # noqa: PLR0917 (those of the call)
        self,
        model: ServedModel,
        session: EngineSession,
        asked: Asked,
        feeds: Mapping[str, np.ndarray],
        names: Sequence[str],
        n_checked_bytes: int,
    ) -> Computed:
        priority = asked.priority_beside(self._answering.priority(model.model_digest))
        copy = self._answering.copy_of(model.model_digest)
        runs = self.runs(model.model_digest if copy is None else copy.version.model_digest)
        request = _Request(session, feeds, names, priority, n_checked_bytes)
        started_s = perf_counter()
        try:
            hosted = None if copy is not None else await self._hosted(model, session, asked)
            if copy is not None:
                computed = await self._personally(copy, request, asked.deadline_s)
            elif hosted is None:
                computed = await self._here(request, asked.deadline_s)
            else:
                if n_checked_bytes < 0:
                    session.check(feeds)
                with at_priority(priority):
                    computed = await self._anywhere(model, hosted, request, asked.deadline_s)
        except (TensorMismatch, Overloaded, DeadlinePassed):
            raise
        except HybridError:
            runs.n_errors += 1
            raise
        place = computed.place or _HERE
        runs.n_good += 1
        runs.by_place[place.placement] = runs.by_place.get(place.placement, 0) + 1
        runs.latest_s.append(perf_counter() - started_s)
        if len(runs.latest_s) > N_LATEST:
            del runs.latest_s[0]
        return computed

    def change(self, options: Options) -> None:
        """Other options for sessions from now on."""
        if options != self._options:
            self._options = options
            for digest in list(self.sessions):
                self._let_go(digest)

    def runs(self, model_digest: str) -> Runs:
        """Counts of a model's runs."""
        found = self._runs.get(model_digest)
        if found is None:
            found = self._runs[model_digest] = Runs()
        return found

    def begin_anew(self, model_digest: str) -> None:
        """A version begins to answer: its counts start from nothing."""
        self._runs[model_digest] = Runs()

    def forget(self, model_digest: str) -> None:
        """A version is gone."""
        self._runs.pop(model_digest, None)

    async def close(self) -> None:
        """End all sessions."""
        sessions, self.sessions = self.sessions, {}
        await asyncio.gather(*(asyncio.to_thread(session.close, CLOSE_WAIT_S) for session in sessions.values()))

    async def _here(self, request: _Request, deadline_s: float | None) -> Computed:
        computed = await self._executor.compute(
            request.session,
            request.feeds,
            request.names,
            deadline_s,
            n_checked_bytes=request.n_checked_bytes,
            priority=request.priority,
        )
        return computed._replace(place=_HERE)

    async def _personally(self, copy: PersonalCopy, request: _Request, deadline_s: float | None) -> Computed:
        """By a personal copy, here alone; what it fails at is computed by its version, and told if that does not."""
        try:
            return await self._here(request, deadline_s)
        except EngineFailed as exc:
            failed = exc
        session = await self._executor.open_whole(served(copy.version))
        computed = await self._here(request._replace(session=session), deadline_s)
        self.on_personal_failure(copy, failed)
        place = Place(model_digest=copy.version.model_digest, fallback=f"{failed.code}: {failed}")
        return computed._replace(place=place)

    async def _anywhere(
        self, model: ServedModel, hosted: "HostedSession", request: _Request, deadline_s: float | None
    ) -> Computed:
        queue_s = compute_s = 0.0

        async def here(left_s: float | None) -> list[np.ndarray]:
            nonlocal queue_s, compute_s
            computed = await self._here(request, None if left_s is None else perf_counter() + left_s)
            queue_s, compute_s = computed.queue_s, computed.compute_s
            return computed.outputs

        left_s = None if deadline_s is None else deadline_s - perf_counter()
        if left_s is not None and left_s <= 0:
            raise DeadlinePassed("the deadline passed before this box could begin; allow more time")
        try:
            async with asyncio.timeout(left_s):
                answer = await hosted.answer(request.names, request.feeds, here, left_s)
        except DeadlinePassed:
            raise
        except TimeoutError:
            raise DeadlinePassed("no answer within the deadline; allow more time") from None
        report = answer.report
        if report.answered_by in ("large", "both") or (report.answered_by == "small" and report.fallback):
            self.on_hard(model, request.feeds, dict(zip(request.names, answer.outputs, strict=True)))
        if report.placement != "local" or not compute_s:
            compute_s = report.head_s + report.tail_s
            queue_s = max(0.0, report.total_s - compute_s)
        place = Place(report.placement, report.gateway, report.cut, report.fallback or "", report.model_digest)
        return Computed(answer.outputs, queue_s, compute_s, place=place)

    async def _hosted(self, model: ServedModel, session: EngineSession, asked: Asked) -> "HostedSession | None":
        """The session that may ask others; None where this machine alone shall compute."""
        if asked.hops or self._options.placement == "local":
            return None
        neighbourhood = self.neighbourhood()
        if neighbourhood != self._known:
            self._change(neighbourhood)
        if neighbourhood is None or self._executor.sessions.peek((model.model_digest,)) is not session:
            return None  # nobody is there, or it is a tail
        hosted = self.sessions.get(model.model_digest)
        if hosted is None:
            options = self._options
            made = await self._made(model, session, neighbourhood)
            is_gone = self._executor.sessions.peek((model.model_digest,)) is not session
            is_stale = is_gone or neighbourhood != self._known or options is not self._options
            hosted = None if is_stale else self.sessions.setdefault(model.model_digest, made)
            if hosted is not made:  # another request made one meanwhile, or others may be asked by now
                await asyncio.to_thread(made.close, CLOSE_WAIT_S)
        return hosted

    async def _made(
        self, model: ServedModel, session: EngineSession, neighbourhood: "Neighbourhood"
    ) -> "HostedSession":
        from edge_agent.models.cascading import CascadedSession, EscalatingSession, cascade_of
        from hybrid.session.hosted import HostedSession  # with all that a session that may travel loads
        from hybrid.session.source import Source

        engine = self._turns.whole(session, lambda: self._executor.open_whole(model))
        _log.info("session.made model=%s urls=%s", model.name, ",".join(neighbourhood.urls) or "discovered")
        options = self._options
        if options.cascade != "off":
            version = self._answering.of_digest(model.model_digest)  # by its name another one may answer by now
            found = await asyncio.to_thread(cascade_of, version, options.max_accuracy_drop)
            if found is not None:
                return EscalatingSession(found, engine, options, neighbourhood)
        hosted = HostedSession(Source(path=model.path), engine, self._options, neighbourhood, pieces=self._turns.piece)
        if self._options.cascade == "off":
            return hosted
        return CascadedSession(hosted, self._executor, model, self._options.max_accuracy_drop)

    def _change(self, neighbourhood: "Neighbourhood | None") -> None:
        self._known = neighbourhood
        for digest in list(self.sessions):
            self._let_go(digest)

    def _forgotten(self, key: SessionKey) -> None:
        if len(key) == 1:
            self._let_go(key[0])

    def _let_go(self, model_digest: str) -> None:
        hosted = self.sessions.pop(model_digest, None)
        if hosted is not None:
            closing = asyncio.to_thread(hosted.close, CLOSE_WAIT_S)
            self._executor.spawn(closing, name=f"close-{model_digest[:8]}")


def _unasked(comes: bool) -> None:  # noqa: FBT001 (two events, one listener)
    """Nobody waits for requests."""
    del comes


def _unheard(model: ServedModel, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """Nobody keeps hard requests."""
    del model, inputs, outputs


def _nobody() -> None:
    """Who may be asked before anything is known."""


def _untold(copy: PersonalCopy, error: HybridError) -> None:
    """Nobody looks after personal copies."""
    del copy, error
