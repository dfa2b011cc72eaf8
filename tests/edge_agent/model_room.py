"""A box's room of models in this process, for tests."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.config import AgentConfig
from edge_agent.models.room import ModelRoom, open_room
from edge_agent.models.source import served
from edge_agent.models.version import ModelVersion
from hybrid.artifact.digest import model_digest
from hybrid.schedule.options import Options
from hybrid.serving.computing import Asked
from hybrid.serving.engines.executor import Computed


@asynccontextmanager
async def model_room(data: Path, options: Options | None = None, **settings: Any) -> AsyncIterator[ModelRoom]:
    """A room with nothing in it."""
    async with AsyncExitStack() as stack:
        yield await open_room(stack, AgentConfig(data=data, **settings), options or Options())


def version(path: Path, name: str = "m", number: str = "1", **fields: Any) -> ModelVersion:
    """A model file as a version."""
    return ModelVersion(name=name, version=number, model_digest=model_digest(path), path=path, **fields)


async def ask(room: ModelRoom, name: str, feeds: dict[str, np.ndarray], asked: Asked | None = None) -> Computed:
    """As a request by name does."""
    loaded = room.models.opened(name, "") or await room.models.open(name, "")
    session = await room.executor.open_whole(loaded.model)
    return await room.compute(loaded.model, session, feeds, session.output_names, asked or Asked())


__all__ = ["ask", "model_room", "served", "version"]
