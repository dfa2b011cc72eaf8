"""Models that the operator named on the command line, for trying out: served beside the assigned ones."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_agent.models.host import Host
from edge_agent.models.version import ModelVersion
from edge_agent.part import Problem
from hybrid.artifact.digest import model_digest
from hybrid.errors import HybridError, ModelMissing

VERSION = "1"


class LocalModels:
    """Opens the named files once; one that cannot be opened is a problem, the others answer.

    Args:
        paths: model file by name.
        host: runs them.
    """

    name = "local"

    def __init__(self, paths: Mapping[str, Path], host: Host) -> None:
        self._paths = dict(paths)
        self._host = host
        self._failed: dict[str, HybridError] = {}

    async def begin(self) -> None:
        """Open all of them."""
        for name, path in self._paths.items():
            await self._open(name, path)

    async def change(self, paths: Mapping[str, Path]) -> None:
        """Other files are named now."""
        before, self._paths = self._paths, dict(paths)
        for name in before.keys() - paths.keys():
            self._failed.pop(name, None)
            await self._host.drop(name)
        for name, path in paths.items():
            if before.get(name) != path or name in self._failed:
                await self._open(name, path)

    async def _open(self, name: str, path: Path) -> None:
        self._failed.pop(name, None)
        try:
            await self._host.answer(await asyncio.to_thread(_version, name, path))
        except HybridError as exc:
            self._failed[name] = exc

    def problems(self) -> Sequence[Problem]:
        """Files that could not be opened."""
        return tuple(
            Problem(code=exc.code, what=f"model {name}: {exc}", do="Give another file with --model.", blocks=True)
            for name, exc in self._failed.items()
        )


def _version(name: str, path: Path) -> ModelVersion:
    if not path.is_file():
        raise ModelMissing(f"no model file at {path}; give an existing one", path=str(path))
    return ModelVersion(name=name, version=VERSION, model_digest=model_digest(path), path=path)
