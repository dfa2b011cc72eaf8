"""What the agent says of itself: `GET /v2/hybrid/agent/status`, and the health that it tells its gateway."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Final

import msgspec
from aiohttp import web

from edge_agent.models.room import ModelRoom
from edge_agent.part import Problem
from edge_agent.tending import Tending
from hybrid.hosting.front_door import require
from hybrid.hosting.http_replies import json_reply

STATUS_PATH: Final = "/v2/hybrid/agent/status"


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One model that answers."""

    name: str
    version: str
    model_digest: str
    artifact_digest: str
    priority: int
    samples: str
    is_open: bool
    n_good: int
    n_errors: int
    by_place: dict[str, int]
    p50_s: float
    p95_s: float


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """This machine's engine."""

    provider: str
    n_waiting: int
    n_running: int
    session_bytes: int
    budget_bytes: int


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """All of it; `parts` holds what each part says of itself."""

    version: str
    url: str
    data: str
    ready: bool
    uptime_s: float
    gateway: str
    models: list[ModelStatus]
    engine: EngineStatus
    problems: list[Problem]
    parts: dict[str, object]


class Standing:
    """Gathers how the agent is, from memory.

    Args:
        data: the agent's folder.
        room: models and engine.
        tending: the parts.
        more_problems: of what is no part.

    Attributes:
        url: where the agent serves.
        is_serving: between the first moment at which all answers that can, and the request to stop.
        gateway: gives the URL of its gateway, empty for none.
    """

    def __init__(
        self, data: Path, room: ModelRoom, tending: Tending, more_problems: Callable[[], tuple[Problem, ...]]
    ) -> None:
        self._data = data
        self._room = room
        self._tending = tending
        self._more_problems = more_problems
        self._began_s = monotonic()
        self.url = ""
        self.is_serving = False
        self.gateway: Callable[[], str] = str

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong, what blocks first."""
        found = (*self._more_problems(), *self._tending.problems())
        return tuple(sorted(found, key=lambda problem: not problem.blocks))

    def is_ready(self) -> bool:
        """Whether the agent can keep its promises."""
        return self.is_serving and not any(problem.blocks for problem in self.problems())

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began_s

    def status(self) -> AgentStatus:
        """All of it."""
        from hybrid import __version__

        engine = self._room.executor
        sessions = engine.sessions
        return AgentStatus(
            version=__version__,
            url=self.url,
            data=str(self._data.absolute()),
            ready=self.is_ready(),
            uptime_s=round(self.uptime_s, 1),
            gateway=self.gateway(),
            models=[self._model(version.name) for version in self._room.answering.versions()],
            engine=EngineStatus(
                provider=engine.settings.engine.provider.name,
                n_waiting=engine.pool.n_waiting,
                n_running=engine.pool.n_running,
                session_bytes=sessions.n_bytes,
                budget_bytes=sessions.budget_bytes,
            ),
            problems=list(self.problems()),
            parts=self._tending.status(),
        )

    def _model(self, name: str) -> ModelStatus:
        version, runs = self._room.answering.named(name), self._room.host.runs(name)
        assert version is not None
        return ModelStatus(
            name=name,
            version=version.version,
            model_digest=version.model_digest,
            artifact_digest=version.artifact_digest,
            priority=version.priority,
            samples=version.samples,
            is_open=self._room.executor.sessions.peek((version.model_digest,)) is not None,
            n_good=runs.n_good,
            n_errors=runs.n_errors,
            by_place=dict(runs.by_place),
            p50_s=runs.quantile_s(0.5),
            p95_s=runs.quantile_s(0.95),
        )


def add_status_route(app: web.Application, standing: Standing) -> None:
    """Serve the status to whoever may read."""

    async def status(request: web.Request) -> web.Response:
        require(request, "read")
        return json_reply(await asyncio.to_thread(standing.status))

    app.router.add_get(STATUS_PATH, status)
