"""What the agent says of itself: `GET /v2/hybrid/agent/status`, and the health that it tells its gateway."""

import shutil
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, Final, cast

import msgspec
from aiohttp import web

from edge_agent.models.onward import OnwardCounts
from edge_agent.models.room import ModelRoom
from edge_agent.part import Problem
from edge_agent.tending import Tending
from edge_agent.whereabouts import STATUS_PATH
from hybrid.errors import ConnectionLost, GatewayStalled, GatewayUnreachable, GatewayUntrusted
from hybrid.fleet.messages import Health
from hybrid.hosting.front_door import require
from hybrid.hosting.http_replies import json_reply

HANGS_S: Final = 60.0


_OF_THE_LINK: Final = frozenset({
    kind.code for kind in (GatewayUnreachable, ConnectionLost, GatewayStalled, GatewayUntrusted)
})  # fmt: skip
"""A gateway that hears a box need not be told that it could not be reached."""


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
    onward: OnwardCounts
    parts: dict[str, object]


class Standing:
    """Gathers how the agent is, from memory.

    Args:
        data: the agent's folder.
        room: models and engine.
        tending: the parts.
        more_problems: of what is no part.

    Attributes:
        room: see above.
        url: where the agent serves.
        is_serving: between the first moment at which all answers that can, and the request to stop.
        gateway: gives the URL of its gateway, empty for none.
        onward: gives counts of devices' requests.
    """

    def __init__(
        self, data: Path, room: ModelRoom, tending: Tending, more_problems: Callable[[], tuple[Problem, ...]]
    ) -> None:
        self._data = data
        self.room = room
        self._tending = tending
        self._more_problems = more_problems
        self._began_s = monotonic()
        self.url = ""
        self.is_serving = False
        self.gateway: Callable[[], str] = str
        self.onward: Callable[[], OnwardCounts] = OnwardCounts

    def problems(self) -> tuple[Problem, ...]:
        """Everything that is wrong, what blocks first."""
        found: dict[tuple[str, str], Problem] = {}
        for problem in (*self._more_problems(), *self._tending.problems()):
            # Several parts notice that the gateway is away; that is one problem.
            found.setdefault((problem.code, "" if problem.code in _OF_THE_LINK else problem.what), problem)
        return tuple(sorted(found.values(), key=lambda problem: not problem.blocks))

    def is_ready(self) -> bool:
        """Whether the agent can keep its promises."""
        return self.is_serving and not any(problem.blocks for problem in self.problems())

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return monotonic() - self._began_s

    def hangs(self) -> str:
        """What hangs, in words: a run of the engine that takes far longer than any before; empty while nothing does."""
        longest_s = self.room.executor.pool.longest_s
        runs = (self.room.host.runs(version.name) for version in self.room.answering.versions())
        slowest_s = max((found.quantile_s(0.95) for found in runs), default=0.0) if longest_s > HANGS_S else 0.0
        if longest_s <= HANGS_S + 10 * slowest_s:
            return ""
        return f"a run of the engine has taken {longest_s:.0f} s; the slowest runs before took {slowest_s:.1f} s"

    def summary(self) -> str:
        """One line for people."""
        problems = [problem.code for problem in self.problems()]
        models = f"{len(self.room.answering.versions())} models"
        return f"{models}; {'problems: ' + ', '.join(dict.fromkeys(problems)) if problems else 'all is well'}"

    def status(self) -> AgentStatus:
        """All of it."""
        from hybrid import __version__

        engine = self.room.executor
        sessions = engine.sessions
        return AgentStatus(
            version=__version__,
            url=self.url,
            data=str(self._data.absolute()),
            ready=self.is_ready(),
            uptime_s=round(self.uptime_s, 1),
            gateway=self.gateway(),
            models=[self._model(version.name) for version in self.room.answering.versions()],
            engine=EngineStatus(
                provider=engine.settings.engine.provider.name,
                n_waiting=engine.pool.n_waiting,
                n_running=engine.pool.n_running,
                session_bytes=sessions.n_bytes,
                budget_bytes=sessions.budget_bytes,
            ),
            problems=list(self.problems()),
            onward=self.onward(),
            parts=self._tending.status(),
        )

    def figures(self) -> dict[str, object]:
        """What telemetry tells: figures, never inputs or outputs."""
        engine = self.room.executor
        return {
            "uptime_s": round(self.uptime_s, 1),
            "ready": self.is_ready(),
            "problems": sorted({problem.code for problem in self.problems()}),
            "session_bytes": engine.sessions.n_bytes,
            "n_late": engine.pool.n_late,
            "models": [self._model(version.name) for version in self.room.answering.versions()],
        }

    def health(self) -> Health:
        """What the gateway is told."""
        outbox = cast("dict[str, Any]", self._tending.status().get("outbox", {}))
        kinds = outbox.get("kinds", {}).values()
        codes = [problem.code for problem in self.problems()]
        try:
            free_bytes = shutil.disk_usage(self._data).free
        except OSError:
            free_bytes = 0
        return Health(
            ready=self.is_ready(),
            problems=tuple(dict.fromkeys(code for code in codes if code not in _OF_THE_LINK)),
            disk_free_bytes=free_bytes,
            outbox_items=outbox.get("n_items", 0),
            outbox_bytes=outbox.get("n_bytes", 0),
            outbox_dropped=sum(kind.get("n_dropped", 0) for kind in kinds),
            uptime_s=round(self.uptime_s, 1),
        )

    def _model(self, name: str) -> ModelStatus:
        version, runs = self.room.answering.named(name), self.room.host.runs(name)
        assert version is not None
        copy = self.room.answering.personal(name)
        digest = version.model_digest if copy is None else copy.digest
        return ModelStatus(
            name=name,
            version=version.version,
            model_digest=version.model_digest,
            artifact_digest=version.artifact_digest,
            priority=version.priority,
            samples=version.samples,
            is_open=self.room.executor.sessions.peek((digest,)) is not None,
            n_good=runs.n_good,
            n_errors=runs.n_errors,
            by_place=dict(runs.by_place),
            p50_s=runs.quantile_s(0.5),
            p95_s=runs.quantile_s(0.95),
        )


def add_status_route(app: web.Application, standing: Standing) -> None:
    """Serve the status to administrators, and to programs of the machine where no tokens are asked for."""

    async def status(request: web.Request) -> web.Response:
        require(request, "admin")
        return json_reply(standing.status())

    app.router.add_get(STATUS_PATH, status)
