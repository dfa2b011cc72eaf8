"""Which models are loaded: what `ready`, `index`, `load` and `unload` speak about."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Literal
from weakref import WeakValueDictionary

from hybrid.errors import HybridError, NotFound
from hybrid.serving.engines.executor import Executor
from hybrid.serving.engines.served_model import ModelSignature, ModelSource, ServedModel

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Why a version could not be opened, and when that was seen on the clock of `time.monotonic`."""

    error: HybridError
    at_s: float


class LoadedModels:
    """Load states over a source of models.

    A name is loaded or not, and that is remembered by the source. Of a loaded name the newest version that can be
    opened is opened when the service starts, another one at its first request. Sessions may leave memory under the
    executor's budget: the version stays READY, since its next request opens it again.

    Args:
        retry_failed_s: a version that could not be opened is not tried again for so long, except by `load`.
    """

    def __init__(self, source: ModelSource, executor: Executor, *, retry_failed_s: float = 60.0) -> None:
        self._source = source
        self._executor = executor
        self._retry_failed_s = retry_failed_s
        self._opened: dict[tuple[str, str], LoadedModel] = {}
        self._failed: dict[tuple[str, str], _Failure] = {}
        # Whoever changes what is newest of a name holds its lock; a lock lives as long as somebody wants it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._loading: dict[tuple[str, str], int] = {}
        self._unloaded: set[str] = set()
        self._n_forgotten: Counter[str] = Counter()

    @property
    def n_loading(self) -> int:
        """How many versions are being opened now."""
        return len(self._loading)

    def opened(self, name: str, version: str) -> LoadedModel | None:
        """The version if it is ready now; version "" is the newest. Costs one look into a dictionary."""
        return self._opened.get((name, version))

    async def open(self, name: str, version: str) -> LoadedModel:
        """The version, opened first if it never was; version "" is the newest that can be opened.

        Raises:
            NotFound: no such model or version, or the name is not loaded.
            ModelError: it cannot be opened, or could not be a short while ago.
        """
        found = self._opened.get((name, version))
        if found is not None:
            return found
        if not version:
            async with self._lock(name):
                return self._opened.get((name, "")) or await self._open_newest(name)
        n_forgotten = self._n_forgotten[name]
        model = await asyncio.to_thread(self._source.find, name, version)
        if not await asyncio.to_thread(self._source.wanted, name):
            raise _not_loaded(name)
        loaded = await self._open_unless_failed(model)
        if self._n_forgotten[name] != n_forgotten:  # a version was forgotten while this one was being opened
            await self._see_that_it_is_held(model)
        return loaded

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
        async with self._lock(name):
            model = await asyncio.to_thread(self._source.find, name, "")
            self._unloaded.discard(name)
            loaded = self._opened[name, ""] = await self._open(model)
            await asyncio.to_thread(lambda: self._source.want(name, loaded=True))
            return loaded

    async def unload(self, name: str) -> None:
        """Forget all opened versions of a name; running requests end first. Raises `NotFound`."""
        async with self._lock(name):
            await asyncio.to_thread(self._source.find, name, "")
            self._unloaded.add(name)
            await asyncio.to_thread(lambda: self._source.want(name, loaded=False))
            gone = [key for key in self._opened if key[0] == name]
            digests = {self._opened.pop(key).model.model_digest for key in gone}
        still = {loaded.model.model_digest for loaded in self._opened.values()}
        for digest in digests - still:
            self._executor.sessions.drop(digest)

    async def load_wanted(self) -> None:
        """Open the newest version of every name that is remembered as loaded; failures are logged, none is raised."""
        try:
            held = await asyncio.to_thread(self._source.models)
        except HybridError as exc:
            _log.error("models.failed error=%s", exc)
            return
        for name in dict.fromkeys(model.name for model in held):
            await self.refresh(name)

    async def refresh(self, name: str) -> None:
        """Open the newest version of a loaded name after a push; the version before serves on if it cannot be."""
        try:
            async with self._lock(name):
                if await asyncio.to_thread(self._source.wanted, name):
                    await self._open_newest(name)
        except HybridError as exc:
            _log.warning("model.failed name=%s error=%s", name, exc)

    async def forget(self, name: str, version: str) -> None:
        """One version answers no more, for it is gone from the source; running requests end first."""
        async with self._lock(name):
            self._n_forgotten[name] += 1
            gone = self._opened.pop((name, version), None)
            newest = self._opened.get((name, ""))
            if gone is not None and newest is not None and newest.model == gone.model:
                del self._opened[name, ""]
        still = {loaded.model.model_digest for loaded in self._opened.values()}
        if gone is not None and gone.model.model_digest not in still:
            self._executor.sessions.drop(gone.model.model_digest)

    async def index(self) -> list[IndexEntry]:
        """Every version held, with its state."""
        held = await self._held()
        wanted = {name: await asyncio.to_thread(self._source.wanted, name) for name in {model.name for model in held}}
        return [self._entry(model, is_wanted=wanted[model.name]) for model in held]

    async def reason(self, name: str, version: str) -> str:
        """Why a version is not ready. One of a loaded name that was never opened is being opened from now on.

        Raises:
            NotFound: no such model or version.
        """
        model = await asyncio.to_thread(self._source.find, name, version)
        is_wanted = await asyncio.to_thread(self._source.wanted, name)
        held = [model] if version else [found for found in await self._held() if found.name == name]
        entries = [self._entry(found, is_wanted=is_wanted) for found in held]
        is_loading = any(entry.state == "LOADING" for entry in entries)
        # READY: it was opened, but not yet as the newest of its name.
        if not is_loading and any(entry.state == "READY" or entry.reason == _OPENS_LATER for entry in entries):
            self._executor.spawn(self._open_later(name, version), name=f"open-{model.name}-{model.version}")
            return "being opened"
        entry = self._entry(model, is_wanted=is_wanted)
        return entry.reason or entry.state

    def _entry(self, model: ServedModel, *, is_wanted: bool) -> IndexEntry:
        key = (model.name, model.version)
        if key in self._opened:
            return IndexEntry(name=model.name, version=model.version, state="READY")
        if key in self._loading:
            return IndexEntry(name=model.name, version=model.version, state="LOADING")
        failure = self._failed.get(key)
        reason = str(failure.error) if failure is not None else _OPENS_LATER if is_wanted else "unloaded"
        return IndexEntry(name=model.name, version=model.version, state="UNAVAILABLE", reason=reason)

    async def _held(self) -> Sequence[ServedModel]:
        return await asyncio.to_thread(self._source.models)

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _open_later(self, name: str, version: str) -> None:
        try:
            await self.open(name, version)
        except HybridError as exc:
            _log.warning("model.failed name=%s version=%s error=%s", name, version, exc)

    async def _open_newest(self, name: str) -> LoadedModel:
        """The newest version that opens is the newest from now on; for holders of the name's lock.

        Raises:
            NotFound: no such model, or the name is not loaded.
            HybridError: no version opens; why the newest does not.
        """
        newest = await asyncio.to_thread(self._source.find, name, "")
        if not await asyncio.to_thread(self._source.wanted, name):
            raise _not_loaded(name)
        first: HybridError | None = None
        older = [model for model in reversed(await self._held()) if model.name == name and model != newest]
        for model in (newest, *older):
            try:
                known = self._opened.get((name, model.version))
                loaded = known if known is not None and known.model == model else await self._open_unless_failed(model)
            except NotFound:
                raise
            except HybridError as exc:
                first = first or exc
                continue
            self._opened[name, ""] = loaded
            return loaded
        assert first is not None
        raise first.with_traceback(None)

    async def _see_that_it_is_held(self, model: ServedModel) -> None:
        """Return if the source has this model; else it answers no more. Raises `NotFound`."""
        try:
            if await asyncio.to_thread(self._source.find, model.name, model.version) == model:
                return
        except NotFound:
            await self.forget(model.name, model.version)
            raise
        await self.forget(model.name, model.version)
        raise NotFound(f"model {model.name!r} {model.version} is being replaced; ask again")

    async def _open_unless_failed(self, model: ServedModel) -> LoadedModel:
        failure = self._failed.get((model.name, model.version))
        if failure is not None and monotonic() - failure.at_s < self._retry_failed_s:
            raise failure.error.with_traceback(None)  # it is raised often: frames shall not pile up on it
        return await self._open(model)

    async def _open(self, model: ServedModel) -> LoadedModel:
        key = (model.name, model.version)
        self._loading[key] = self._loading.get(key, 0) + 1
        try:
            session = await self._executor.open_whole(model)
        except HybridError as exc:
            self._failed[key] = _Failure(error=exc, at_s=monotonic())
            _log.warning("model.failed name=%s version=%s error=%s", model.name, model.version, exc)
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
        return loaded


def _not_loaded(name: str) -> NotFound:
    return NotFound(f"model {name!r} is not loaded; load it with POST /v2/repository/models/{name}/load")
