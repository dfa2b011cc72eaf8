"""Which models are loaded: what `ready`, `index`, `load` and `unload` speak about."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Literal

from hybrid.errors import HybridError, NotFound
from hybrid.serving.executor import Executor
from hybrid.serving.served_model import ModelSignature, ModelSource, ServedModel

_log = logging.getLogger("hybrid.serving")

_OPENS_LATER = "opens at its first request"

LoadState = Literal["READY", "LOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A version that has been opened, so that it is known to run."""

    model: ServedModel
    signature: ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One version in the repository and whether it answers; `reason` says why not."""

    name: str
    version: str
    state: LoadState
    reason: str = ""


class LoadedModels:
    """Load states over a source of models.

    A name is loaded or not, and that is remembered by the source. Of a loaded name the newest version is opened when
    the service starts, another one at its first request. Sessions may leave memory under the executor's budget: the
    version stays READY, since its next request opens it again.
    """

    def __init__(self, source: ModelSource, executor: Executor) -> None:
        self._source = source
        self._executor = executor
        self._opened: dict[tuple[str, str], LoadedModel] = {}
        self._failed: dict[tuple[str, str], str] = {}
        self._loading: dict[tuple[str, str], int] = {}
        self._unloaded: set[str] = set()

    @property
    def n_loading(self) -> int:
        """How many versions are being opened now."""
        return len(self._loading)

    def opened(self, name: str, version: str) -> LoadedModel | None:
        """The version if it is ready now; version "" is the newest. Costs one look into a dictionary."""
        return self._opened.get((name, version))

    async def open(self, name: str, version: str) -> LoadedModel:
        """The version, opened first if it never was.

        Raises:
            NotFound: no such model or version, or the name is not loaded.
            ModelError: it cannot be opened.
        """
        found = self._opened.get((name, version))
        if found is not None:
            return found
        model = await asyncio.to_thread(self._source.find, name, version)
        if not await asyncio.to_thread(self._source.wanted, name):
            raise _not_loaded(name)
        return await self._open(model, newest=not version)

    async def by_digest(self, model_digest: str) -> ServedModel:
        """A loaded model with that digest.

        Raises:
            NotFound: there is none, or its name is not loaded.
        """
        for loaded in self._opened.values():
            if loaded.model.model_digest == model_digest:
                return loaded.model
        model = await asyncio.to_thread(self._source.find_digest, model_digest)
        if not await asyncio.to_thread(self._source.wanted, model.name):
            raise _not_loaded(model.name)
        return model

    async def load(self, name: str) -> LoadedModel:
        """Open the newest version of a name and remember that it is loaded.

        Raises:
            NotFound: no such model.
            ModelError: it cannot be opened; it stays unloaded if it was.
        """
        model = await asyncio.to_thread(self._source.find, name, "")
        self._unloaded.discard(name)
        loaded = await self._open(model, newest=True)
        await asyncio.to_thread(lambda: self._source.want(name, loaded=True))
        return loaded

    async def unload(self, name: str) -> None:
        """Forget all opened versions of a name; running requests end first. Raises `NotFound`."""
        await asyncio.to_thread(self._source.find, name, "")
        self._unloaded.add(name)
        await asyncio.to_thread(lambda: self._source.want(name, loaded=False))
        gone = [key for key in self._opened if key[0] == name]
        digests = {self._opened.pop(key).model.model_digest for key in gone}
        still = {loaded.model.model_digest for loaded in self._opened.values()}
        for digest in digests - still:
            self._executor.sessions.drop(digest)

    async def load_wanted(self) -> None:
        """Open the newest version of every name that is remembered as loaded; failures are logged and kept."""
        names = dict.fromkeys(model.name for model in await asyncio.to_thread(self._source.models))
        for name in names:
            await self.refresh(name)

    async def refresh(self, name: str) -> None:
        """Open the newest version of a loaded name after a push; the version before serves on if it cannot be."""
        try:
            if await asyncio.to_thread(self._source.wanted, name):
                await self._open(await asyncio.to_thread(self._source.find, name, ""), newest=True)
        except HybridError as exc:
            _log.warning("model.failed name=%s error=%s", name, exc)

    async def index(self) -> list[IndexEntry]:
        """Every version held, with its state."""
        held = await asyncio.to_thread(self._source.models)
        wanted = {name: await asyncio.to_thread(self._source.wanted, name) for name in {model.name for model in held}}
        return [self._entry(model, is_wanted=wanted[model.name]) for model in held]

    async def reason(self, name: str, version: str) -> str:
        """Why a version is not ready. One of a loaded name that was never opened is being opened from now on.

        Raises:
            NotFound: no such model or version.
        """
        model = await asyncio.to_thread(self._source.find, name, version)
        is_wanted = await asyncio.to_thread(self._source.wanted, name)
        entry = self._entry(model, is_wanted=is_wanted)
        if entry.reason == _OPENS_LATER:
            self._executor.spawn(self._open_later(model), name=f"open-{model.name}-{model.version}")
            return "being opened"
        return entry.reason or entry.state

    def _entry(self, model: ServedModel, *, is_wanted: bool) -> IndexEntry:
        key = (model.name, model.version)
        if key in self._opened:
            return IndexEntry(name=model.name, version=model.version, state="READY")
        if key in self._loading:
            return IndexEntry(name=model.name, version=model.version, state="LOADING")
        reason = self._failed.get(key, _OPENS_LATER if is_wanted else "unloaded")
        return IndexEntry(name=model.name, version=model.version, state="UNAVAILABLE", reason=reason)

    async def _open_later(self, model: ServedModel) -> None:
        try:
            await self._open(model, newest=False)
        except HybridError as exc:
            _log.warning("model.failed name=%s version=%s error=%s", model.name, model.version, exc)

    async def _open(self, model: ServedModel, *, newest: bool) -> LoadedModel:
        key = (model.name, model.version)
        self._loading[key] = self._loading.get(key, 0) + 1
        try:
            session = await self._executor.open_whole(model)
        except HybridError as exc:
            self._failed[key] = str(exc)
            raise
        finally:
            self._loading[key] -= 1
            if not self._loading[key]:
                del self._loading[key]
        self._failed.pop(key, None)
        if model.name in self._unloaded:  # while it was being opened
            raise _not_loaded(model.name)
        loaded = LoadedModel(model, session.signature)
        self._opened[key] = loaded
        if newest:
            self._opened[model.name, ""] = loaded
        return loaded


def _not_loaded(name: str) -> NotFound:
    return NotFound(f"model {name!r} is not loaded; load it with POST /v2/repository/models/{name}/load")
