"""Which version answers which name: the model source of the agent."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from edge_agent.models.version import DEFAULT_PRIORITY, ModelVersion
from hybrid.artifact.folder import open_folder
from hybrid.artifact.splits import SplitFiles, splits_of
from hybrid.errors import HybridError, NotFound
from hybrid.serving.engines.served_model import ServedModel


class Answering:
    """The versions that answer; used from the event loop and, for looks, from threads.

    Attributes:
        on_change: told when another version answers a name, or none any more.
    """

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = _nobody
        self._versions: dict[str, ModelVersion] = {}
        self._unwanted: set[str] = set()

    def put(self, version: ModelVersion) -> ModelVersion | None:
        """This version answers its name from now on; the one before, if there was one."""
        before = self._versions.get(version.name)
        self._versions = {**self._versions, version.name: version}
        self.on_change()
        return before

    def remove(self, name: str) -> ModelVersion | None:
        """Nobody answers this name any more."""
        before = self._versions.get(name)
        self._versions = {known: version for known, version in self._versions.items() if known != name}
        self.on_change()
        return before

    def named(self, name: str) -> ModelVersion | None:
        """The version that answers a name."""
        return self._versions.get(name)

    def of_digest(self, model_digest: str) -> ModelVersion | None:
        """The version with a model digest; of several the one of highest priority."""
        found = [version for version in self._versions.values() if version.model_digest == model_digest]
        return max(found, key=lambda version: version.priority, default=None)

    def splits(self, model_digest: str) -> tuple[SplitFiles, ...]:
        """The splits of all installed artifacts with that model; reads their manifests."""
        folders = {version.folder for version in self._versions.values() if version.model_digest == model_digest}
        found: dict[str, SplitFiles] = {}
        for folder in folders - {None}:
            assert folder is not None
            with suppress(HybridError):  # it is being replaced
                found |= {split.digest: split for split in splits_of(open_folder(folder))}
        return tuple(found.values())

    def priority(self, model_digest: str) -> int:
        """Of the model with that digest."""
        version = self.of_digest(model_digest)
        return DEFAULT_PRIORITY if version is None else version.priority

    def versions(self) -> tuple[ModelVersion, ...]:
        """All that answer."""
        return tuple(self._versions.values())

    # -- ModelSource

    def find(self, name: str, version: str) -> ServedModel:
        """See `ModelSource`."""
        found = self._versions.get(name)
        if found is None or version not in ("", found.version):
            held = ", ".join(sorted(self._versions)) or "none"
            raise NotFound(f"no model {name!r} {version} is on this box; it has {held}")
        return served(found)

    def find_digest(self, model_digest: str) -> ServedModel:
        """See `ModelSource`."""
        found = self.of_digest(model_digest)
        if found is None:
            raise NotFound(f"no model with the digest {model_digest[:16]}… is on this box")
        return served(found)

    def models(self) -> Sequence[ServedModel]:
        """See `ModelSource`."""
        return [served(version) for version in self._versions.values()]

    def wanted(self, name: str) -> bool:
        """See `ModelSource`."""
        return name not in self._unwanted

    def want(self, name: str, *, loaded: bool) -> None:
        """See `ModelSource`; until the next start, for the assignment decides then."""
        self._unwanted.discard(name)
        if not loaded:
            self._unwanted.add(name)


def _nobody() -> None:
    """Nobody waits for models."""


def served(version: ModelVersion) -> ServedModel:
    """The version as the serving floor sees it."""
    return ServedModel(
        name=version.name,
        version=version.version,
        model_digest=version.model_digest,
        path=version.path,
        classes=version.classes,
    )
