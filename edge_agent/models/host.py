"""Runs what is installed: opens versions beside those that answer, and changes which one answers."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from compression.tensor import NUMPY_OF
from edge_agent.models.computing import BoxCompute
from edge_agent.models.source import Answering, served
from edge_agent.models.turns import LEAST
from edge_agent.models.version import ModelVersion, PersonalCopy, Runs
from hybrid.errors import EngineFailed, HybridError, NotFound
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.loaded_models import LoadedModels
from hybrid.serving.engines.session import EngineSession

_log = logging.getLogger("hybrid.agent.models")

_WARM_ELEMENTS: Final = 64 << 20


class Host:
    """The `ModelHost` of an agent.

    Args:
        executor: this machine's engine.
        answering: which version answers.
        models: load states over it.
        compute: counts runs.
    """

    def __init__(self, executor: Executor, answering: Answering, models: LoadedModels, compute: BoxCompute) -> None:
        self._executor = executor
        self._answering = answering
        self._models = models
        self._compute = compute
        self._beside: dict[str, ModelVersion] = {}
        self._changing = asyncio.Lock()

    async def open(self, version: ModelVersion) -> None:
        """See `ModelHost`."""
        session = await self._executor.open_whole(served(version))
        self._beside[version.model_digest] = version
        feeds = _zeros(session)
        if feeds is not None:
            try:
                await self._executor.compute(session, feeds, None, priority=LEAST)
            except EngineFailed as exc:  # zeros are no input of this model: its first request warms it
                _log.info("model.cold name=%s error=%s", version.name, exc)

    async def run(
        self, version: ModelVersion, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """See `ModelHost`."""
        session = await self._executor.open_whole(served(version))
        wanted = list(names or session.output_names)
        computed = await self._executor.compute(session, feeds, wanted, priority=LEAST)
        return dict(zip(wanted, computed.outputs, strict=True))

    async def answer(self, version: ModelVersion) -> None:
        """See `ModelHost`."""
        async with self._changing:
            before, copy = self._answering.named(version.name), self._answering.personal(version.name)
            opened = await self._executor.open_whole(served(version))
            was_tried = self._beside.pop(version.model_digest, None) is not None
            if was_tried and getattr(opened.engine, "keeps_state", False) and not self._answers(version):
                self._executor.sessions.drop(version.model_digest)  # no caller made the runs that it remembers
                await self._executor.open_whole(served(version))
            is_same = before is not None and before.model_digest == version.model_digest
            if not is_same or before is None or before.artifact_digest != version.artifact_digest:
                self._compute.begin_anew(version.model_digest)
            self._answering.put(version)
            await self._models.load(version.name)
            if before is not None and before.version != version.version:
                await self._models.forget(version.name, before.version)
            if before is not None and not is_same:
                self._let_go(before)
            self._let_copy_go(copy)
            self._keep_one_in_memory(version)
        _log.info("model.answers name=%s version=%s", version.name, version.version)

    async def drop(self, name: str, artifact_digest: str = "") -> None:
        """See `ModelHost`."""
        async with self._changing:
            if artifact_digest:
                gone = [version for version in self._beside.values() if version.artifact_digest == artifact_digest]
                for version in gone:
                    del self._beside[version.model_digest]
                    self._let_go(version)
                return
            copy, before = self._answering.personal(name), self._answering.remove(name)
            if before is not None:
                await self._models.forget(name, before.version)
                self._let_go(before)
            self._let_copy_go(copy)

    async def personalize(self, copy: PersonalCopy) -> None:
        """Open a personal copy beside its version and warm it up; then its name is answered with it.

        Raises:
            HybridError: it cannot be opened, or its version answers no more; what answered does.
        """
        version = copy.version
        async with self._changing:
            session = await self._executor.open_whole(served(version, copy))
            feeds = _zeros(session)
            if feeds is not None:
                with suppress(EngineFailed):  # as in `open`
                    await self._executor.compute(session, feeds, None, priority=LEAST)
            before, current = self._answering.personal(version.name), self._answering.named(version.name)
            self._answering.personalize(version.name, copy)
            if current is None or self._answering.personal(version.name) is not copy:
                self._executor.sessions.drop(copy.digest)
                raise NotFound(f"{version.name}:{version.version} answers no more")
            await self._models.refresh(version.name)
            self._let_copy_go(before)
            self._keep_one_in_memory(version)
        _log.info("model.personal name=%s version=%s", version.name, version.version)

    async def plainly(self, name: str) -> None:
        """A name is answered with its version as it was shipped; requests that run end as they began."""
        async with self._changing:
            copy = self._answering.personal(name)
            if copy is None:
                return
            with suppress(HybridError):  # opened beside, where there is room: no request waits for it
                await self._executor.open_whole(served(copy.version))
            self._answering.personalize(name, None)
            await self._models.refresh(name)
            loaded = self._models.opened(name, "")
            if loaded is not None and loaded.model.model_digest == copy.digest:
                await self._models.forget(name, copy.version.version)  # no room for it now: the next request tries
            self._let_copy_go(copy)
        _log.info("model.plain name=%s", name)

    def runs(self, name: str) -> Runs:
        """See `ModelHost`."""
        version = self._answering.named(name)
        return Runs() if version is None else self._compute.runs(version.model_digest)

    def _answers(self, version: ModelVersion) -> bool:
        return self._answering.of_digest(version.model_digest) is not None

    def _keep_one_in_memory(self, version: ModelVersion) -> None:
        """Where a personal copy answers, its version's own session is not needed; tails of it stay."""
        if not self._answering.is_plain(version.model_digest):
            self._executor.sessions.drop_key((version.model_digest,))

    def _let_copy_go(self, copy: PersonalCopy | None) -> None:
        if copy is not None and self._answering.copy_of(copy.digest) is None:
            self._executor.sessions.drop(copy.digest)

    def _let_go(self, version: ModelVersion) -> None:
        """Give memory back, unless another name is answered with the same model."""
        if not self._answers(version):
            self._executor.sessions.drop(version.model_digest)
            self._compute.forget(version.model_digest)


def _zeros(session: EngineSession) -> dict[str, np.ndarray] | None:
    """Inputs of zeros where the model says their sizes; a free leading dimension is one row."""
    feeds: dict[str, np.ndarray] = {}
    for spec in session.signature.inputs:
        shape = [1 if size is None and place == 0 else size for place, size in enumerate(spec.shape)]
        dtype = NUMPY_OF.get(spec.dtype)
        sizes = [size for size in shape if size is not None]
        if dtype is None or dtype.hasobject or len(sizes) != len(shape) or np.prod(sizes) > _WARM_ELEMENTS:
            return None
        feeds[spec.name] = np.zeros(sizes, dtype)
    return feeds
