"""A cascade in a box's service: the artifact's small model first, a session over the large one where it is unsure."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any, Final

import numpy as np

from edge_agent.models.turns import priority_now
from edge_agent.models.version import ModelVersion
from hybrid.artifact.digest import digest_of_files
from hybrid.artifact.folder import open_folder
from hybrid.artifact.manifest import CascadeRule, variant_files
from hybrid.cascade.confidence import confidences
from hybrid.errors import DeadlinePassed, HybridError, Overloaded
from hybrid.route.engine import Engine
from hybrid.schedule.options import Options
from hybrid.schedule.prospect import Candidate, local_only
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.served_model import ServedModel
from hybrid.session.cascaded import FoundCascade, found_cascade
from hybrid.session.connected import Neighbourhood
from hybrid.session.hosted import ComputeHere, HostedSession
from hybrid.session.report import RunReport
from hybrid.session.trip import Answer

_log = logging.getLogger("hybrid.agent.models")

_Answered = tuple[list[Any], RunReport]
_N_THREADS: Final = 16
_MOST_WAITING: Final = 256
RESERVE_S: Final = 0.05
"""Of a request's deadline, for giving the small model's answer where the large one's did not come."""


class CascadedSession(HostedSession):
    """A session of which an answer is first looked for in a small model, where the model's artifact holds a cascade.

    Where the small one is sure of every row, its answer stands; else the whole request goes the session's ways, this
    box among them: the large model is installed here too.

    Args:
        hosted: the session over the shipped model.
        executor: this machine's engine.
        model: the shipped one.
        max_accuracy_drop: a cascade that may lose more is not used.
    """

    def __init__(self, hosted: HostedSession, executor: Executor, model: ServedModel, max_accuracy_drop: float) -> None:
        self.obstacle = hosted.obstacle
        self._hosted = hosted
        self._executor = executor
        self._model = model
        self._max_accuracy_drop = max_accuracy_drop
        self._is_looked_for = False
        self._rule: CascadeRule | None = None
        self._small = model

    def explain(self) -> list[Candidate]:
        """See `HostedSession.explain`."""
        return self._hosted.explain()

    def prepare(self, feeds: Mapping[str, Any], timeout_s: float) -> bool:
        """See `HostedSession.prepare`."""
        return self._hosted.prepare(feeds, timeout_s)

    def close(self, wait_s: float) -> None:
        """See `HostedSession.close`."""
        self._hosted.close(wait_s)

    async def answer(
        self,
        output_names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        compute_here: ComputeHere,
        deadline_s: float | None = None,
    ) -> Answer:
        """See `HostedSession.answer`."""
        started_s = perf_counter()
        if not self._is_looked_for:
            found = await asyncio.to_thread(found_cascade, self._model.path, self._max_accuracy_drop)
            self._take(found)
        rule = self._rule
        if rule is None:
            return await self._hosted.answer(output_names, feeds, compute_here, deadline_s)
        outputs, confidence = await self._tried(rule, output_names, feeds, deadline_s)
        if outputs is not None:
            taken_s = perf_counter() - started_s
            report = RunReport(
                head_s=taken_s,
                total_s=taken_s,
                model_digest=self._small.model_digest,
                variant=self._small.version,
                answered_by="small",
                confidence=confidence,
            )
            return Answer(outputs, report)
        left_s = None if deadline_s is None else deadline_s - (perf_counter() - started_s)
        answer = await self._hosted.answer(output_names, feeds, compute_here, left_s)
        return replace(answer, report=replace(answer.report, answered_by="large", confidence=confidence))

    def _take(self, found: FoundCascade | None) -> None:
        """From now on it is known whether there is a cascade."""
        if found is not None:
            digest = digest_of_files(variant_files(found.artifact.manifest, found.small))
            name, path = self._model.name, found.small_path
            self._small = ServedModel(name=name, version=found.small.id, model_digest=digest, path=path)
            self._rule = found.rule
        self._is_looked_for = True

    async def _tried(
        self, rule: CascadeRule, names: Sequence[str], feeds: Mapping[str, np.ndarray], deadline_s: float | None
    ) -> tuple[list[np.ndarray] | None, float | None]:
        """The small model's answer where it is sure, and how sure it is."""
        asked = list(dict.fromkeys([*names, rule.output]))
        until_s = None if deadline_s is None else perf_counter() + deadline_s
        try:
            session = await self._executor.open_whole(self._small)
        except Overloaded:
            raise
        except HybridError as exc:  # the large one answers, as it would without a cascade
            _log.warning("cascade.broken model=%s error=%s", self._small.name, exc)
            self._rule = None
            return None, None
        try:
            computed = await self._executor.compute(session, feeds, asked, until_s, priority=priority_now())
        except (DeadlinePassed, Overloaded):
            raise
        except HybridError as exc:  # these inputs may be at fault: the large one answers, or says so
            _log.info("cascade.not_tried model=%s error=%s", self._small.name, exc)
            return None, None
        found = dict(zip(asked, computed.outputs, strict=True))
        sure = confidences(found[rule.output], rule.kind, rule.temperature)
        least = float(sure.min(initial=1.0))
        is_sure = rule.threshold < 1.0 and least >= rule.threshold
        return ([found[name] for name in names] if is_sure else None), least


class EscalatingSession(HostedSession):
    """The session of a cascade's small variant, where the box opened that: unsure rows go to the gateway's large one.

    The small one's answer stands where nobody is reached in time: the large one is not opened here.

    Args:
        found: the artifact's cascade.
        engine: the small one; its runs wait for their turn.
        options: of sessions.
        neighbourhood: who may be asked.
    """

    def __init__(self, found: FoundCascade, engine: Engine, options: Options, neighbourhood: Neighbourhood) -> None:
        self.obstacle = "the small model of a cascade answers, the large one where it is unsure"
        self._runs = found.runs(engine, options, neighbourhood.urls, neighbourhood.token)
        # Of its own: a gateway that is slow to answer must not hold the threads that everybody's files need.
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="cascade")
        self._n_waiting = 0

    def explain(self) -> list[Candidate]:
        """See `HostedSession.explain`."""
        return [local_only(self.obstacle)]

    def prepare(self, feeds: Mapping[str, Any], timeout_s: float) -> bool:  # noqa: ARG002 (nothing depends on shapes)
        """Whether a gateway is connected. Blocking."""
        return self._runs.wait_for_gateway(timeout_s)

    def close(self, wait_s: float) -> None:  # noqa: ARG002 (it does not take long)
        """See `HostedSession.close`."""
        self._runs.close()
        self._threads.shutdown(wait=False)

    async def answer(
        self,
        output_names: Sequence[str],
        feeds: Mapping[str, np.ndarray],
        compute_here: ComputeHere,  # noqa: ARG002 (the cascade runs the small one by itself)
        deadline_s: float | None = None,
    ) -> Answer:
        """See `HostedSession.answer`."""
        # Whoever asks ends the wait at the deadline: by then the small one's answer must be on its way.
        left_s = None if deadline_s is None else deadline_s - min(RESERVE_S, deadline_s / 8)
        if self._n_waiting >= _MOST_WAITING:
            raise Overloaded("too many requests wait for the large model of a cascade; ask again", retry_after_s=1.0)
        run = partial(copy_context().run, self._runs.run, output_names, feeds, left_s)
        self._n_waiting += 1
        try:
            outputs, report = await self._begun(run)
        finally:
            self._n_waiting -= 1
        return Answer(outputs, report)

    def _begun(self, run: Callable[[], _Answered]) -> Awaitable[_Answered]:
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, run)
        except RuntimeError:  # closed meanwhile: the small one still answers
            return asyncio.to_thread(run)


def cascade_of(version: ModelVersion | None, max_accuracy_drop: float) -> FoundCascade | None:
    """The cascade of which this version is the small variant; None for any other. Reads small files."""
    if version is None or version.folder is None or not version.variant:
        return None
    try:
        shipped = open_folder(version.folder).model_path
    except HybridError:  # it is being replaced
        return None
    found = found_cascade(shipped, max_accuracy_drop)
    return found if found is not None and found.small.id == version.variant else None
