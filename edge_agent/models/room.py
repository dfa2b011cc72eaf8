"""The room of a box's models, put together: engine, versions that answer, who computes, who installs into it."""

from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from devices.fallback import FallbackSession
from edge_agent.models.computing import BoxCompute
from edge_agent.models.host import Host
from edge_agent.models.source import Answering
from edge_agent.part import Problem
from hybrid.hosting.service_settings import ServiceSettings
from hybrid.schedule.options import Options
from hybrid.serving.engine_settings import degraded, executor_settings
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.loaded_models import LoadedModels


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRoom:
    """The parts, which know one another.

    Attributes:
        executor: this machine's engine.
        answering: which version answers which name.
        models: load states.
        compute: computes requests.
        host: opens and changes versions.
    """

    executor: Executor
    answering: Answering
    models: LoadedModels
    compute: BoxCompute
    host: Host

    def degraded(self) -> str:
        """Why models do not run where the operator wanted them to; empty where they do."""
        sessions = [session for _, session in self.executor.sessions.sessions()]
        return degraded(self.executor.settings.engine.provider, sessions)

    def problems(self) -> tuple[Problem, ...]:
        """Of the engine: an accelerator that is not there, or that failed."""
        do = "Mend the accelerator, or set --provider cpu; it is tried again by itself."
        troubles = [
            (session.path.name, session.engine.trouble)
            for _, session in self.executor.sessions.sessions()
            if isinstance(session.engine, FallbackSession)
        ]
        found = [
            f"{name} runs on the CPU: {trouble.provider} failed {trouble.n_failures} times, {trouble.reason}"
            for name, trouble in troubles
            if trouble is not None
        ]
        if found:
            return tuple(Problem(code="accelerator_failed", what=what, do=do) for what in found)
        reason = self.degraded()
        return (Problem(code="accelerator_failed", what=reason, do=do),) if reason else ()


async def open_room(stack: AsyncExitStack, settings: ServiceSettings, options: Options) -> ModelRoom:
    """Start the engine; the stack ends it.

    Args:
        stack: of the agent.
        settings: threads, memory, provider.
        options: of sessions.
    """
    answering = Answering()
    wanted = executor_settings(settings)
    engine = replace(wanted.engine, learns_bounds=settings.inline_s > 0)
    executor = await stack.enter_async_context(Executor(replace(wanted, engine=engine, priority_of=answering.priority)))
    models = LoadedModels(answering, executor)
    compute = BoxCompute(executor, answering, options)
    stack.push_async_callback(compute.close)
    host = Host(executor, answering, models, compute)
    return ModelRoom(executor=executor, answering=answering, models=models, compute=compute, host=host)
